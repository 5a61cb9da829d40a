"""The denoiser: alpha x0 + sigma eps = x for any network, and the network's door."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError

law = settings(deadline=None, derandomize=True, max_examples=60)
DDPM = nz.DiscreteVP.linear()
SHARED = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
PROCESSES = [nz.LinearVP(), DDPM]
PARAMETERIZATIONS = [nz.Epsilon(), nz.Velocity()]
grid = pytest.mark.parametrize("process", PROCESSES, ids=["LinearVP", "DiscreteVP"])
outputs = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=["Epsilon", "Velocity"])


class Door(torch.nn.Module):
    """Remembers how it was called and answers something that depends on x and c."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, c, **condition):
        self.calls.append((x, c, condition))
        return torch.sin(3 * x) + torch.cos(c.reshape(-1, *(1,) * (x.ndim - 1)) / 300)


class Answer(torch.nn.Module):
    """Always answers the same output."""

    def __init__(self, F):
        super().__init__()
        self.F = F

    def forward(self, x, c):
        return self.F


def states(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@grid
@outputs
@law
@given(t=st.one_of(st.sampled_from([0.0, 1e-300, 1e-5, 1.0]), st.floats(0, 1)), F=st.floats(-100, 100))
def test_the_estimate_explains_x(process, parameterization, t, F):
    """alpha x0 + sigma eps = x whatever the network answers, at every time, 0 and the end included."""
    x = states(2, 3)
    x0, eps = nz.Denoiser(Answer(torch.full_like(x, F)), process, parameterization, nz.Time())(x, t)
    alpha, sigma = (value.item() for value in process(torch.tensor(t, dtype=torch.float64)))
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=0, atol=1e-12 * (1 + abs(F)))


@grid
@outputs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_time_zero_the_data_is_x(process, parameterization, dtype):
    """x0 == x exactly at t = 0, whatever the network answers, and eps is finite."""
    x = states(4, 3, dtype=dtype)
    x0, eps = nz.Denoiser(Door(), process, parameterization, nz.Time())(x, 0.0)
    assert torch.equal(x0, x)
    assert bool(eps.isfinite().all())


def test_what_the_answer_means():
    """Epsilon: eps = F and x0 = (x - sigma F) / alpha; Velocity: x0 = alpha x - sigma F and eps = sigma x + alpha F."""
    x, F = states(2, 3), states(2, 3) ** 2
    alpha = math.sqrt(math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(300)))
    sigma = math.sqrt(1 - alpha**2)
    x0, eps = nz.Denoiser(Answer(F), DDPM, nz.Epsilon(), nz.Time())(x, 0.3)
    torch.testing.assert_close(x0, (x - sigma * F) / alpha, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(eps, F, rtol=1e-12, atol=0)
    x0, eps = nz.Denoiser(Answer(F), DDPM, nz.Velocity(), nz.Time())(x, 0.3)
    torch.testing.assert_close(x0, alpha * x - sigma * F, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(eps, sigma * x + alpha * F, rtol=1e-11, atol=1e-11)


@grid
@outputs
@pytest.mark.parametrize("conditioning", [nz.Time(2.0), nz.Timestep(1000), SHARED], ids=["Time", "Timestep", "Shared"])
def test_rows_are_the_tensor_path(process, parameterization, conditioning):
    """Every entry of rows() is a Python float and what the axes answer one by one, to 1e-15, from 0 to the end."""
    denoiser = nz.Denoiser(Door(), process, parameterization, conditioning)
    times = [0.0, 1e-5, 0.001, 0.02, 0.0201, 0.1, 0.5, 0.999, 1.0]
    for t, row in zip(times, denoiser.rows(torch.tensor(times, dtype=torch.float64)), strict=True):
        tensor = torch.tensor(t, dtype=torch.float64)
        level = process(tensor)
        expected = (
            *(
                tensor,
                *level,
                *parameterization.coefficients(level),
                parameterization.input_scale(level),
                conditioning(tensor, level),
            ),
            *(
                process.clock.u(tensor),
                *process.clock.slopes(tensor),
                process.drift(tensor),
                process.diffusion2(tensor),
            ),
        )
        assert all(type(value) is float for value in row[:-1]) and type(row.cell) is int
        assert list(row[:-1]) == pytest.approx([value.item() for value in expected], rel=1e-15, abs=0)
        by_name = (row.t, row.alpha, row.sigma, row.condition, row.clock, row.f, row.g2)
        assert by_name == (row[0], row[1], row[2], row[8], row[9], row[12], row[13])


def test_rows_of_stages_keep_the_cell_they_leave():
    """Stages that leave t = .04 are told 20, as the conditioning's stage says; level and clock are the stage's own."""
    denoiser = nz.Denoiser(Door(), DDPM, nz.Epsilon(), SHARED)
    times = torch.tensor([0.04, 0.03, 0.02], dtype=torch.float64)
    staged, own = denoiser.rows(times, torch.full((3,), 0.04, dtype=torch.float64)), denoiser.rows(times)
    assert [row.condition for row in staged] == [20, 20, 20]
    assert [row.condition for row in own] == [20, 20, 0]
    assert ([row.cell for row in staged], [row.cell for row in own]) == ([1, 1, 1], [1, 1, 0])
    same = [[row._replace(condition=0, cell=0) for row in rows] for rows in (staged, own)]
    assert same[0] == same[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4)])
def test_the_networks_door(dtype, shape):
    """The network gets x itself in x's shape and dtype, c of shape (B,) in x's dtype, and the condition by name."""
    door, label = Door(), torch.arange(3)
    x = states(*shape, dtype=dtype)
    estimate = nz.Denoiser(door, DDPM, nz.Epsilon(), nz.Timestep(1000))(
        x, torch.tensor([0.001, 0.101, 0.2]), label=label
    )
    ((seen, c, condition),) = door.calls
    assert torch.equal(seen, x) and seen.dtype == dtype
    assert c.shape == (3,) and c.dtype == dtype
    assert c.tolist() == torch.tensor([0.0, 100.0, 199.0]).to(dtype).tolist()
    assert condition == {"label": label}
    assert estimate.x0.dtype == estimate.eps.dtype == dtype
    assert estimate.x0.shape == estimate.eps.shape == shape


def test_one_time_is_that_time_for_every_example():
    """A Python number, a tensor () and a tensor (B,) of the same time give the same estimate and the same c."""
    door = Door()
    denoiser, x = nz.Denoiser(door, DDPM, nz.Velocity(), SHARED), states(3, 2)
    one = denoiser(x, 0.037)
    for t in (torch.tensor(0.037, dtype=torch.float64), torch.full((3,), 0.037, dtype=torch.float64)):
        other = denoiser(x, t)
        assert torch.equal(one.x0, other.x0) and torch.equal(one.eps, other.eps)
    assert all(c.tolist() == [20, 20, 20] for _, c, _ in door.calls)


@grid
@outputs
@law
@given(t=st.floats(0, 1, width=32))
def test_a_narrow_time_costs_no_precision(process, parameterization, t):
    """A float32 time is the float64 number that it is: the estimate of a float64 x is that of the same time in float64."""
    denoiser, x = nz.Denoiser(Answer(states(2, 3) ** 2), process, parameterization, nz.Time()), states(2, 3)
    narrow, wide = (denoiser(x, torch.tensor(t, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    assert torch.equal(narrow.x0, wide.x0) and torch.equal(narrow.eps, wide.eps)


@outputs
def test_each_example_is_seen_at_its_own_time(parameterization):
    """A batch of times is the same as one call for each example."""
    denoiser, x = nz.Denoiser(Door(), DDPM, parameterization, SHARED), states(4, 2, 3)
    t = torch.tensor([0.0, 0.037, 0.5, 1.0], dtype=torch.float64)
    together = denoiser(x, t)
    for i in range(4):
        alone = denoiser(x[i : i + 1], t[i].item())
        torch.testing.assert_close(alone.x0[0], together.x0[i], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(alone.eps[0], together.eps[i], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (1, 1), (4,)])
def test_times_of_a_wrong_shape_are_refused(shape):
    """t is one number or one for each example: other shapes, (1,) too, are refused, named with the batch."""
    denoiser = nz.Denoiser(Door(), DDPM, nz.Epsilon(), nz.Time())
    with pytest.raises(ArgumentError, match=rf"shape \({shape[0]},.*each of the 3 examples"):
        denoiser(states(3, 2), torch.full(shape, 0.5))


@pytest.mark.parametrize(("t", "named"), [(-0.5, "-0.5"), (1.5, "1.5"), (math.nan, "nan"), (torch.tensor(7), "int64")])
def test_illegal_times_are_refused(t, named):
    """Times outside [0, end], NaN, and integer tensors are refused by value or kind."""
    denoiser = nz.Denoiser(Door(), DDPM, nz.Epsilon(), nz.Time())
    for ask in (denoiser, denoiser.score):
        with pytest.raises(ArgumentError, match=named):
            ask(states(3, 2), t)


@grid
@law
@given(t=st.floats(1e-6, 1))
def test_the_score_of_standard_normal_data(process, t):
    """With the exact network of N(0, 1) data, eps = sigma x or v = 0, the score is -x at every time above 0."""
    x, sigma = states(2, 3), process(torch.tensor(t, dtype=torch.float64)).sigma.item()
    for answer, parameterization in ((sigma * x, nz.Epsilon()), (0 * x, nz.Velocity())):
        score = nz.Denoiser(Answer(answer), process, parameterization, nz.Time()).score(x, t)
        torch.testing.assert_close(score, -x, rtol=1e-12, atol=0)


@outputs
def test_there_is_no_score_at_zero(parameterization):
    """At t = 0 the score of these parameterizations is -eps / 0: refused, and W is named."""
    with pytest.raises(ArgumentError, match="sigma = 0.*above 0"):
        nz.Denoiser(Door(), DDPM, parameterization, nz.Time()).score(states(2, 3), 0.0)


def test_an_interval_beyond_the_process_is_refused():
    """Cells must end inside the process: an edge beyond its end is refused with both numbers, one at the end is legal."""
    with pytest.raises(ArgumentError, match="jumps at t = 2.*end.*1"):
        nz.Denoiser(Door(), nz.LinearVP(), nz.Epsilon(), nz.Shared(nz.Time(), interval=2.0, cells=1))
    nz.Denoiser(Door(), nz.LinearVP(), nz.Epsilon(), nz.Shared(nz.Time(), interval=1.0, cells=4))


def test_float32_times_keep_their_cells():
    """A node time in float32 is compared in float32: all 1000 nodes are told what float64 tells them."""
    door, x = Door(), states(1000, 1, dtype=torch.float32)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    denoiser = nz.Denoiser(door, DDPM, nz.Epsilon(), SHARED)
    denoiser(x, t)
    denoiser(x, t.to(torch.float32))
    (_, exact, _), (_, rounded, _) = door.calls
    assert torch.equal(exact, rounded)
    assert exact.tolist() == [k // 20 * 20 if k < 100 else k for k in range(1000)]


def test_gradients_flow_to_x_and_to_the_network():
    """d x0 / dx = A + B dF/dx: training and likelihood can differentiate the estimate."""
    x = states(2, 3).requires_grad_()
    denoiser = nz.Denoiser(Door(), DDPM, nz.Velocity(), nz.Time())
    (gradient,) = torch.autograd.grad(denoiser(x, 0.3).x0.sum(), x)
    alpha, sigma = (value.item() for value in DDPM(torch.tensor(0.3, dtype=torch.float64)))
    torch.testing.assert_close(gradient, alpha - sigma * 3 * torch.cos(3 * x), rtol=1e-12, atol=1e-12)


def test_attributes_bear_the_arguments_names():
    """network, process, parameterization and conditioning can be read back, and parameters are the network's."""
    network = torch.nn.Linear(2, 2)
    denoiser = nz.Denoiser(network, DDPM, nz.Epsilon(), SHARED)
    assert (denoiser.network, denoiser.process, denoiser.parameterization, denoiser.conditioning) == (
        network,
        DDPM,
        nz.Epsilon(),
        SHARED,
    )
    assert list(denoiser.parameters()) == list(network.parameters())


# --- every process and every parameterization --------------------------------------------------------------------

VP = {
    "LinearVP": nz.LinearVP(),
    "QuadraticVP": nz.QuadraticVP(),
    "CosineVP": nz.CosineVP(),
    "ShiftedCosine": nz.ShiftedCosine(),
    "LinearSigmaVP": nz.LinearSigmaVP(),
    "ZeroTerminalSNR": nz.ZeroTerminalSNR(DDPM),
    "DiscreteVP.linear": DDPM,
    "DiscreteVP.quadratic": nz.DiscreteVP.quadratic(),
    "DiscreteVP.cosine": nz.DiscreteVP.cosine(),
}
PLAIN = {"SubVP": nz.SubVP(), "StraightPath": nz.StraightPath(), "SongVE": nz.SongVE(), "KarrasVE": nz.KarrasVE()}
ALL = [nz.Epsilon(), nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(), nz.Nu(), nz.W()]
UNHEARD_AT_DATA = (nz.Nu(), nz.W())
everything = pytest.mark.parametrize("process", (VP | PLAIN).values(), ids=(VP | PLAIN).keys())
PAIRS = {
    f"{type(parameterization).__name__}-{name}": (parameterization, process)
    for parameterization in ALL
    for name, process in (VP if parameterization in UNHEARD_AT_DATA else VP | PLAIN).items()
}
every_pair = pytest.mark.parametrize(("parameterization", "process"), PAIRS.values(), ids=PAIRS.keys())


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def exists(parameterization, process, t):
    """Whether the four numbers exist at a time."""
    alpha, sigma = process(f64(t))
    return bool(alpha > 0 or parameterization != nz.Epsilon()) and bool(sigma > 0 or parameterization != nz.Denoised())


@every_pair
@settings(law, max_examples=25)
@given(part=st.sampled_from([0.0, 1e-12, 1e-5, 1.0]) | st.floats(1e-12, 1), F=st.floats(-100, 100))
def test_every_estimate_explains_x(process, parameterization, part, F):
    """alpha x0 + sigma eps = x whatever the network answers, on every process, ends included where the output exists."""
    t = part * process.end
    assume(exists(parameterization, process, t))
    x = states(2, 3)
    x0, eps = nz.Denoiser(Answer(torch.full_like(x, F)), process, parameterization, nz.Time())(x, t)
    alpha, sigma = (value.item() for value in process(f64(t)))
    assert bool(x0.isfinite().all()) and bool(eps.isfinite().all())
    size = x.abs() + (alpha * x0).abs() + (sigma * eps).abs() + alpha * abs(F) + sigma * abs(F)
    assert bool(((alpha * x0 + sigma * eps - x).abs() <= 1e-14 * size).all())


@every_pair
def test_rows_of_every_output_are_its_coefficients(process, parameterization):
    """A, B, C, D and the input scale of rows() are what the parameterization answers at the level, ends included."""
    times = [
        t for t in (f64([0.0, 0.003, 0.4, 0.8, 1.0]) * process.end).tolist() if exists(parameterization, process, t)
    ]
    rows = nz.Denoiser(Door(), process, parameterization, nz.Time(3.0)).rows(f64(times))
    assert len(rows) >= 4
    for t, row in zip(times, rows, strict=True):
        level = process(f64(t))
        expected = (*parameterization.coefficients(level), parameterization.input_scale(level))
        assert [row.A, row.B, row.C, row.D, row.input_scale] == [value.item() for value in expected]
        assert row.condition == 3.0 * t


def test_karras_scales_what_the_network_sees():
    """The network under Karras gets x / sqrt(sigma^2 + alpha^2 d^2), each example by its own level."""
    door, x, t = Door(), states(3, 2), f64([0.0, 0.3, 20.0])
    nz.Denoiser(door, nz.KarrasVE(), nz.Karras(0.7), nz.Time())(x, t)
    ((seen, _, _),) = door.calls
    expected = torch.stack([row / math.sqrt(sigma**2 + 0.49) for row, sigma in zip(x, t.tolist(), strict=True)])
    torch.testing.assert_close(seen, expected, rtol=1e-14, atol=0)


# --- where the network is asked ----------------------------------------------------------------------------------

CALLS = [
    (nz.Nu(), nz.LinearSigmaVP(), 0.0, 0),
    (nz.Nu(), nz.LinearSigmaVP(), 1.0, 0),
    (nz.Nu(), nz.LinearSigmaVP(), 0.5, 1),
    (nz.Nu(), nz.LinearVP(), 1.0, 1),
    (nz.W(), nz.LinearSigmaVP(), 0.0, 0),
    (nz.W(), nz.LinearSigmaVP(), 1.0, 1),
    (nz.W(), nz.LinearSigmaVP(), 0.5, 1),
    (nz.Velocity(), nz.LinearSigmaVP(), 0.0, 1),
    (nz.Flow(), nz.LinearSigmaVP(), 1.0, 1),
]


@pytest.mark.parametrize(("parameterization", "process", "t", "calls"), CALLS, ids=str)
def test_the_network_is_asked_where_it_is_heard(parameterization, process, t, calls):
    """An estimate where B = D = 0 costs no call: Nu at both ends, W at t = 0, and nothing else."""
    door, x = Door(), states(3, 2)
    x0, eps = nz.Denoiser(door, process, parameterization, nz.Time())(x, t)
    assert len(door.calls) == calls
    if not calls:
        assert torch.equal(x0, x if t == 0 else 0 * x) and torch.equal(eps, 0 * x if t == 0 else x)


@pytest.mark.parametrize("parameterization", UNHEARD_AT_DATA, ids=str)
def test_one_example_that_is_heard_asks_for_all(parameterization):
    """A batch with data itself is one call, and each example is read alone."""
    door, x, t = Door(), states(3, 2), f64([0.0, 0.4, 1.0])
    denoiser = nz.Denoiser(door, nz.LinearSigmaVP(), parameterization, nz.Time())
    together = denoiser(x, t)
    assert len(door.calls) == 1
    for i in range(3):
        alone = denoiser(x[i : i + 1], t[i].item())
        for one, both in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], both[i], rtol=1e-14, atol=1e-14)


def test_what_is_not_asked_is_not_told():
    """LogSigma is infinite at t = 0, but there W asks nothing; Velocity asks, and is refused."""
    x = states(3, 2)
    x0, _ = nz.Denoiser(Door(), nz.LinearVP(), nz.W(), nz.LogSigma())(x, 0.0)
    assert torch.equal(x0, x)
    with pytest.raises(ArgumentError, match="LogSigma at sigma = 0"):
        nz.Denoiser(Door(), nz.LinearVP(), nz.Velocity(), nz.LogSigma())(x, 0.0)


@pytest.mark.parametrize(("parameterization", "F_x", "F"), [(nz.Nu(), 0.0, 1.0), (nz.W(), -1.0, 1.0)], ids=str)
def test_the_score_at_data_is_the_networks(parameterization, F_x, F):
    """At t = 0 the score is the network's: nu itself, and w - x, although the estimate hears neither."""
    door, x = Door(), states(3, 2)
    score = nz.Denoiser(door, nz.LinearSigmaVP(), parameterization, nz.Time()).score(x, 0.0)
    answer = torch.sin(3 * x) + 1  # Door's at c = 0
    torch.testing.assert_close(score, F_x * x + F * answer, rtol=1e-14, atol=1e-14)
    assert len(door.calls) == 1


class Twice(torch.nn.Module):
    """Answers `times` as many channels: its first are the door's, the others NaN."""

    def __init__(self, times):
        super().__init__()
        self.times, self.door = times, Door()

    def forward(self, x, c):
        F = self.door(x, c)
        return torch.cat([F, *[torch.full_like(F, math.nan)] * (self.times - 1)], dim=1)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 2, 5), (3, 3, 2, 2)])
def test_of_a_learned_variance_the_first_half_is_read(shape):
    """A network with twice the channels is read as the one of its first half, for estimate, score and output."""
    x = states(*shape)
    twice, once = (nz.Denoiser(net, DDPM, nz.Epsilon(), nz.Timestep(1000)) for net in (Twice(2), Door()))
    for a, b in zip((*twice(x, 0.3), twice.score(x, 0.3)), (*once(x, 0.3), once.score(x, 0.3)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(twice.output(x, 0.3)[0], once.output(x, 0.3)[0])


@pytest.mark.parametrize(("shape", "times"), [((3, 2, 4, 4), 3), ((3, 2), 2), ((3, 2), 3)])
def test_other_shapes_of_the_answer_are_refused(shape, times):
    """Three times the channels, or twice the numbers of x that has no channels: refused with both shapes."""
    wrong = (shape[0], times * shape[1], *shape[2:])
    with pytest.raises(ArgumentError) as refused:
        nz.Denoiser(Twice(times), DDPM, nz.Epsilon(), nz.Time())(states(*shape), 0.3)
    assert f"the network answers {wrong} to x of {shape}" in str(refused.value)


# --- rows that are not asked -------------------------------------------------------------------------------------

OWN = ("A", "B", "C", "D", "input_scale", "condition")


@pytest.mark.parametrize("parameterization", [nz.Denoised(), nz.Karras(), nz.W()], ids=str)
@law
@given(asked=st.lists(st.booleans(), min_size=5, max_size=5))
def test_rows_have_no_coefficients_exactly_where_nothing_is_asked(parameterization, asked):
    """A, B, C, D, input scale and condition are NaN exactly where nothing is asked; all else is as if it were."""
    shared = nz.Shared(nz.LogSigma(), interval=0.3, cells=4)
    denoiser = nz.Denoiser(Door(), nz.LinearVP(), parameterization, shared)
    times, leaving = f64([1.0, 0.7, 0.1, 0.04, 0.01]), f64([1.0, 1.0, 0.7, 0.1, 0.04])
    full, part = denoiser.rows(times, leaving), denoiser.rows(times, leaving, torch.tensor(asked))
    for here, known, row in zip(asked, full, part, strict=True):
        for name in row._fields:
            value = getattr(row, name)
            if name in OWN and not here:
                assert type(value) is float and math.isnan(value)
            else:
                assert value == getattr(known, name)


def test_rows_are_refused_only_where_asked():
    """Denoised at t = 0 and LogSigma at t = 0 have no row, unless nothing is asked there."""
    times, asked = f64([1.0, 0.3, 0.0]), torch.tensor([True, True, False])
    for parameterization, conditioning in ((nz.Denoised(), nz.Time()), (nz.Velocity(), nz.LogSigma())):
        denoiser = nz.Denoiser(Door(), nz.LinearVP(), parameterization, conditioning)
        with pytest.raises(ArgumentError, match="sigma = 0"):
            denoiser.rows(times)
        rows = denoiser.rows(times, asked=asked)
        assert [math.isnan(row.B) for row in rows] == [False, False, True]
        assert (rows[2].t, rows[2].alpha, rows[2].sigma) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("inner", [nz.LogSigma(), nz.LogSNR()], ids=str)
@everything
def test_rows_of_shared_noise_keep_the_cell_they_leave(inner, process):
    """With cells in sigma / alpha too every stage of a step is told the cell that the step leaves, t = 0 included."""
    shared = nz.Shared(inner, interval=0.3, cells=4)
    denoiser = nz.Denoiser(Door(), process, nz.Velocity(), shared)
    edges = shared.edges(process)
    t = (edges[2] + edges[3]) / 2
    rows = denoiser.rows(f64([t, t / 2, 0.0]), f64([t, t, t]))
    expected = {nz.LogSigma(): 0.25, nz.LogSNR(): -2.0}[inner] * math.log(0.225)
    assert [row.condition for row in rows] == pytest.approx([expected] * 3, rel=1e-14)
    assert denoiser.rows(f64([0.0]))[0].condition == pytest.approx(
        expected / math.log(0.225) * math.log(0.075), rel=1e-14
    )


@pytest.mark.parametrize("inner", [nz.LogSigma(), nz.LogSNR()], ids=str)
def test_shared_noise_of_float32_times(inner):
    """Told for float32 times is what float64 times are told, up to float32's rounding, through the denoiser."""
    door, x = Door(), states(1000, 1, dtype=torch.float32)
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    denoiser = nz.Denoiser(door, DDPM, nz.Velocity(), nz.Shared(inner, interval=0.3, cells=4))
    denoiser(x, t)
    denoiser(x, t.double())
    (_, narrow, _), (_, wide, _) = door.calls
    torch.testing.assert_close(narrow, wide, rtol=2e-7, atol=0)
