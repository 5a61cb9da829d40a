"""Level, expand and check_times: what the axes exchange."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.level import check_times, expand, timesteps

law = settings(deadline=None, derandomize=True, max_examples=100)
positive = st.floats(1e-100, 1e100)


@law
@given(positive, positive)
def test_logsnr_is_the_log_of_the_power_ratio(alpha, sigma):
    """logsnr = 2 (log alpha - log sigma), even where alpha^2 / sigma^2 would leave float64."""
    level = nz.Level(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    expected = 2 * (math.log(alpha) - math.log(sigma))
    assert level.logsnr.item() == pytest.approx(expected, rel=1e-14, abs=1e-12)


def test_logsnr_is_infinite_at_both_ends():
    """logsnr is +inf at sigma = 0 and -inf at alpha = 0, never NaN."""
    level = nz.Level(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert level.logsnr.tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 5)])
def test_expand_multiplies_each_example_by_its_own_number(shape):
    """expand(value, x) * x scales example i by value[i], in x's dtype."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    value = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)
    product = expand(value, x) * x
    assert product.dtype == torch.float32
    assert torch.equal(product, torch.stack([x[i] * value[i].item() for i in range(3)]))


def test_expand_of_one_number_multiplies_everything():
    """A value of shape () multiplies every example alike and takes x's dtype."""
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert torch.equal(expand(torch.tensor(0.25, dtype=torch.float64), x) * x, x / 4)
    assert expand(torch.tensor(0.25, dtype=torch.float64), x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_both_ends_are_legal_times(dtype):
    """0, end and everything between pass unchanged, in any float dtype and shape, empty included."""
    t = torch.tensor([[0.0, 0.5], [1.0, 2.0]], dtype=dtype)
    assert check_times(t, 2.0) is t
    empty = torch.zeros(0, dtype=dtype)
    assert check_times(empty, 1.0) is empty


@pytest.mark.parametrize(
    ("times", "named"),
    [
        ([0.5, math.nan], "nan"),
        ([-0.25], "-0.25"),
        ([0.5, 1.5, 2.5], "1.5"),
        ([math.inf], "inf"),
        ([-5e-324], "-5e-324"),
    ],
)
def test_a_time_outside_the_process_is_named(times, named):
    """NaN and times outside [0, end] are refused, and the message holds the first bad value and the end."""
    with pytest.raises(ArgumentError, match=rf"time {named} is outside \[0, 1\]"):
        check_times(torch.tensor(times, dtype=torch.float64), 1.0)


def test_the_next_float_above_the_end_is_refused():
    """The interval of times is closed: end is legal, the next float64 above it is not."""
    end = torch.tensor(1.0, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="outside"):
        check_times(torch.nextafter(end, 2 * end), 1.0)


@pytest.mark.parametrize(
    ("t", "kind"), [(torch.tensor([0, 1]), "int64"), (torch.tensor([True]), "bool"), (0.5, "float"), ([0.5], "list")]
)
def test_only_float_tensors_are_times(t, kind):
    """Timestep indices and Python numbers are refused by kind, and the message says how to write node k."""
    with pytest.raises(ArgumentError, match=rf"{kind}.*\(k \+ 1\) / N"):
        check_times(t, 1.0)


@pytest.mark.parametrize("process", [nz.LinearVP(), nz.DiscreteVP.linear()])
@law
@given(t=st.floats(0, 1), x0=st.floats(-10, 10), eps=st.floats(-10, 10))
def test_a_state_is_the_sum_of_its_parts(process, t, x0, eps):
    """From x_t = alpha x0 + sigma eps, x0 and eps come back by the rotation of a variance-preserving level."""
    alpha, sigma = (value.item() for value in process(torch.tensor(t, dtype=torch.float64)))
    x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    assert alpha * x - sigma * v == pytest.approx(x0, abs=1e-12)
    assert sigma * x + alpha * v == pytest.approx(eps, abs=1e-12)


def test_only_a_discrete_process_has_timesteps():
    """timesteps() is the number of nodes, and a continuous process is refused by name with a way out."""
    assert timesteps(nz.DiscreteVP.linear(steps=37)) == 37
    with pytest.raises(ArgumentError, match="LinearVP.*UniformGrid"):
        timesteps(nz.LinearVP())
