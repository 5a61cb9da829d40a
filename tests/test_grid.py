"""Where a solver stops: against diffusers' own timesteps and exact fractions."""

import functools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError

law = settings(deadline=None, derandomize=True, max_examples=60)
DDPM = nz.DiscreteVP.linear()
SPACINGS = ("trailing", "leading", "linspace")
GRIDS = [nz.UniformGrid(), nz.SqrtGrid(), *(nz.TimestepGrid(spacing) for spacing in SPACINGS)]


@functools.cache
def theirs(spacing):
    """diffusers' timesteps for n = 1 .. 1000, as lists."""
    from diffusers import DDIMScheduler

    scheduler, lists = DDIMScheduler(timestep_spacing=spacing), {}
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        lists[n] = scheduler.timesteps.tolist()
    return lists


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@law
@given(steps=st.integers(1, 1000))
def test_a_grid_falls_from_the_end_to_zero(grid, steps):
    """steps + 1 strictly decreasing float64 times, first the end (below it for "leading"), last exactly 0."""
    times = grid(steps, DDPM)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert bool((times.diff() < 0).all())
    assert times[-1].item() == 0
    first = ((steps - 1) * (1000 // steps) + 1) / 1000 if grid == nz.TimestepGrid("leading") else 1.0
    assert times[0].item() == first


@law
@given(steps=st.integers(1, 2000), end=st.sampled_from([1.0, 80.0, 0.3]))
def test_uniform_and_sqrt_grids_are_their_formulas(steps, end):
    """t_i = end (1 - i / n) and t_i = end (1 - i / n)^2, against exact fractions, for any end."""
    process = type("Process", (), {"end": end})()
    for grid, power in ((nz.UniformGrid(), 1), (nz.SqrtGrid(), 2)):
        expected = [float(Fraction(end) * Fraction(steps - i, steps) ** power) for i in range(steps + 1)]
        assert grid(steps, process).tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_those_of_diffusers(spacing):
    """For every n in 1 .. 1000 the n nodes are diffusers' (linspace with n = 1 differs: the last node here, the first there)."""
    different = []
    for n in range(2 if spacing == "linspace" else 1, 1001):
        expected = [(k + 1) / 1000 for k in theirs(spacing)[n][:n]]
        if nz.TimestepGrid(spacing)(n, DDPM).tolist() != [*expected, 0.0]:
            different.append(n)
    assert different == []


def test_diffusers_visits_a_node_below_zero():
    """The finding behind [:n]: where diffusers' "trailing" gives n + 1 timesteps (n = 61 first), the extra one is timestep -1."""
    longer = {n: timesteps for n, timesteps in theirs("trailing").items() if len(timesteps) != n}
    assert min(longer) == 61
    assert all(len(timesteps) == n + 1 and timesteps[-1] == -1 for n, timesteps in longer.items())


def test_linspace_of_one_step_starts_at_the_end():
    """One step goes from the last node to 0."""
    assert nz.TimestepGrid("linspace")(1, DDPM).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("spacing", SPACINGS)
@law
@given(total=st.integers(1, 3000), data=st.data())
def test_timestep_grid_stops_at_nodes_exactly(spacing, total, data):
    """For any N and n <= N every time but the last is the float64 (k + 1) / N of a node k."""
    process = type("Process", (), {"steps": total, "end": 1.0})()
    times = nz.TimestepGrid(spacing)(data.draw(st.integers(1, total)), process).tolist()
    assert all(0 <= round(t * total) - 1 < total and t == round(t * total) / total for t in times[:-1])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_timesteps_are_the_uniform_grid(spacing):
    """With n = N every spacing visits every node, and that is UniformGrid."""
    assert torch.equal(nz.TimestepGrid(spacing)(1000, DDPM), nz.UniformGrid()(1000, DDPM))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [0, -1, 1.5, 2.0, True, None])
def test_bad_steps_are_refused(grid, steps):
    """A number of steps that is not a positive integer is refused by value."""
    with pytest.raises(ArgumentError, match=f"at least 1 step, got {steps}"):
        grid(steps, DDPM)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_steps_than_timesteps_are_refused(spacing):
    """1001 steps on 1000 timesteps are refused; 1000 are not."""
    with pytest.raises(ArgumentError, match="1001 steps on 1000 timesteps.*at most 1000"):
        nz.TimestepGrid(spacing)(1001, DDPM)
    assert len(nz.TimestepGrid(spacing)(1000, DDPM)) == 1001


def test_timesteps_of_a_continuous_process_are_refused():
    """LinearVP has no nodes: refused by name with a way out."""
    with pytest.raises(ArgumentError, match="LinearVP has no timesteps.*UniformGrid"):
        nz.TimestepGrid()(10, nz.LinearVP())


def test_an_unknown_spacing_is_corrected():
    """A misspelt spacing is refused with the nearest name."""
    with pytest.raises(ArgumentError, match="'trailling'; did you mean 'trailing'"):
        nz.TimestepGrid("trailling")
