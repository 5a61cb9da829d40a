"""What the network is told: Time, Timestep, and E-TSDM's Shared."""

from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError

law = settings(deadline=None, derandomize=True, max_examples=60)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
ETSDM = nz.Shared(nz.Timestep(1000), interval=100, cells=5)


def nodes(steps, dtype):
    """Times (k + 1) / steps of the nodes k = 0 .. steps-1."""
    return (torch.arange(1, steps + 1, dtype=torch.float64) / steps).to(dtype)


def told_to_node(k, interval, width):
    """Algorithm A1 on timesteps, in integers."""
    return k // width * width if k < interval else k


def after(t):
    """The next float above t in its own dtype."""
    return torch.nextafter(t, torch.full_like(t, 2.0))


@dtypes
@law
@given(steps=st.integers(1, 4000))
def test_timestep_tells_every_node_exactly(dtype, steps):
    """The time (k + 1) / steps is told as the integer k, exactly, in float32 and float64."""
    told = nz.Timestep(steps)(nodes(steps, dtype), None)
    assert told.dtype == dtype
    assert torch.equal(told, torch.arange(steps, dtype=dtype))


def test_timestep_in_float32_arithmetic():
    """A node time divided in float32, or given as a Python number, still tells its integer."""
    assert torch.equal(nz.Timestep(1000)(torch.arange(1, 1001, dtype=torch.float32) / 1000, None), torch.arange(1000.0))


@law
@given(t=st.floats(0, 1))
def test_timestep_is_linear_between_nodes(t):
    """t * steps - 1 at every time, -1 at t = 0, up to the documented snap of 1e-3."""
    told = nz.Timestep(1000)(torch.tensor(t, dtype=torch.float64), None).item()
    assert abs(told - float(Fraction(t) * 1000 - 1)) <= (1e-3 if told == round(told) else 1e-12)


@dtypes
def test_timestep_at_zero_and_halfway(dtype):
    """t = 0 is told -1 and a time halfway between nodes is told the half, not an integer."""
    assert nz.Timestep(10)(torch.tensor([0.0, 0.25, 0.3125], dtype=dtype), None).tolist() == [-1.0, 1.5, 2.125]


@law
@given(t=st.floats(0, 1), scale=st.floats(1e-3, 1e4))
def test_time_tells_scaled_time(t, scale):
    """Time(scale) tells scale * t in t's dtype and has no edges."""
    told = nz.Time(scale)(torch.tensor([t], dtype=torch.float64), None)
    assert told.item() == pytest.approx(scale * t, rel=1e-15)
    assert nz.Time(scale).edges(nz.LinearVP()) == ()


@dtypes
def test_etsdm_defaults_on_every_node(dtype):
    """DDPM with interval 100 and 5 cells: 0, 20, 40, 60, 80 on nodes 0..99 and k itself above, for all 1000 nodes."""
    expected = [told_to_node(k, 100, 20) for k in range(1000)]
    assert ETSDM(nodes(1000, dtype), None).tolist() == expected


@dtypes
@law
@given(data=st.data())
def test_shared_on_every_node_is_integer_arithmetic(dtype, data):
    """For any steps, interval and cells that divide, node k is told k // w * w below the interval and k above, exactly."""
    width, cells = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 20))
    steps = data.draw(st.integers(width * cells, 4000))
    shared = nz.Shared(nz.Timestep(steps), interval=width * cells, cells=cells)
    assert shared(nodes(steps, dtype), None).tolist() == [told_to_node(k, width * cells, width) for k in range(steps)]


@dtypes
def test_cells_are_right_closed(dtype):
    """Time j w belongs to the cell below it and the next representable float to the cell above."""
    edges = torch.tensor(ETSDM.edges(nz.DiscreteVP.linear()), dtype=torch.float64).to(dtype)
    assert ETSDM(edges, None).tolist() == [0, 20, 40, 60, 80]
    assert ETSDM(after(edges[:-1]), None).tolist() == [20, 40, 60, 80]
    beyond = ETSDM(after(edges[-1:]), None).item()
    assert beyond == nz.Timestep(1000)(after(edges[-1:]), None).item() == 99


@dtypes
def test_time_zero_is_in_the_first_cell(dtype):
    """t = 0 and the smallest positive float are told the same as node 0."""
    t = torch.tensor([0.0, torch.finfo(dtype).tiny, 0.001], dtype=dtype)
    assert ETSDM(t, None).tolist() == [0, 0, 0]


@law
@given(t=st.floats(0, 0.1), s=st.floats(0, 0.1))
def test_inside_a_cell_nothing_changes(t, s):
    """Two times of one cell, between nodes too, are told one number, and the number never falls as t grows."""
    told = ETSDM(torch.tensor([t, s], dtype=torch.float64), None).tolist()
    edges = (Fraction(0.02), Fraction(0.04), Fraction(0.06), Fraction(0.08))
    cells = [sum(Fraction(time) > edge for edge in edges) for time in (t, s)]
    assert told == [20 * cell for cell in cells]


@law
@given(interval=st.floats(0.01, 1), cells=st.integers(1, 30), scale=st.floats(0.1, 1000), t=st.floats(0, 1))
def test_shared_time_counts_in_units_of_t(interval, cells, scale, t):
    """Over Time the interval is in t: cell j is told scale j w, above it scale t, whatever the scale."""
    width = Fraction(interval) / cells
    assume(abs(Fraction(t) / width - round(Fraction(t) / width)) > Fraction(1, 10**9) or t == 0)  # an edge is rounded
    cell = max(-(-Fraction(t) // width) - 1, 0)
    told = nz.Shared(nz.Time(scale), interval=interval, cells=cells)(torch.tensor(t, dtype=torch.float64), None).item()
    assert told == pytest.approx(scale * (float(cell * width) if t <= interval else t), rel=1e-14)


@dtypes
def test_shared_time_on_ddpm_nodes(dtype):
    """Shared(Time) and Shared(Timestep) cut the 1000 nodes into the same cells."""
    told = nz.Shared(nz.Time(), interval=0.1, cells=5)(nodes(1000, dtype), None)
    expected = torch.tensor([(k // 20 * 20) / 1000 if k < 100 else (k + 1) / 1000 for k in range(1000)], dtype=dtype)
    torch.testing.assert_close(told, expected, rtol=1e-6, atol=0)


def test_edges_are_where_the_answer_jumps():
    """edges() are w, 2 w, ..., interval in t: the answer differs between each edge and the next float, and nowhere between."""
    shared = nz.Shared(nz.Timestep(1000), interval=300, cells=3)
    edges = torch.tensor(shared.edges(nz.DiscreteVP.linear()), dtype=torch.float64)
    assert edges.tolist() == [100 / 1000, 200 / 1000, 300 / 1000]
    assert bool((shared(edges, None) != shared(after(edges), None)).all())
    fine = torch.arange(1, 3001, dtype=torch.float64) / 10_000  # ten times a timestep
    assert torch.equal(
        shared(fine, None), torch.tensor([0.0, 100.0, 200.0], dtype=torch.float64).repeat_interleave(1000)
    )
    assert nz.Timestep(1000).edges(nz.DiscreteVP.linear()) == ()


def test_a_stage_keeps_the_cell_that_its_step_leaves():
    """A step from t to s tells all its stages the cell of t, although s on the lower edge belongs to the cell below."""
    level, leaving = None, torch.tensor(0.04, dtype=torch.float64)
    stages = torch.tensor([0.04, 0.03, 0.0200001, 0.02, 0.01, 0.0], dtype=torch.float64)
    assert ETSDM.stage(stages, level, leaving).tolist() == [20] * 6
    assert ETSDM(stages, level).tolist() == [20, 20, 20, 0, 0, 0]


def test_a_stage_of_a_step_that_leaves_above_the_interval():
    """A step that leaves above the interval tells each stage what the inner conditioning says of the stage's own time."""
    stages = torch.tensor([0.150, 0.120, 0.100], dtype=torch.float64)
    leaving = torch.tensor([0.150, 0.150, 0.150], dtype=torch.float64)
    assert ETSDM.stage(stages, None, leaving).tolist() == [149, 119, 99]


@pytest.mark.parametrize("conditioning", [nz.Time(3.0), nz.Timestep(1000)])
def test_every_other_conditioning_tells_each_stage_its_own_time(conditioning):
    """Without sharing, the time that a step leaves plays no part."""
    t = torch.tensor([0.02, 0.013, 0.0], dtype=torch.float64)
    assert torch.equal(conditioning.stage(t, None, torch.tensor(0.04, dtype=torch.float64)), conditioning(t, None))


@pytest.mark.parametrize(
    ("interval", "cells", "remedy"), [(100, 3, "2 or 4"), (100, 200, "100"), (100.5, 5, "integer"), (7, 2, "1 or 7")]
)
def test_cells_that_do_not_divide_are_refused(interval, cells, remedy):
    """Cells are whole timesteps: otherwise the message names both numbers and cells that would do."""
    with pytest.raises(ArgumentError, match=rf"{interval} timesteps.*{cells} equal cells.*{remedy}"):
        nz.Shared(nz.Timestep(1000), interval=interval, cells=cells)


def test_the_cells_that_the_message_proposes_are_accepted():
    """Each number of cells in the remedy can be taken."""
    with pytest.raises(ArgumentError) as refused:
        nz.Shared(nz.Timestep(1000), interval=100, cells=7)
    proposed = [int(word) for word in str(refused.value).split("interval and ")[1].split() if word.isdigit()]
    assert proposed
    for cells in proposed:
        assert nz.Shared(nz.Timestep(1000), interval=100, cells=cells).cells == cells


def test_an_interval_beyond_the_timesteps_is_refused():
    """At most all the timesteps can be shared, and all of them can."""
    with pytest.raises(ArgumentError, match="1005 exceeds the 1000"):
        nz.Shared(nz.Timestep(1000), interval=1005, cells=5)
    assert nz.Shared(nz.Timestep(1000), interval=1000, cells=5)(torch.ones(1), None).item() == 800


@pytest.mark.parametrize("cells", [0, -5, 5.0, True, "5", None])
def test_cells_must_be_a_positive_integer(cells):
    """0, negative, float, bool and other kinds of cells are refused by value."""
    with pytest.raises(ArgumentError, match=f"positive integer of cells, got {cells}"):
        nz.Shared(nz.Timestep(1000), interval=100, cells=cells)


@pytest.mark.parametrize("interval", [0, -100, float("nan"), float("inf")])
def test_the_interval_must_be_positive_and_finite(interval):
    """An interval that is not in (0, inf) is refused by value."""
    for inner in (nz.Timestep(1000), nz.Time()):
        with pytest.raises(ArgumentError, match=f"positive interval, got {interval}"):
            nz.Shared(inner, interval=interval, cells=1)


def test_sharing_twice_is_refused():
    """Only a conditioning that has cells of its own unit can be shared."""
    with pytest.raises(ArgumentError, match="Shared cannot be shared"):
        nz.Shared(ETSDM, interval=100, cells=5)


@pytest.mark.parametrize("steps", [0, -1, 10.0])
def test_timestep_needs_a_positive_integer(steps):
    """A number of timesteps that is not a positive integer is refused by value."""
    with pytest.raises(ArgumentError, match=f"positive integer of steps, got {steps}"):
        nz.Timestep(steps)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_time_needs_a_positive_scale(scale):
    """A scale that is not in (0, inf) is refused by value."""
    with pytest.raises(ArgumentError, match=f"positive scale, got {scale}"):
        nz.Time(scale)


def test_interval_and_cells_have_no_default():
    """What is shared is always said: interval and cells must be given, by name."""
    with pytest.raises(TypeError, match="interval.*cells"):
        nz.Shared(nz.Timestep(1000))
    with pytest.raises(TypeError):
        nz.Shared(nz.Timestep(1000), 100, 5)


def test_conditionings_are_values():
    """Equal arguments make equal objects with equal hashes, replace() changes one field, and no field can be set."""
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    shared(torch.ones(1), None)  # what is cached plays no part
    assert shared == ETSDM and hash(shared) == hash(ETSDM)
    assert replace(shared, cells=10) == nz.Shared(nz.Timestep(1000), interval=100, cells=10) != shared
    assert replace(shared, cells=10)(torch.tensor(0.011), None).item() == 10
    assert repr(shared) == "Shared(inner=Timestep(steps=1000), interval=100, cells=5)"
    with pytest.raises(FrozenInstanceError):
        shared.cells = 10


def test_a_float_interval_is_the_integer_it_stands_for():
    """interval = 100.0 is equal to interval = 100 and tells the same at every node."""
    shared = nz.Shared(nz.Timestep(1000), interval=100.0, cells=5)
    assert shared == ETSDM
    assert torch.equal(shared(nodes(1000, torch.float32), None), ETSDM(nodes(1000, torch.float32), None))
