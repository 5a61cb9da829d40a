"""Two laws of every parameterization, and what each output means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.parameterization import regression_target

law = settings(deadline=None, derandomize=True, max_examples=100)
every = pytest.mark.parametrize("parameterization", [nz.Epsilon(), nz.Velocity()], ids=["Epsilon", "Velocity"])
angles = st.floats(0, 1.57).map(lambda u: (math.cos(u), math.sin(u)))
levels = st.one_of(angles, st.tuples(st.floats(0.01, 5), st.one_of(st.just(0.0), st.floats(1e-3, 100))))
numbers = st.floats(-10, 10)


def level(alpha, sigma):
    return nz.Level(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))


def assert_laws(at, k):
    """alpha A + sigma C = 1 and alpha B + sigma D = 0, relative to the size of the terms."""
    alpha, sigma = at
    torch.testing.assert_close(alpha * k.A + sigma * k.C, torch.ones_like(alpha), rtol=0, atol=1e-12)
    scale = (sigma * k.D).abs()
    assert bool(((alpha * k.B + sigma * k.D).abs() <= 1e-14 * scale).all())


@every
@law
@given(pair=levels)
def test_the_two_laws_on_any_level(parameterization, pair):
    """Whatever the network says, alpha x0 + sigma eps = x: two laws, on VP angles and on levels that are not VP."""
    assert_laws(level(*pair), parameterization.coefficients(level(*pair)))


@every
@pytest.mark.parametrize("process", [nz.LinearVP(), nz.DiscreteVP.linear()])
def test_the_two_laws_from_zero_to_the_end(parameterization, process):
    """The laws hold on [0, end], ends included, and all four numbers are finite there."""
    at = process(
        torch.cat(
            [torch.linspace(0, 1, 2001, dtype=torch.float64), 10.0 ** torch.arange(-20.0, 0, dtype=torch.float64)]
        )
    )
    k = parameterization.coefficients(at)
    assert_laws(at, k)
    assert all(bool(value.isfinite().all()) for value in k)


def truth(parameterization, pair, x0, eps):
    """What F stands for, from the papers' words."""
    alpha, sigma = pair
    return eps if parameterization == nz.Epsilon() else alpha * eps - sigma * x0


@every
@law
@given(pair=angles, x0=numbers, eps=numbers)
def test_reading_the_true_output_gives_the_truth(parameterization, pair, x0, eps):
    """F = eps (Epsilon) or alpha eps - sigma x0 (Velocity) reads back as x0 and eps."""
    F, x = truth(parameterization, pair, x0, eps), pair[0] * x0 + pair[1] * eps
    A, B, C, D = (value.item() for value in parameterization.coefficients(level(*pair)))
    assert A * x + B * F == pytest.approx(x0, abs=1e-12 / pair[0])
    assert C * x + D * F == pytest.approx(eps, abs=1e-12)


@law
@given(pair=levels, x0=numbers, eps=numbers)
def test_velocity_reads_any_level(pair, x0, eps):
    """On a level that is not VP, Velocity's F = alpha eps - sigma x0 still reads back as x0 and eps."""
    (alpha, sigma), scale = pair, sum(abs(value) for value in pair)
    x, F = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    A, B, C, D = (value.item() for value in nz.Velocity().coefficients(level(*pair)))
    tolerance = 1e-13 * scale * 20 / math.hypot(*pair)
    assert A * x + B * F == pytest.approx(x0, abs=tolerance)
    assert C * x + D * F == pytest.approx(eps, abs=tolerance)


@every
@law
@given(pair=levels, x0=numbers, eps=numbers)
def test_regression_target_is_the_printed_formula(parameterization, pair, x0, eps):
    """a x0 + b eps = (B (x0 - A x) + D (eps - C x)) / (B^2 + D^2) for every x0 and eps, x = alpha x0 + sigma eps."""
    k = parameterization.coefficients(level(*pair))
    a, b = (value.item() for value in regression_target(level(*pair), k))
    A, B, C, D = (value.item() for value in k)
    x = pair[0] * x0 + pair[1] * eps
    printed = (B * (x0 - A * x) + D * (eps - C * x)) / (B**2 + D**2)
    assert a * x0 + b * eps == pytest.approx(printed, rel=1e-9, abs=1e-8)


@law
@given(pair=angles)
def test_regression_targets_are_the_papers(pair):
    """The target is eps for Epsilon, (a, b) = (0, 1), and v for Velocity, (-sigma, alpha)."""
    at = level(*pair)
    for parameterization, expected in ((nz.Epsilon(), (0.0, 1.0)), (nz.Velocity(), (-pair[1], pair[0]))):
        target = regression_target(at, parameterization.coefficients(at))
        assert tuple(value.item() for value in target) == pytest.approx(expected, abs=1e-12)


def test_no_target_where_the_network_is_not_heard():
    """B = D = 0 leaves the output undetermined: refused, also when only one example is there."""
    at = level([1.0, 0.6], [0.0, 0.8])
    k = nz.Velocity().coefficients(at)
    with pytest.raises(ArgumentError, match="B = D = 0"):
        regression_target(at, k._replace(B=k.B * torch.tensor([0.0, 1.0]), D=k.D * torch.tensor([0.0, 1.0])))


def test_epsilon_does_not_exist_without_signal():
    """Epsilon at alpha = 0 is refused and Velocity is named; Velocity reads x0 = -F and eps = x there."""
    nothing = level([0.6, 0.0], [0.8, 1.0])
    with pytest.raises(ArgumentError, match="alpha = 0.*Velocity"):
        nz.Epsilon().coefficients(nothing)
    k = nz.Velocity().coefficients(nothing)
    assert tuple(value[1].item() for value in k) == (0.0, -1.0, 1.0, 0.0)


@every
@law
@given(pair=st.floats(0.01, 1.5).map(lambda u: (math.cos(u), math.sin(u))), x0=numbers, eps=numbers)
def test_score_is_minus_eps_over_sigma(parameterization, pair, x0, eps):
    """score = -eps / sigma for the noise that the output is read as."""
    F, x = truth(parameterization, pair, x0, eps), pair[0] * x0 + pair[1] * eps
    c_x, c_F = (value.item() for value in parameterization.score_coefficients(level(*pair)))
    assert c_x * x + c_F * F == pytest.approx(-eps / pair[1], abs=1e-9)


@every
def test_the_score_at_no_noise_is_refused(parameterization):
    """At sigma = 0 the score is -eps / 0: refused even if only one example is there, and W is named."""
    with pytest.raises(ArgumentError, match="sigma = 0.*above 0"):
        parameterization.score_coefficients(level([0.6, 1.0], [0.8, 0.0]))


@every
@law
@given(pair=levels)
def test_the_network_sees_x_itself(parameterization, pair):
    """The input scale of both is exactly 1."""
    assert parameterization.input_scale(level(*pair)).item() == 1.0
