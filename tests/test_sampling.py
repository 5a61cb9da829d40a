"""Samples depend on their own seeds only, and the network is told nothing that it was not trained on."""

import math
import warnings

import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, NumericalError

pytestmark = pytest.mark.filterwarnings("ignore:on this grid of")  # few "leading" steps visit node 0 alone
DDPM = nz.DiscreteVP.linear()
SHARED = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
SOLVERS = [nz.DDIM(), nz.DDIM(0.7), nz.Ancestral("upper"), nz.Ancestral("lower")]
every = pytest.mark.parametrize("solver", SOLVERS, ids=str)
SEEDS = [3, 0, 2**32 - 1, 17, 5]


class Ripple(torch.nn.Module):
    """Elementwise, so that a batch changes no bit; it depends on c and remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, x, c, label=None):
        self.told.append(c)
        answer = 0.5 * x + 0.1 * (c / 1000).reshape(-1, *(1,) * (x.ndim - 1))
        return answer if label is None else answer + label.reshape(-1, *(1,) * (x.ndim - 1))


def ripple(conditioning=SHARED, process=DDPM):
    return nz.Denoiser(Ripple(), process, nz.Epsilon(), conditioning)


def run(denoiser, call=nz.sample, solver=SOLVERS[2], grid=None, steps=10, seeds=SEEDS, shape=(1, 2, 3), **options):
    grid = grid or nz.TimestepGrid()
    return call(denoiser, shape, solver=solver, grid=grid, steps=steps, seeds=seeds, **options)


@every
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 100])
def test_an_image_depends_on_its_seed_alone(solver, batch):
    """Permuting, choosing and batching seeds permutes, chooses and batches images, bit by bit."""
    all_together = run(ripple(), solver=solver)
    assert torch.equal(run(ripple(), solver=solver, batch=batch), all_together)
    chosen = [4, 1, 3]
    assert torch.equal(
        run(ripple(), solver=solver, seeds=[SEEDS[i] for i in chosen], batch=batch), all_together[chosen]
    )
    assert len({tuple(x.flatten().tolist()) for x in all_together}) == len(SEEDS)


@every
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 8), ("leading", 8), ("trailing", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_contract(solver, spacing, steps, dtype):
    """Seed i's CPU generator draws the first noise, times sigma(first time), then one tensor a noisy step, none at the last."""
    path = run(ripple(), nz.trajectory, solver, nz.TimestepGrid(spacing), steps, [11], dtype=dtype)
    rows = ripple().rows(nz.TimestepGrid(spacing)(steps, DDPM))
    generator = torch.Generator().manual_seed(11)
    first = (1000 if spacing == "trailing" else (steps - 1) * (1000 // steps) + 1) - 1
    sigma = math.sqrt(1 - math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(first + 1)))
    x = torch.randn(1, 2, 3, generator=generator, dtype=dtype)[None]
    torch.testing.assert_close(path[0].x, x * sigma, rtol=1e-6, atol=0)
    x = path[0].x
    for i, (row_t, row_s) in enumerate(zip(rows, rows[1:], strict=False)):
        due = i < steps - 1 and solver != nz.DDIM()
        noise = torch.randn(1, 2, 3, generator=generator, dtype=dtype)[None] if due else None
        told = torch.full((1,), row_t.condition, dtype=dtype)
        x = solver.step(lambda x, row, told=told: Ripple()(x, told), x, row_t, row_s, noise)
        assert torch.equal(path[i + 1].x, x)


def test_a_step_without_noise_draws_none():
    """A solver that adds noise at some steps only takes the generator's tensors in order, one for each of those."""

    class Sometimes:
        def stages(self, t, s, process):
            return ()

        def noisy(self, row_t, row_s):
            return 0.2 < row_t.t < 0.4 or row_t.t > 0.8

        def step(self, evaluate, x, row_t, row_s, noise, inner):
            return torch.zeros_like(x) if noise is None else noise.clone()

    path = run(ripple(), nz.trajectory, Sometimes(), nz.UniformGrid(), 8, [11])
    generator = torch.Generator().manual_seed(11)
    first, *drawn = (torch.randn(1, 2, 3, generator=generator)[None] for _ in range(5))
    assert torch.equal(path[0].x, first * ripple().rows(torch.ones(1, dtype=torch.float64))[0].sigma)
    noisy = [i for i, state in enumerate(path[:-1]) if 0.2 < state.t < 0.4 or state.t > 0.8]
    assert noisy == [0, 1, 5, 6]
    for i in range(8):
        expected = drawn[noisy.index(i)] if i in noisy else torch.zeros(1, 1, 2, 3)
        assert torch.equal(path[i + 1].x, expected)


@every
def test_a_trajectory_is_the_path_of_sample(solver):
    """steps + 1 states at the grid's times, Python floats that fall to 0; the last is sample(...), and no state was written over."""
    path = run(ripple(), nz.trajectory, solver, batch=2)
    assert [state.t for state in path] == nz.TimestepGrid()(10, DDPM).tolist()
    assert all(type(state.t) is float for state in path)
    assert torch.equal(path[-1].x, run(ripple(), solver=solver))
    assert len({state.x.data_ptr() for state in path}) == len(path)
    assert torch.equal(path[0].x, run(ripple(), nz.trajectory, solver, batch=2)[0].x)
    size = [state.x.abs().mean().item() for state in path]
    assert len(set(size)) == len(size)


def test_states_survive_a_network_that_writes_and_one_that_answers_x():
    """A network whose output is x itself, and solvers that work in place, leave earlier states alone: replayed by hand."""

    class Self(torch.nn.Module):
        def forward(self, x, c):
            return x

    denoiser = nz.Denoiser(Self(), DDPM, nz.Velocity(), nz.Time())
    path = run(denoiser, nz.trajectory, nz.DDIM(), steps=4, dtype=torch.float64)
    rows = denoiser.rows(nz.TimestepGrid()(4, DDPM))
    for (state, row_t), (after, row_s) in zip(
        zip(path, rows, strict=True), list(zip(path, rows, strict=True))[1:], strict=False
    ):
        x0, eps = (row_t.alpha - row_t.sigma) * state.x, (row_t.sigma + row_t.alpha) * state.x
        torch.testing.assert_close(after.x, row_s.alpha * x0 + row_s.sigma * eps, rtol=1e-12, atol=1e-14)


def test_the_input_scale_is_applied():
    """The network sees x times the input scale, as through the denoiser's own door."""

    class Halved(nz.Velocity):
        def input_scale(self, level):
            return torch.full_like(level.alpha, 0.5)

    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, c):
            seen.append(x)
            return 0 * x

    (first, *_) = run(nz.Denoiser(Spy(), DDPM, Halved(), nz.Time()), nz.trajectory, nz.DDIM(), steps=3)
    assert torch.equal(seen[0], first.x / 2)


@pytest.mark.parametrize("call", [nz.sample, nz.trajectory])
def test_sampling_records_no_gradients(call):
    """Samples of a network with parameters require no gradient, and gradients are on again afterwards."""
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.ones(()))
    network.forward = lambda x, c: network.weight * x
    result = run(nz.Denoiser(network, DDPM, nz.Epsilon(), nz.Time()), call)
    assert not (result if call is nz.sample else result[-1].x).requires_grad
    assert torch.is_grad_enabled()


def test_dtype_is_torchs_default_unless_given():
    """None means torch's default dtype, for x and for what the network is told."""
    before = torch.get_default_dtype()
    try:
        for default in (torch.float64, torch.float32):
            torch.set_default_dtype(default)
            denoiser = ripple()
            assert run(denoiser).dtype == default == denoiser.network.told[0].dtype
            denoiser = ripple()
            assert run(denoiser, dtype=torch.bfloat16).dtype == torch.bfloat16 == denoiser.network.told[0].dtype
    finally:
        torch.set_default_dtype(before)


def test_each_seed_has_its_own_condition():
    """condition[i] goes with seeds[i], in whatever batch it runs."""
    label = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    together = run(ripple(), condition={"label": label})
    assert torch.equal(run(ripple(), condition={"label": label}, batch=2), together)
    for i, seed in enumerate(SEEDS):
        assert torch.equal(run(ripple(), seeds=[seed], condition={"label": label[i : i + 1]})[0], together[i])
    assert not torch.equal(together, run(ripple(), condition={"label": label.flip(0)}))


def test_a_network_that_breaks_is_named_by_time():
    """A NaN raises NumericalError, exit code 5, with the times of the first step that made it."""

    class Breaks(torch.nn.Module):
        def forward(self, x, c):
            return x * (math.nan if c[0] < 400 else 1.0)

    for call in (nz.sample, nz.trajectory):
        with pytest.raises(NumericalError, match=r"from t = 0\.4 to 0\.3") as raised:
            run(nz.Denoiser(Breaks(), DDPM, nz.Velocity(), nz.Timestep(1000)), call)
        assert raised.value.exit_code == 5


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1", None])
def test_bad_seeds_are_refused(seed):
    """A seed is an integer from 0 to 2^63 - 1; anything else is refused by value."""
    with pytest.raises(ArgumentError, match=rf"seed.*{seed}"):
        run(ripple(), seeds=[0, seed])


def test_no_seeds_are_refused():
    """There is nothing to sample without seeds."""
    with pytest.raises(ArgumentError, match="at least one seed"):
        run(ripple(), seeds=[])


@pytest.mark.parametrize("batch", [0, -3])
def test_bad_batches_are_refused(batch):
    """A batch holds at least one sample."""
    with pytest.raises(ArgumentError, match=f"batch.*{batch}"):
        run(ripple(), batch=batch)


def test_a_condition_of_a_wrong_length_is_refused():
    """A condition has one entry for each seed: refused with its name and both numbers."""
    with pytest.raises(ArgumentError, match="'label' has 4 entries for 5 seeds"):
        run(ripple(), condition={"label": torch.zeros(4)})


def conditions_of_training(conditioning):
    """All that Regression with DiscreteTimes tells the network, over all u: three in each node."""
    denoiser = ripple(conditioning)
    u = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    x = torch.zeros(3000, 1)
    nz.Regression(nz.DiscreteTimes(), nz.Simple())(denoiser, x, u, x)
    return {c for told in denoiser.network.told for c in told.tolist()}


def conditions_of_sampling(conditioning, spacing, steps):
    """All that a sampler tells the network."""
    denoiser = ripple(conditioning)
    run(denoiser, nz.sample, nz.Ancestral(), nz.TimestepGrid(spacing), steps, [0])
    return {c for told in denoiser.network.told for c in told.tolist()}


GRIDS = [("trailing", 20), ("trailing", 1000), ("leading", 50), ("linspace", 30)]


@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
@pytest.mark.parametrize("conditioning", [SHARED, nz.Timestep(1000)], ids=["Shared", "Timestep"])
def test_sampling_tells_the_network_only_what_training_told_it(conditioning, spacing, steps):
    """E-TSDM's law: every condition of sampling is one of training."""
    assert conditions_of_sampling(conditioning, spacing, steps) <= conditions_of_training(conditioning)


def test_training_tells_what_the_algorithm_says():
    """Over all u, training tells 0, 20, 40, 60, 80 and 100 .. 999 with sharing, every timestep without."""
    assert conditions_of_training(SHARED) == {0, 20, 40, 60, 80, *range(100, 1000)}
    assert conditions_of_training(nz.Timestep(1000)) == set(range(1000))
    assert conditions_of_sampling(SHARED, "trailing", 1000) == conditions_of_training(SHARED)


def test_unshared_sampling_would_ask_what_sharing_never_trained():
    """Control: the law can fail; without sharing, trailing 20 asks for timestep 49, which E-TSDM's training never tells."""
    assert 49 in conditions_of_sampling(nz.Timestep(1000), "trailing", 20) - conditions_of_training(SHARED)


@pytest.mark.parametrize(
    ("spacing", "steps", "changes"), [("trailing", 20, True), ("trailing", 1000, True), ("leading", 50, False)]
)
def test_where_sharing_changes_the_samples(spacing, steps, changes):
    """Sharing changes samples on trailing 20 and on all nodes; on leading 50 it is the identity, its nodes are the cells' first."""
    shared, own = (run(ripple(c), grid=nz.TimestepGrid(spacing), steps=steps) for c in (SHARED, nz.Timestep(1000)))
    assert torch.equal(shared, own) != changes


def test_every_stage_is_told_the_cell_that_its_step_leaves():
    """A solver gets rows at its own stages; below the interval both they and the step's end are told the cell of its start."""
    steps = []

    class Thirds:
        def stages(self, t, s, process):
            return (t - (t - s) / 3, s + (t - s) / 3)

        def noisy(self, row_t, row_s):
            return False

        def step(self, evaluate, x, row_t, row_s, noise, inner):
            assert noise is None
            steps.append((row_t, *inner, row_s))
            for row in steps[-1]:
                evaluate(x, row)
            return nz.DDIM().step(evaluate, x, row_t, row_s, None)

    run(ripple(), solver=Thirds(), grid=nz.UniformGrid(), steps=50, seeds=[0])
    for i, step in enumerate(steps):
        t = 1 - i / 50
        assert [row.t for row in step] == pytest.approx([t, t - 0.02 / 3, t - 0.04 / 3, t - 0.02], abs=1e-12)
        expected = [round(1000 * t) - 20] * 4 if i >= 45 else [1000 * row.t - 1 for row in step]
        assert [row.condition for row in step] == pytest.approx(expected, abs=1e-9)


# --- the output does not matter ----------------------------------------------------------------------------------


def f64(values):
    return torch.as_tensor(values, dtype=torch.float64)


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
PLAIN = {
    "SubVP": nz.SubVP(),
    "StraightPath": nz.StraightPath(),
    "SongVE": nz.SongVE(100.0),
    "KarrasVE": nz.KarrasVE(10.0),
}
EVERYWHERE = [nz.Epsilon(), nz.Velocity(), nz.Denoised(), nz.Flow(), nz.Karras(), nz.Karras(2.0)]
CENTRED = nz.GaussianMixture(
    f64([0.3, 0.7]), f64([[-1.4, 0.7], [0.6, -0.3]]), f64([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]]])
)


def by_hand(data, process, solver, times, seeds):
    """The solver's formula on the posterior means, with the contract's noise: no parameterization at all."""
    samples = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        levels = [process(f64([t])) for t in times]
        x = torch.randn(1, 2, generator=generator, dtype=torch.float64) * levels[0].sigma
        for here, there in zip(levels, levels[1:], strict=False):
            (a, s), (a_s, s_s) = ((value.item() for value in level) for level in (here, there))
            x0, eps = data.posterior(x, here)
            ratio = a / a_s
            if isinstance(solver, nz.DDIM):
                x = a_s * x0 + s_s * eps
                continue
            x = a_s * x0 + ratio * s_s**2 / s * eps
            if s_s > 0:
                beta = s**2 - (ratio * s_s) ** 2
                noise = torch.randn(1, 2, generator=generator, dtype=torch.float64)
                x = x + math.sqrt(beta if solver.variance == "upper" else beta * (s_s / s) ** 2) * noise
        samples.append(x)
    return torch.cat(samples)


@pytest.mark.parametrize("solver", [nz.DDIM(), nz.Ancestral("upper"), nz.Ancestral("lower")], ids=str)
@pytest.mark.parametrize("process", (VP | PLAIN).values(), ids=(VP | PLAIN).keys())
def test_samples_do_not_depend_on_the_output(process, solver):
    """With the exact network every parameterization that exists gives the samples of the posterior means, to 1e-9."""
    times = nz.SqrtGrid()(6, process).tolist()
    expected = by_hand(CENTRED, process, solver, times, SEEDS)
    no_signal = process(f64(process.end)).alpha == 0
    parameterizations = EVERYWHERE[1 if no_signal else 0 :] + ([nz.Nu(), nz.W()] if process in VP.values() else [])
    for parameterization in parameterizations:
        denoiser = CENTRED.denoiser(process, parameterization)
        found = run(denoiser, solver=solver, grid=nz.SqrtGrid(), steps=6, shape=(2,), dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda m, p=parameterization: f"{p}: {m}")


def test_samples_of_data_off_the_centre():
    """Data of mean (2, -1) too, but that Nu, unheard at alpha = 0, takes its mean for 0 there: a control that can fail."""
    data = nz.GaussianMixture(CENTRED.weights, CENTRED.means + f64([2.0, -1.0]), CENTRED.covariances)
    process = nz.LinearSigmaVP()
    expected = by_hand(data, process, nz.DDIM(), nz.SqrtGrid()(6, process).tolist(), SEEDS)
    for parameterization in (nz.W(), nz.Denoised(), nz.Nu()):
        found = run(
            data.denoiser(process, parameterization),
            solver=nz.DDIM(),
            grid=nz.SqrtGrid(),
            steps=6,
            shape=(2,),
            dtype=torch.float64,
        )
        if parameterization == nz.Nu():
            assert (found - expected).abs().max() > 0.01
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    process = nz.LinearVP()
    expected = by_hand(data, process, nz.DDIM(), nz.SqrtGrid()(6, process).tolist(), SEEDS)
    found = run(
        data.denoiser(process, nz.Nu()), solver=nz.DDIM(), grid=nz.SqrtGrid(), steps=6, shape=(2,), dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_an_output_without_meaning_at_the_first_time_is_refused():
    """Where the process ends without signal Epsilon cannot start: refused, and Velocity is named."""
    with pytest.raises(ArgumentError, match=r"Epsilon at alpha = 0.*Velocity"):
        run(ripple(nz.Time(), nz.LinearSigmaVP()), grid=nz.UniformGrid())
    with pytest.raises(ArgumentError, match="LogSigma at alpha = 0"):
        run(nz.Denoiser(Ripple(), nz.LinearSigmaVP(), nz.W(), nz.LogSigma()), grid=nz.UniformGrid())


# --- where the network is asked ----------------------------------------------------------------------------------


class TwoStages:
    """Heun's shape: the network is asked at both ends of the step."""

    def stages(self, t, s, process):
        return ()

    def noisy(self, row_t, row_s):
        return False

    def step(self, evaluate, x, row_t, row_s, noise, inner):
        evaluate(x, row_s)
        return nz.DDIM().step(evaluate, x, row_t, row_s, None)


@pytest.mark.parametrize(
    ("parameterization", "process", "one", "two"),
    [
        (nz.Nu(), nz.LinearSigmaVP(), 7, 14),
        (nz.W(), nz.LinearSigmaVP(), 8, 15),
        (nz.Nu(), nz.LinearVP(), 8, 15),
        (nz.Velocity(), nz.LinearSigmaVP(), 8, 16),
        (nz.Denoised(), nz.LinearSigmaVP(), 8, None),
    ],
    ids=str,
)
def test_the_network_is_asked_where_it_is_heard(parameterization, process, one, two):
    """Of 8 steps Nu asks no network at alpha = 0 and none at t = 0, W none at t = 0; everything else asks at both."""
    for solver, calls in ((nz.DDIM(), one), (TwoStages(), two)):
        denoiser = nz.Denoiser(Ripple(), process, parameterization, nz.Time(1000.0))
        if calls is None:
            with pytest.raises(
                ArgumentError, match=r"asks the network at t = 0, where Denoised or Time does not exist"
            ):
                run(denoiser, solver=solver, grid=nz.UniformGrid(), steps=8)
            continue
        run(denoiser, solver=solver, grid=nz.UniformGrid(), steps=8)
        told = [c[0].item() for c in denoiser.network.told]
        assert len(told) == calls
        assert (0.0 in told) == (calls == 16)  # only where both stages of all steps are heard
        assert (1000.0 in told) == (calls not in (7, 14))


@pytest.mark.parametrize("conditioning", [nz.LogSigma(), nz.LogSNR(), nz.InverseTime()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_condition_that_is_infinite_at_data_samples_nevertheless(conditioning, dtype):
    """The last time, data, is not told: every other is, as the conditioning says of the grid's own times."""
    process = nz.LinearVP()
    denoiser = nz.Denoiser(Ripple(), process, nz.Epsilon(), conditioning)
    run(denoiser, solver=nz.DDIM(), grid=nz.UniformGrid(), steps=5, dtype=dtype)
    t = f64([1.0, 0.8, 0.6, 0.4, 0.2])
    expected = conditioning(t, process(t)).to(dtype).tolist()
    assert [c[0].item() for c in denoiser.network.told] == pytest.approx(expected, rel=1e-6)


def test_cells_of_noise_are_told_in_sampling():
    """Shared(LogSigma) on KarrasVE: above the interval log(sigma) / 4, below it the cell of the time left, 0 legal."""
    process, shared = nz.KarrasVE(1.0), nz.Shared(nz.LogSigma(), interval=0.4, cells=2)
    denoiser = nz.Denoiser(Ripple(), process, nz.Karras(), shared)
    run(denoiser, solver=TwoStages(), grid=nz.UniformGrid(), steps=10, dtype=torch.float64)
    told = [c[0].item() for c in denoiser.network.told]
    left = told[1::2]  # asked second: where the step leaves
    ends = told[0::2]
    assert left == pytest.approx([math.log(s) / 4 for s in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.2, 0.2)], rel=1e-12)
    assert ends == pytest.approx(
        [math.log(s) / 4 for s in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.2, 0.2, 0.2)], rel=1e-12
    )


class Twice(torch.nn.Module):
    """Ripple with `times` as many channels, all but the first NaN."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x, c):
        F = Ripple()(x, c)
        return torch.cat([F, *[torch.full_like(F, math.nan)] * (self.times - 1)], dim=1)


def test_a_learned_variance_is_left_out():
    """A network with twice the channels samples as its first half does; three times the channels are refused."""
    twice, thrice = (nz.Denoiser(Twice(n), DDPM, nz.Epsilon(), SHARED) for n in (2, 3))
    assert torch.equal(run(twice), run(ripple()))
    with pytest.raises(ArgumentError, match=r"answers \(5, 3, 2, 3\) to x of \(5, 1, 2, 3\)"):
        run(thrice)


# ---- a grid on which sharing does nothing


@pytest.mark.parametrize(
    ("spacing", "steps", "idle"),
    [
        *(("leading", 50, True), ("leading", 25, True), ("leading", 100, False), ("leading", 20, False)),
        *(("trailing", 50, False), ("trailing", 10, False), ("linspace", 50, False)),
    ],
)
def test_a_grid_on_which_sharing_does_nothing_warns(spacing, steps, idle):
    """Stride 20 "leading" visits the nodes that E-TSDM's cells are named after: told the same, the samples are DDPM's, bit by bit."""
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    grid, network = nz.TimestepGrid(spacing), Ripple()
    plain, other = (nz.Denoiser(network, DDPM, nz.Epsilon(), told) for told in (nz.Timestep(1000), shared))
    arguments = {"solver": nz.DDIM(), "grid": grid, "steps": steps, "seeds": [0, 1]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same = torch.equal(nz.sample(plain, (3,), **arguments), nz.sample(other, (3,), **arguments))
    assert same is idle
    assert [str(one.message)[:12] for one in caught] == (["on this grid"] if idle else [])
