"""Where a solver stops: against diffusers' own timesteps and exact fractions."""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.grid import Aligned

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


# ---- DDIM's quadratic timesteps


def ddims(n, total=1000):
    """The timesteps of DDIM's own code, increasing."""
    return [int(s) for s in np.linspace(0, np.sqrt(total * 0.8), n) ** 2]


@law
@given(n=st.integers(2, 1000))
def test_quadratic_timesteps_are_ddims(n):
    """The n nodes are DDIM's wherever those differ (n <= 29 of 1000), and else the least distinct nodes that are not below them."""
    times, expected = nz.TimestepGrid("quadratic")(n, DDPM), []
    for node in ddims(n):
        expected.append(max(node, expected[-1] + 1) if expected else node)
    assert times.tolist() == [*((node + 1) / 1000 for node in reversed(expected)), 0.0]
    assert (expected == ddims(n)) == (n <= 29)
    assert bool((times.diff() < 0).all())


def test_the_ends_of_quadratic_timesteps():
    """One step starts at 0.8 of the nodes, all nodes are the uniform grid, and one more is refused."""
    grid = nz.TimestepGrid("quadratic")
    assert grid(1, DDPM).tolist() == [0.801, 0.0]
    assert torch.equal(grid(1000, DDPM), nz.UniformGrid()(1000, DDPM))
    with pytest.raises(ArgumentError, match="1001 steps on 1000 timesteps.*at most 1000"):
        grid(1001, DDPM)


def test_diffusers_arrives_elsewhere():
    """The finding behind the docstring: diffusers' step goes down by floor(N / n), which is the next node for every n with "leading", where n divides N with "trailing", and for n = 1 and N with "linspace"."""
    same = {}
    for spacing in SPACINGS:
        nodes = {n: theirs(spacing)[n][:n] for n in range(1, 1001)}
        same[spacing] = [
            n
            for n, k in nodes.items()
            if all(a - 1000 // n == b for a, b in itertools.pairwise(k)) and k[-1] < 1000 // n
        ]
    assert same["leading"] == list(range(1, 1001))
    assert same["trailing"] == [n for n in range(1, 1001) if 1000 % n == 0]
    assert same["linspace"] == [1, 1000]


# ---- edges on the grid

INNER = [nz.UniformGrid(), nz.SqrtGrid(), nz.TimestepGrid("leading"), nz.TimestepGrid("quadratic"), nz.AngleGrid()]


@pytest.mark.parametrize("inner", INNER, ids=str)
@law
@given(data=st.data())
def test_aligned_holds_every_edge(inner, data):
    """As many times as the inner grid's, strictly decreasing, with its first and last, all edges below the first, and nothing else that is new."""
    edges = data.draw(st.lists(st.floats(1e-6, 1.0), max_size=8, unique=True))
    edges += data.draw(st.lists(st.integers(1, 1000).map(lambda k: k / 1000), max_size=8, unique=True))
    steps = data.draw(st.integers(len(set(edges)) + 1, 60))
    plain, times = inner(steps, DDPM), Aligned(inner, tuple(edges))(steps, DDPM)
    assert times.shape == plain.shape and times.dtype == torch.float64 and bool((times.diff() < 0).all())
    assert (times[0], times[-1]) == (plain[0], plain[-1])
    inside = {edge for edge in edges if edge < plain[0].item()}
    assert inside <= set(times.tolist()) <= inside | set(plain.tolist())


@law
@given(
    nodes=st.lists(st.integers(1, 40), min_size=1, max_size=7, unique=True),
    edges=st.lists(st.integers(1, 40), max_size=7, unique=True),
)
def test_aligned_moves_least(nodes, edges):
    """Of all ways to put the edges in order on interior nodes it is one that moves them least in all, by trying every way."""
    edges = sorted(edges[: len(nodes)], reverse=True)
    inside = sorted(nodes, reverse=True)

    def inner(steps, process):
        return torch.tensor([64, *inside, 0], dtype=torch.float64) / 64

    times = Aligned(inner, tuple(edge / 64 for edge in edges))(len(nodes) + 1, DDPM)
    moved = (times - inner(0, None)).abs().sum().item() * 64
    ways = itertools.combinations(inside, len(edges))
    assert moved == min(sum(abs(a - b) for a, b in zip(way, edges, strict=True)) for way in ways)


def test_aligned_leaves_what_is_there():
    """Without edges, with edges that are nodes already, or with edges above the first time, no bit of the grid changes."""
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    uniform, leading = nz.UniformGrid(), nz.TimestepGrid("leading")
    assert torch.equal(Aligned(uniform, ())(1, DDPM), uniform(1, DDPM))
    assert torch.equal(Aligned(uniform, shared.edges(DDPM))(50, DDPM), uniform(50, DDPM))
    assert torch.equal(Aligned(uniform, (1.0,))(1, DDPM), uniform(1, DDPM))
    assert torch.equal(Aligned(leading, (0.95, 0.901))(10, DDPM), leading(10, DDPM))


def test_aligned_says_how_many_steps_it_needs():
    """Five edges need six steps: five are refused with both numbers, six go through the edges alone."""
    edges = nz.Shared(nz.Timestep(1000), interval=100, cells=5).edges(DDPM)
    grid = Aligned(nz.UniformGrid(), edges)
    with pytest.raises(ArgumentError, match="5 edges inside a grid need at least 6 steps, got 5"):
        grid(5, DDPM)
    assert grid(6, DDPM).tolist() == [1.0, 0.1, 0.08, 0.06, 0.04, 0.02, 0.0]


def test_edges_that_are_no_times_are_refused():
    """Edges at 0, below, infinite or NaN, and edges in timesteps rather than in time, are refused with the way out."""
    for edge in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ArgumentError, match=f"time above 0, got {edge}"):
            Aligned(nz.UniformGrid(), (0.1, edge))
    with pytest.raises(ArgumentError, match=r"edge 20 lies beyond the end 1; .*shared.edges\(process\)"):
        Aligned(nz.UniformGrid(), (20.0, 40.0))(10, DDPM)
