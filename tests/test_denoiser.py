"""The denoiser: alpha x0 + sigma eps = x for any network, and the network's door."""

import math

import pytest
import torch
from hypothesis import given, settings
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
        assert all(type(value) is float for value in row)
        assert list(row) == pytest.approx([value.item() for value in expected], rel=1e-15, abs=0)
        by_name = (row.t, row.alpha, row.sigma, row.condition, row.clock, row.f, row.g2)
        assert by_name == (row[0], row[1], row[2], row[8], row[9], row[12], row[13])


def test_rows_of_stages_keep_the_cell_they_leave():
    """Stages that leave t = .04 are told 20, as the conditioning's stage says; level and clock are the stage's own."""
    denoiser = nz.Denoiser(Door(), DDPM, nz.Epsilon(), SHARED)
    times = torch.tensor([0.04, 0.03, 0.02], dtype=torch.float64)
    staged, own = denoiser.rows(times, torch.full((3,), 0.04, dtype=torch.float64)), denoiser.rows(times)
    assert [row.condition for row in staged] == [20, 20, 20]
    assert [row.condition for row in own] == [20, 20, 0]
    assert [row._replace(condition=0) for row in staged] == [row._replace(condition=0) for row in own]


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
