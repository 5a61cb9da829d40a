"""Every weighting is its paper's weight on its paper's own loss, whatever the network predicts."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.level import Coefficients
from nearzero.registry import decode, encode

law = settings(deadline=None, derandomize=True, max_examples=60)
PROCESSES = {
    "LinearVP": nz.LinearVP(),
    "QuadraticVP": nz.QuadraticVP(),
    "CosineVP": nz.CosineVP(),
    "ShiftedCosine": nz.ShiftedCosine(),
    "LinearSigmaVP": nz.LinearSigmaVP(),
    "DiscreteVP": nz.DiscreteVP.linear(),
    "ZeroTerminalSNR": nz.ZeroTerminalSNR(nz.DiscreteVP.linear()),
    "SubVP": nz.SubVP(),
    "StraightPath": nz.StraightPath(),
    "SongVE": nz.SongVE(),
    "KarrasVE": nz.KarrasVE(),
}
PLAIN = {"SubVP", "StraightPath", "SongVE", "KarrasVE"}
ENDLESS = {"CosineVP", "ShiftedCosine", "LinearSigmaVP", "ZeroTerminalSNR", "StraightPath"}  # no signal at the end
OUTPUTS = [nz.Epsilon(), nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(), nz.Karras(2.0), nz.Nu(), nz.W()]
WEIGHTINGS = [
    *(nz.MinSNR(), nz.MinSNR(0.3), nz.MinSNR(1e3)),
    *(nz.P2(), nz.P2(0.5, 0.5), nz.P2(2.0, 0.0), nz.P2(1e-3, 3.0)),
    nz.LikelihoodWeight(),
]
angles = st.floats(1e-3, math.pi / 2 - 1e-3).map(lambda u: (math.cos(u), math.sin(u)))
levels = st.one_of(angles, st.tuples(st.floats(0.05, 5), st.floats(1e-3, 80)))
vp = [output for output in OUTPUTS if isinstance(output, nz.Nu | nz.W)]


def exists(name, output):
    """Whether a parameterization is defined on a process."""
    return not (isinstance(output, nz.Nu | nz.W) and name in PLAIN)


combinations = pytest.mark.parametrize(
    ("process", "output"),
    [(process, output) for name, process in PROCESSES.items() for output in OUTPUTS if exists(name, output)],
    ids=[f"{name} {output}" for name in PROCESSES for output in OUTPUTS if exists(name, output)],
)


def level(alpha, sigma):
    return nz.Level(torch.tensor([alpha], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64))


def weight(weighting, output, pair):
    at = level(*pair)
    return weighting(at, output.coefficients(at)).item()


def paper(weighting, alpha, sigma):
    """The paper's weights on |eps - eps^|^2 and on |x0 - x0^|^2, as it prints them; 0 < alpha, sigma."""
    snr = (alpha / sigma) ** 2
    if isinstance(weighting, nz.MinSNR):
        on_x0 = min(snr, weighting.gamma)
        return on_x0 / snr, on_x0
    on_eps = 1 / (weighting.k + snr) ** weighting.gamma if isinstance(weighting, nz.P2) else 1.0
    return on_eps, on_eps * snr


@law
@given(pair=levels, gamma=st.floats(0.01, 100))
def test_min_snr_is_the_papers(pair, gamma):
    """min(SNR, g) / SNR for Epsilon, min(SNR, g) for Denoised."""
    snr = (pair[0] / pair[1]) ** 2
    assert weight(nz.MinSNR(gamma), nz.Epsilon(), pair) == pytest.approx(min(snr, gamma) / snr, rel=1e-12)
    assert weight(nz.MinSNR(gamma), nz.Denoised(), pair) == pytest.approx(min(snr, gamma), rel=1e-12)


@law
@given(pair=angles, gamma=st.floats(0.01, 100))
def test_min_snr_of_the_velocity_is_the_papers(pair, gamma):
    """min(SNR, g) / (SNR + 1) for Velocity on a variance-preserving level."""
    snr = (pair[0] / pair[1]) ** 2
    assert weight(nz.MinSNR(gamma), nz.Velocity(), pair) == pytest.approx(min(snr, gamma) / (snr + 1), rel=1e-12)


@law
@given(pair=levels, k=st.floats(0.01, 10), gamma=st.floats(0, 4))
def test_p2_is_the_papers(pair, k, gamma):
    """1 / (k + SNR)^gamma for Epsilon; k = gamma = 1 by default."""
    snr = (pair[0] / pair[1]) ** 2
    assert weight(nz.P2(k, gamma), nz.Epsilon(), pair) == pytest.approx((k + snr) ** -gamma, rel=1e-12)
    assert weight(nz.P2(), nz.Epsilon(), pair) == pytest.approx(1 / (1 + snr), rel=1e-12)


@law
@given(pair=levels)
def test_p2_without_gamma_is_the_likelihoods(pair):
    """With gamma = 0 P2 is 1 on the error of eps, as LikelihoodWeight is, at the ends too."""
    for at in (pair, (1.0, 0.0), (0.0, 1.0)):
        assert weight(nz.P2(k=3.0, gamma=0.0), nz.Velocity(), at) == weight(nz.LikelihoodWeight(), nz.Velocity(), at)


@law
@given(pair=angles)
def test_likelihood_weight_is_one_on_eps(pair):
    """1 for Epsilon, alpha^2 for Velocity on a variance-preserving level, SNR for Denoised."""
    alpha, sigma = pair
    found = [weight(nz.LikelihoodWeight(), output, pair) for output in (nz.Epsilon(), nz.Velocity(), nz.Denoised())]
    assert found == pytest.approx([1.0, alpha**2, (alpha / sigma) ** 2], rel=1e-12)


@combinations
@settings(law, max_examples=25)
@given(share=st.floats(0.001, 0.999), x=st.floats(-5, 5), F=st.floats(-5, 5), dF=st.floats(0.1, 5))
def test_a_weighted_error_is_the_papers_weighted_error(process, output, share, x, F, dF):
    """weight |dF|^2 is the paper's weight times |d eps|^2 and times |d x0|^2, d by asking a denoiser twice."""

    class Says(torch.nn.Module):
        def forward(self, x, c):
            return self.F

    t, network = torch.tensor([share * process.end], dtype=torch.float64), Says()
    at = process(t)
    denoiser = nz.Denoiser(network, process, output, nz.Time())
    answers = []
    for value in (F, F + dF):
        network.F = torch.tensor([[value]], dtype=torch.float64)
        answers.append(denoiser(torch.tensor([[x]], dtype=torch.float64), t))
    d_x0, d_eps = (abs(b.item() - a.item()) for a, b in zip(*answers, strict=True))
    alpha, sigma = (value.item() for value in at)
    terms = [max(abs(v.item()) for v in (pair[0], pair[1])) for pair in zip(*answers, strict=True)]
    assume(d_x0 > 1e-5 * terms[0] and d_eps > 1e-5 * terms[1])  # so that the two differences have ten digits
    for weighting in WEIGHTINGS:
        on_eps, on_x0 = paper(weighting, alpha, sigma)
        found = weighting(at, output.coefficients(at)).item() * dF**2
        assert found == pytest.approx(on_eps * d_eps**2, rel=1e-8)
        assert found == pytest.approx(on_x0 * d_x0**2, rel=1e-8)


def at_zero(weighting, output):
    """The limit of the weight at alpha = 1, sigma = 0: SNR infinite."""
    if isinstance(weighting, nz.MinSNR):
        on_eps = 0.0
    else:
        on_eps = float(isinstance(weighting, nz.LikelihoodWeight) or weighting.gamma == 0)
    d_eps = {nz.Epsilon: 1.0, nz.Velocity: 1.0, nz.Flow: 1.0, nz.Karras: -1.0, nz.Nu: 0.0, nz.W: 0.0}
    return on_eps * d_eps[type(output)] ** 2


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
@combinations
def test_weights_are_finite_and_right_at_time_zero(weighting, process, output):
    """At t = 0, where SNR is infinite, each weight is finite, is its limit, and has no jump there."""
    if isinstance(output, nz.Denoised):
        with pytest.raises(ArgumentError, match="sigma = 0"):
            output.coefficients(process(torch.zeros(1, dtype=torch.float64)))
        return
    at = process(torch.tensor([0.0, process.time_of_logsnr(torch.tensor(80.0, dtype=torch.float64)).item()]).double())
    zero, near = weighting(at, output.coefficients(at)).tolist()
    assert zero == pytest.approx(at_zero(weighting, output), abs=1e-15)
    assert near == pytest.approx(zero, abs=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_weights_are_finite_and_right_without_signal(weighting, name):
    """At alpha = 0, sigma = 1 a weight on eps is that on x0 times SNR = 0: MinSNR and the rest are SNR B^2 there, 0."""
    process = PROCESSES[name]
    at = process(torch.tensor([process.end], dtype=torch.float64))
    assert at.alpha.item() == 0.0
    for output in (nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(), *(vp if name not in PLAIN else ())):
        assert weighting(at, output.coefficients(at)).item() == 0.0
    with pytest.raises(ArgumentError, match="alpha = 0"):
        nz.Epsilon().coefficients(at)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
@pytest.mark.parametrize("name", sorted(set(PROCESSES) - ENDLESS))
def test_weights_at_an_end_with_signal_are_the_papers(weighting, name):
    """Where the process ends with signal the paper's formula holds at the end as anywhere."""
    process = PROCESSES[name]
    at = process(torch.tensor([process.end], dtype=torch.float64))
    on_eps, _ = paper(weighting, *(value.item() for value in at))
    assert weighting(at, nz.Epsilon().coefficients(at)).item() == pytest.approx(on_eps, rel=1e-12)


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, nz.Simple()], ids=repr)
def test_one_weight_for_each_example(weighting):
    """A batch of levels has the weights of its levels, of their shape and dtype, and survives the registry."""
    at = nz.LinearVP()(torch.linspace(0, 1, 7, dtype=torch.float64))
    found = weighting(at, nz.Velocity().coefficients(at))
    assert (found.shape, found.dtype) == ((7,), torch.float64)
    for i in range(7):
        part = nz.Level(at.alpha[i : i + 1], at.sigma[i : i + 1])
        assert weighting(part, nz.Velocity().coefficients(part)).item() == found[i].item()
    assert decode(encode(weighting)) == weighting


@law
@given(pair=levels, B=st.floats(-5, 5))
def test_weights_are_quadratic_in_the_output(pair, B):
    """A network that predicts c F has c^2 times the weight of one that predicts F: no weight depends on the scale."""
    at = level(*pair)
    zero, b = torch.zeros(1, dtype=torch.float64), torch.tensor([B], dtype=torch.float64)
    k = Coefficients(zero, b, zero, -b * pair[0] / pair[1])
    doubled = k._replace(B=2 * k.B, D=2 * k.D)
    for weighting in WEIGHTINGS:
        assert weighting(at, doubled).item() == pytest.approx(4 * weighting(at, k).item(), rel=1e-13)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_min_snr_refuses_a_gamma_that_is_none(gamma):
    """gamma is positive and finite."""
    with pytest.raises(ArgumentError, match="positive gamma"):
        nz.MinSNR(gamma)


@pytest.mark.parametrize(
    ("k", "gamma"),
    [(0.0, 1.0), (-1.0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (1.0, -0.1), (1.0, math.nan), (1.0, math.inf)],
)
def test_p2_refuses_what_has_no_limit(k, gamma):
    """k is positive, so that the weight is finite without signal; gamma is at least 0; both finite."""
    with pytest.raises(ArgumentError, match="k > 0 and gamma >= 0"):
        nz.P2(k, gamma)
