"""LearnedUncertainty: against the log of exact mean losses, at the ends of every process, and in a run that stops."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import nearzero as nz
from conftest import pictures, tiny_recipe, tree
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.manifest import write_manifest
from nearzero.training.loop import train
from nearzero.training.state import TrainingState
from nearzero.training.step import steps

PROCESSES = [
    *(nz.LinearVP(), nz.QuadraticVP(), nz.DiscreteVP.linear(), nz.SubVP(), nz.SongVE(), nz.KarrasVE()),
    *(nz.CosineVP(), nz.ShiftedCosine(), nz.LinearSigmaVP(), nz.StraightPath(), nz.ZeroTerminalSNR(nz.LinearVP())),
]
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)  # moments of N(0, 1)^2


class Spread:
    """Noise levels at which tanh(log(sigma / alpha) / 4) is uniform in (-1, 1)."""

    def __call__(self, u, process):
        return process.time_of_logsnr(-8 * torch.atanh(2 * u - 1))


class Zero(torch.nn.Module):
    """F = 0: its loss is the mean square of the target, whatever is learned."""

    def forward(self, x, c):
        return torch.zeros_like(x)


class Free(torch.nn.Module):
    """F = b(level), one number for each of n examples, at b = 0."""

    def __init__(self, count):
        super().__init__()
        self.b = torch.nn.Parameter(torch.zeros(count, 1, dtype=torch.float64))

    def forward(self, x, c):
        return self.b + 0 * x


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


def levels(n=64):
    """For n levels four examples each of N(0, 4) data and their noise, so that means over them are exact: x0, u, eps."""
    u = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).repeat_interleave(4)
    first, second = SIGNS.repeat(n, 1).T
    return 2 * first[:, None], u, second[:, None]


def descended(terms, count=400):
    """An objective on v-prediction of N(0, 4) data whose coefficients went down the gradient, and its denoiser."""
    objective = nz.LearnedUncertainty(nz.Regression(Spread(), nz.Simple()), terms)
    denoiser = nz.Denoiser(Zero(), nz.LinearSigmaVP(), nz.Velocity(), nz.Time())
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        objective(denoiser, *levels()).mean().backward()
        optimizer.step()
    return objective, denoiser


def mean_loss(u):
    """E (alpha eps - sigma x0)^2 = alpha^2 + 4 sigma^2 = 1 + 3 sigma^2 for N(0, 4) data, sigma of z = 2u - 1 written out."""
    ratio = ((1 + (2 * u - 1)) / (1 - (2 * u - 1))) ** 4  # (sigma / alpha)^2 = exp(8 atanh z)
    return 1 + 3 * ratio / (1 + ratio)


def learned(objective):
    """u at the levels, and the mean loss there."""
    u = levels()[1][::4]
    process = nz.LinearSigmaVP()
    return objective.u(process(Spread()(u, process))).detach().double(), mean_loss(u)


@pytest.mark.parametrize(("terms", "tolerance"), [(8, 0.03), (16, 3e-3), (24, 4e-4)])
def test_the_optimum_is_the_log_of_the_mean_loss(terms, tolerance):
    """Gradient descent from 0 ends at u = log E loss at every level, the nearer the more terms the series has."""
    found, expected = learned(descended(terms)[0])
    assert (found - expected.log()).abs().max().item() < tolerance


def test_one_term_is_the_log_of_the_mean():
    """With one term u is the same everywhere: the log of the mean loss over all levels."""
    found, expected = learned(descended(1)[0])
    torch.testing.assert_close(found, expected.mean().log().expand(64), rtol=0, atol=1e-6)


def test_every_level_weighs_the_same_at_the_optimum():
    """A network's relative error costs the same at every level: loss / exp(u) is 1 everywhere, where losses were 1 to 4, and
    the gradient in a network's answer is the plain one over the mean loss."""
    objective, denoiser = descended(24)
    x0, u, eps = levels()
    with torch.no_grad():
        log_loss = objective.u(nz.LinearSigmaVP()(Spread()(u, nz.LinearSigmaVP()))).double()
        balanced = (objective(denoiser, x0, u, eps) - log_loss).reshape(-1, 4).mean(1)
    assert (balanced - 1).abs().max().item() < 5e-4
    network = Free(len(u))
    free = nz.Denoiser(network, nz.LinearSigmaVP(), nz.Velocity(), nz.Time())
    (found,) = torch.autograd.grad(objective(free, x0, u, eps).sum(), network.b)
    (plain,) = torch.autograd.grad(objective.objective(free, x0, u, eps).sum(), network.b)
    torch.testing.assert_close(found, plain / mean_loss(u)[:, None], rtol=5e-4, atol=0)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_it_starts_as_the_plain_loss(penalty):
    """Before the first step u = 0: the loss and the network's gradient are those of the objective inside, bit for bit."""
    network = torch.nn.Linear(3, 3).double()
    denoiser = nz.Denoiser(network, nz.LinearVP(), nz.Epsilon(), nz.Time())
    network.forward = lambda x, c: torch.tanh(torch.nn.functional.linear(x, network.weight, network.bias) + c[:, None])
    inner = nz.Regression(nz.UniformTimes(), nz.MinSNR())
    inner = nz.LipschitzPenalty(inner, penalty) if penalty else inner
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    u = torch.rand(6, generator=generator, dtype=torch.float64)
    losses = [one(denoiser, x0, u, eps) for one in (inner, nz.LearnedUncertainty(inner, 5))]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss.sum(), network.weight)[0] for loss in losses))


@given(
    a=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20),
    process=st.sampled_from(PROCESSES),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_u_is_finite_at_every_noise_level(a, process, parts):
    """At t = 0, at the end and between u lies within the sum of |a_k|, with a finite gradient."""
    objective = nz.LearnedUncertainty(nz.Regression(nz.UniformTimes(), nz.Simple()), len(a))
    objective.a.data = torch.tensor(a)
    u = objective.u(process(f64([0.0, process.end, *(process.end * part for part in parts)])))
    bound = sum(map(abs, a))
    assert bool((u.abs() <= bound * (1 + 1e-5) + 1e-30).all())
    (gradient,) = torch.autograd.grad(u.sum(), objective.a)
    assert bool((gradient.abs() <= len(u) * (1 + 1e-6)).all())


@given(a=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20))
def test_u_at_the_two_infinities(a):
    """Without noise u = sum a_k, without signal u = sum (-1)^k a_k: log-SNR +inf and -inf are levels as any other."""
    objective = nz.LearnedUncertainty(nz.Regression(nz.UniformTimes(), nz.Simple()), len(a))
    objective.a.data = torch.tensor(a)
    u = objective.u(nz.LinearSigmaVP()(f64([0.0, 1.0]))).tolist()
    ends = [sum(a), sum(value * (-1) ** k for k, value in enumerate(a))]
    assert u == pytest.approx(ends, abs=1e-5 * (1 + sum(map(abs, a))))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: repr(process)[:32])
def test_the_loss_is_finite_at_both_ends(process):
    """At t = 0 and at the end loss and gradient are finite, and the loss is the plain one / exp(u) + u."""

    class Ends:
        def __call__(self, u, process):
            return f64([0.0, process.end])

    plain = nz.Regression(Ends(), nz.Simple())
    objective = nz.LearnedUncertainty(plain, 3)
    objective.a.data = torch.tensor([0.5, -0.25, 1.0])
    denoiser = nz.Denoiser(Zero(), process, nz.Velocity(), nz.Time())
    draws = (f64([[0.3], [2.0]]), f64([0.1, 0.9]), f64([[-1.0], [0.5]]))
    loss = objective(denoiser, *draws)
    z = (-process(f64([0.0, process.end])).logsnr / 8).tanh()
    u = 0.5 - 0.25 * torch.cos(math.pi / 2 * (1 + z)) + torch.cos(math.pi * (1 + z))
    torch.testing.assert_close(loss, plain(denoiser, *draws) * (-u).exp() + u, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), objective.a)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("wrap", [lambda bound: bound, lambda bound: nz.LipschitzPenalty(bound, 0.1)])
def test_a_signed_bound_is_refused(wrap):
    """The variational bound may be negative and has no log: refused, under a penalty too."""
    with pytest.raises(ArgumentError, match="signed bound"):
        nz.LearnedUncertainty(wrap(nz.VariationalBound(nz.UniformTimes())), 4)


@pytest.mark.parametrize("terms", [0, -1, True, 1.5, "4"])
def test_a_number_of_terms_that_is_none_is_refused(terms):
    """Terms are counted: an integer of at least 1."""
    with pytest.raises(ArgumentError, match=f"at least 1 term, got {terms}"):
        nz.LearnedUncertainty(nz.Regression(nz.UniformTimes(), nz.Simple()), terms)


# ---- in a run


def recipe(**training):
    """The tiny recipe with four learned coefficients."""
    return replace(tiny_recipe(**training), uncertainty=4)


def newest(run):
    """Every bit of the newest checkpoint."""
    return {"step": run.checkpoint().name, **tree(run.checkpoint())}


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """A finished run. Read only."""
    return train(recipe(), pictures(), tmp_path_factory.mktemp("uncertain") / "run")


def test_coefficients_are_saved_apart(learning):
    """A checkpoint holds the coefficients in objective.safetensors, moved by Adam, with their moments; neither the weights nor their average has them."""
    folder = learning.checkpoint()
    a = load_file(folder / "objective.safetensors")
    assert list(a) == ["a"] and a["a"].shape == (4,) and bool((a["a"] != 0).all())
    moments = {name for name in load_file(folder / "optimizer.safetensors") if "objective" in name}
    assert moments == {f"objective.a.{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
    names = {name for name, _ in learning.recipe.denoiser().network.named_parameters()}
    assert set(load_file(folder / "weights.safetensors")) == set(load_file(folder / "ema.safetensors")) == names


@pytest.mark.parametrize("k", [1, 4])
def test_stopping_and_going_on_is_not_stopping(tmp_path, learning, k):
    """k steps, then the rest on resume, end in the bits of all steps at once: coefficients and moments included."""
    train(recipe(steps=k), pictures(), tmp_path / "run")
    assert newest(train(recipe(), pictures(), tmp_path / "run", resume=True)) == newest(learning)


def test_a_checkpoint_without_coefficients_is_refused(tmp_path, learning):
    """Without objective.safetensors, or with one of another length, nothing is resumed: CheckpointError with its path."""
    out = shutil.copytree(learning.path, tmp_path / "run")
    path = nz.Run.load(out).checkpoint() / "objective.safetensors"
    save_file({"a": torch.zeros(5)}, path)
    write_manifest(path.parent, {"step": 6})
    with pytest.raises(CheckpointError, match="objective.safetensors does not fit"):
        train(recipe(steps=8), pictures(), out, resume=True)
    path.unlink()
    with pytest.raises(CheckpointError, match="objective.safetensors"):
        train(recipe(steps=8), pictures(), out, resume=True)


def test_the_coefficients_are_trained_beside_the_network():
    """Adam's first step moves each coefficient by the learning rate, against its gradient: the mean over the batch of
    (1 - loss) cos(pi k (1 + z) / 2), written out; the average leaves them out."""
    from nearzero.training.draws import batch

    made, images = recipe(), pictures()
    state = TrainingState(made, 0, torch.device("cpu"))
    x0, u, eps = batch(made, images, 0, 0, torch.device("cpu"))
    with torch.no_grad():
        plain = state.objective.objective(state.denoiser, x0, u, eps).double()
    next(steps(state, made, images, 0))
    level = made.process(made.times(u, made.process))
    z = torch.tanh((level.sigma / level.alpha).log() / 4)
    gradient = torch.stack([((1 - plain) * torch.cos(math.pi * k * (1 + z) / 2)).mean() for k in range(4)])
    found = state.objective.a.detach().double()
    torch.testing.assert_close(found, -1e-3 * gradient.sign(), rtol=1e-4, atol=0)
    assert set(state.averages.kept["ema"]) == set(state.weights) and not any(
        "objective" in name for name in state.weights
    )


def test_coefficients_that_are_no_numbers_are_never_saved(tmp_path, monkeypatch):
    """A coefficient that is NaN, where nothing may be rolled back, raises NumericalError with its name; the checkpoint before it stays."""
    apply = TrainingState.apply

    def spoil(self):
        apply(self)
        if self.step == 6:
            self.objective.a.data[0] = math.nan

    monkeypatch.setattr(TrainingState, "apply", spoil)
    with pytest.raises(nz.NearzeroError, match="weights of a are not finite at step 6"):
        train(recipe(), pictures(), tmp_path / "run", checkpoint_every=4, guard=nz.Guard(rollbacks=0))
    assert nz.Run.load(tmp_path / "run").step == 4
