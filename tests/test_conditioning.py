"""What the network is told: the time, the noise, and E-TSDM's Shared over either."""

import math
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


@pytest.mark.parametrize(
    "conditioning",
    [nz.Time(3.0), nz.Timestep(1000), nz.LogSigma(), nz.LogSNR(), nz.InverseTime(), nz.InverseSigmoid()],
    ids=str,
)
def test_every_other_conditioning_tells_each_stage_its_own_time(conditioning):
    """Without sharing, the time that a step leaves plays no part, and there are no edges."""
    t, leaving = torch.tensor([0.02, 0.013, 0.001], dtype=torch.float64), torch.tensor(0.04, dtype=torch.float64)
    process = nz.LinearVP()
    staged = conditioning.stage(t, process(t), leaving, process(leaving))
    assert torch.equal(staged, conditioning(t, process(t)))
    assert conditioning.edges(process) == ()


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
    with pytest.raises(ArgumentError, match=f"positive integer of cells, 100,000 at most, got {cells}"):
        nz.Shared(nz.Timestep(1000), interval=100, cells=cells)


@pytest.mark.parametrize("interval", [0, -100, float("nan"), float("inf")])
def test_the_interval_must_be_positive_and_finite(interval):
    """An interval that is not in (0, inf) is refused by value."""
    for inner in (nz.Timestep(1000), nz.Time()):
        with pytest.raises(ArgumentError, match=f"positive interval, got {interval}"):
            nz.Shared(inner, interval=interval, cells=1)


def test_sharing_twice_is_refused():
    """Only a conditioning that has cells of its own unit can be shared: what does is named."""
    for inner, name in ((ETSDM, "Shared"), (nz.InverseTime(), "InverseTime"), (nz.InverseSigmoid(), "InverseSigmoid")):
        with pytest.raises(ArgumentError, match=f"{name} cannot be shared; share Timestep, Time, LogSigma or LogSNR"):
            nz.Shared(inner, interval=100, cells=5)


@pytest.mark.parametrize("steps", [0, -1, 10.0])
def test_timestep_needs_a_positive_integer(steps):
    """A number of timesteps that is not a positive integer is refused by value."""
    with pytest.raises(ArgumentError, match=f"positive integer of steps, got {steps}"):
        nz.Timestep(steps)


@pytest.mark.parametrize("conditioning", [nz.Time, nz.LogSigma])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_time_and_log_sigma_need_a_positive_scale(conditioning, scale):
    """A scale that is not in (0, inf) is refused by value."""
    with pytest.raises(ArgumentError, match=f"{conditioning.__name__} needs a positive scale, got {scale}"):
        conditioning(scale)


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


# --- what tells the noise, and what remaps the time --------------------------------------------------------------

PROCESSES = {
    "LinearVP": nz.LinearVP(),
    "LinearVP, beta_min 0": nz.LinearVP(beta_min=0.0),
    "QuadraticVP": nz.QuadraticVP(),
    "CosineVP": nz.CosineVP(),
    "ShiftedCosine": nz.ShiftedCosine(),
    "LinearSigmaVP": nz.LinearSigmaVP(),
    "ZeroTerminalSNR": nz.ZeroTerminalSNR(nz.DiscreteVP.linear()),
    "DiscreteVP.linear": nz.DiscreteVP.linear(),
    "DiscreteVP.quadratic": nz.DiscreteVP.quadratic(),
    "DiscreteVP.cosine": nz.DiscreteVP.cosine(),
    "SubVP": nz.SubVP(),
    "StraightPath": nz.StraightPath(),
    "SongVE": nz.SongVE(),
    "KarrasVE": nz.KarrasVE(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
NOISE = [nz.LogSigma(), nz.LogSigma(1.0), nz.LogSNR()]
noise = pytest.mark.parametrize("inner", NOISE, ids=str)
fractions = st.floats(1e-12, 1 - 1e-9)


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def in_words(inner, ratio):
    """What an inner conditioning tells of sigma / alpha: scale * log of it, or the log-SNR, -2 log of it."""
    return (inner.scale if isinstance(inner, nz.LogSigma) else -2) * math.log(ratio)


def ratio(process, t):
    alpha, sigma = (value.item() for value in process(f64(t)))
    return sigma / alpha


@processes
@noise
@settings(law, max_examples=20)
@given(part=fractions)
def test_the_noise_that_is_told(inner, process, part):
    """LogSigma tells scale log(sigma / alpha), LogSNR 2 log(alpha / sigma), on every process, to 1e-12."""
    t = f64([part * process.end])
    told = inner(t, process(t))
    assert told.dtype == torch.float64 and told.shape == (1,)
    assert told.item() == pytest.approx(in_words(inner, ratio(process, t.item())), rel=1e-12, abs=1e-12)


@noise
@law
@given(part=st.floats(2**-20, 1 - 2**-20, width=32))
def test_a_float32_time_is_told_its_float64_noise(inner, part):
    """For a float32 time the float64 number is computed and rounded once."""
    process, t = nz.LinearVP(), torch.tensor([part], dtype=torch.float32)
    told = inner(t, process(t.double()))
    assert told.dtype == torch.float32
    assert told.item() == pytest.approx(in_words(inner, ratio(process, part)), rel=2**-24 + 1e-12, abs=1e-12)


def test_log_sigma_is_edms_noise():
    """On KarrasVE the default is EDM's c_noise, log(sigma) / 4, and LogSNR is -8 times it."""
    t = f64([0.002, 0.5, 1.0, 80.0])
    expected = [math.log(sigma) / 4 for sigma in t.tolist()]
    told = nz.LogSigma()(t, nz.KarrasVE()(t))
    assert told.tolist() == pytest.approx(expected, rel=1e-14, abs=0)
    assert nz.LogSNR()(t, nz.KarrasVE()(t)).tolist() == pytest.approx([-8 * c for c in expected], rel=1e-14, abs=0)


@noise
def test_infinite_noise_is_refused(inner):
    """At sigma = 0 and at alpha = 0 what would be told is infinite: refused, if only for one example, with a way out."""
    name, process = type(inner).__name__, nz.LinearSigmaVP()
    for t, match in ((0.0, "sigma = 0.*above 0, or share it"), (1.0, "alpha = 0.*keeps some signal, or nearzero.Time")):
        times = f64([0.5, t])
        with pytest.raises(ArgumentError, match=f"{name} at {match}"):
            inner(times, process(times))


@dtypes
@law
@given(t=st.floats(2**-60, 80, width=32))
def test_inverse_time_is_one_over_t(dtype, t):
    """1/t in t's dtype, whatever the level."""
    told = nz.InverseTime()(torch.tensor([t], dtype=dtype), None)
    assert told.dtype == dtype
    assert told.item() * t == pytest.approx(1, rel=2 * torch.finfo(dtype).eps)


@dtypes
@law
@given(t=st.floats(2**-60, 1 - 2**-20, width=32))
def test_the_sigmoid_of_inverse_sigmoid_is_the_time(dtype, t):
    """t = 1 / (1 + exp(-told)), computed in float64, in t's dtype; 0 is told at t = 1/2."""
    told = nz.InverseSigmoid()(torch.tensor([t], dtype=dtype), None)
    assert told.dtype == dtype
    assert 1 / (1 + math.exp(-told.item())) == pytest.approx(t, rel=64 * torch.finfo(dtype).eps)
    assert nz.InverseSigmoid()(torch.tensor([0.5], dtype=dtype), None).item() == 0


def test_infinite_remappings_are_refused():
    """InverseTime at t = 0, InverseSigmoid at t = 0 and from t = 1 on are infinite: refused, with what they take."""
    with pytest.raises(
        ArgumentError, match="InverseTime at t = 0 is infinite; ask at a time above 0, or use nearzero.Time"
    ):
        nz.InverseTime()(f64([0.5, 0.0]), None)
    for t in (0.0, 1.0, 5.0):
        with pytest.raises(
            ArgumentError, match=rf"InverseSigmoid at t = {t:g} is infinite; it takes times inside \(0, 1\)"
        ):
            nz.InverseSigmoid()(f64([0.5, t]), None)


# --- cells of equal width in sigma / alpha -----------------------------------------------------------------------


def cell_loop(inner, value, interval, cells):
    """Algorithm A1 in sigma / alpha: right-closed cells, told their lower edge, the first its upper edge."""
    if value > interval:
        return in_words(inner, value)
    for j in range(cells):
        if value <= interval * (j + 1) / cells:
            break
    return in_words(inner, interval * max(j, 1) / cells)


@processes
@noise
@settings(law, max_examples=20)
@given(part=st.just(0.0) | st.floats(0, 0.999), root=st.integers(1, 3), cells=st.integers(1, 6))
def test_shared_noise_is_a_loop_over_cells(inner, process, part, root, cells):
    """Shared over LogSigma or LogSNR tells one number for each cell of sigma / alpha and the inner above, t = 0 legal."""
    t = part**root * process.end
    value = ratio(process, t)
    assume(abs(value * cells / 0.3 - round(value * cells / 0.3)) > 1e-9 or value == 0)  # an edge is rounded
    told = nz.Shared(inner, interval=0.3, cells=cells)(f64([t]), process(f64([t])))
    assert told.item() == pytest.approx(cell_loop(inner, value, 0.3, cells), rel=1e-12, abs=1e-12)


@noise
def test_cells_of_noise_are_right_closed(inner):
    """On KarrasVE, where sigma / alpha = t, an edge belongs to the cell below and the next float to the one above."""
    shared, edges, process = nz.Shared(inner, interval=0.3, cells=4), f64([0.075, 0.15, 0.225, 0.3]), nz.KarrasVE()
    at, beyond = shared(edges, process(edges)).tolist(), shared(after(edges), process(after(edges))).tolist()
    assert at == pytest.approx([in_words(inner, value) for value in (0.075, 0.075, 0.15, 0.225)], rel=1e-14)
    assert beyond == pytest.approx([in_words(inner, value) for value in (0.075, 0.15, 0.225, 0.3)], rel=1e-14)


@processes
@noise
def test_edges_of_noise_are_where_sigma_over_alpha_passes(inner, process):
    """edges(process) are the times of sigma / alpha = w, 2 w, ...; what is told jumps there, but for w, and nowhere else.

    The first two cells are told the same number, w: the first has no lower edge that could be told.
    """
    shared = nz.Shared(inner, interval=0.3, cells=4)
    edges = f64(shared.edges(process))
    alpha, sigma = process(edges)
    torch.testing.assert_close(sigma / alpha, f64([0.075, 0.15, 0.225, 0.3]), rtol=1e-11, atol=0)
    below, above = (shared(t, process(t)) for t in (edges * (1 - 1e-9), edges * (1 + 1e-9)))
    assert ((below - above).abs() > 0.02).tolist() == [False, True, True, True]
    fine = torch.linspace(0, 1.5 * edges[-1].item(), 5001).double()  # float32 times hit no edge
    steps = shared(fine, process(fine)).diff().abs()
    jump = torch.tensor(
        [bool(((edges[1:] > t) & (edges[1:] <= s)).any()) for t, s in zip(fine, fine[1:], strict=False)]
    )
    inside = fine[1:] < edges[-1]
    assert bool((steps[inside & ~jump] == 0).all())
    assert bool((steps[jump] > 0.02).all()) and jump.sum() == 3
    assert bool((steps[~inside & ~jump] < 0.02).all())


@noise
@pytest.mark.parametrize(
    ("process", "largest"), [(nz.KarrasVE(), 80.0), (nz.SongVE(), 100.0), (nz.LinearVP(), 152.1663)], ids=str
)
def test_an_interval_beyond_the_largest_noise_is_refused(inner, process, largest):
    """A shared interval must end below the largest sigma / alpha: the denoiser refuses 1 % more, takes 1 % less."""

    def build(interval):
        return nz.Denoiser(torch.nn.Identity(), process, nz.Velocity(), nz.Shared(inner, interval=interval, cells=4))

    assert ratio(process, process.end) == pytest.approx(largest, rel=1e-5)
    assert build(0.99 * largest).conditioning.edges(process)[-1] < process.end
    with pytest.raises(ArgumentError, match=f"beyond the process's end {process.end:g}; take a shorter interval"):
        build(1.01 * largest)


def test_an_interval_up_to_the_largest_noise_is_legal():
    """The whole of KarrasVE may be shared, and any interval where the signal ends at 0."""
    whole = nz.Shared(nz.LogSigma(), interval=80.0, cells=4)
    assert whole.edges(nz.KarrasVE()) == pytest.approx((20, 40, 60, 80), rel=1e-14)
    nz.Denoiser(torch.nn.Identity(), nz.KarrasVE(), nz.Velocity(), whole)
    nz.Denoiser(torch.nn.Identity(), nz.LinearSigmaVP(), nz.Velocity(), nz.Shared(nz.LogSNR(), interval=1e6, cells=2))


@pytest.mark.parametrize(
    ("inner", "interval"),
    [(nz.Time(3.0), 0.3), (nz.Timestep(1000), 300), (nz.LogSigma(), 0.3), (nz.LogSNR(), 0.3)],
    ids=str,
)
@pytest.mark.parametrize("process", [nz.LinearVP(), nz.StraightPath(), nz.KarrasVE(1.0)], ids=str)
def test_every_inner_keeps_the_cell_that_its_step_leaves(inner, interval, process):
    """Each stage of a step is told the cell of the time that the step leaves, 0 too; above the interval its own."""
    shared = nz.Shared(inner, interval=interval, cells=3)
    edges = f64(shared.edges(process))
    middles = torch.cat([edges[:1] / 2, (edges[1:] + edges[:-1]) / 2])
    for leaving in (*middles, *(edges * (1 - 1e-9))):
        stages = torch.cat([leaving[None] * f64([1.0, 0.9, 0.5, 0.1]), f64([0.0])])
        told = shared.stage(stages, process(stages), leaving, process(leaving))
        one = shared(leaving[None], process(leaving[None]))
        assert torch.equal(told, one.expand(5))
    assert len({value.item() for value in shared(middles, process(middles))}) > 1
    leaving = edges[-1] * (1 + 1e-9)
    stages = edges[-1] * f64([1.0, 0.7, 0.2])
    told = shared.stage(stages, process(stages), leaving, process(leaving))
    assert torch.equal(told, inner(stages, process(stages)))


def test_each_stage_has_the_cell_of_its_own_step():
    """Stages of several steps in one call are told the cells that their own steps leave, on the level of that time."""
    process, shared = nz.LinearSigmaVP(), nz.Shared(nz.LogSigma(), interval=0.3, cells=4)
    leaving, stages = f64([0.5, 0.5, 0.2, 0.2, 0.1]), f64([0.5, 0.05, 0.2, 0.05, 0.0])
    told = shared.stage(stages, process(stages), leaving, process(leaving)).tolist()
    alone = [in_words(nz.LogSigma(), ratio(process, t)) for t in (0.5, 0.05)]
    cells = [in_words(nz.LogSigma(), value) for value in (0.15, 0.15, 0.075)]
    assert told == pytest.approx([*alone, *cells], rel=1e-12)


def test_shared_noise_in_float32():
    """A float32 time is told in float32 what float64 tells it, at the edges of the cells too."""
    shared, process = nz.Shared(nz.LogSigma(), interval=0.3, cells=4), nz.DiscreteVP.linear()
    t = nodes(1000, torch.float32)
    narrow, wide = shared(t, process(t.double())), shared(t.double(), process(t.double()))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-7, atol=0)
