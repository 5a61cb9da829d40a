"""What is not finite is skipped, rolled back, reported and counted; what does not fit is refused with the numbers to take."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nearzero as nz
from conftest import pictures, tiny_recipe
from nearzero import files, recipes
from nearzero.errors import ArgumentError, CheckpointError, DiskError, NumericalError, OutOfMemoryError
from nearzero.training import preflight
from nearzero.training.guards import COUNTERS, Guard, Samples, give_up, is_finite, record, report, times
from nearzero.training.loop import train
from nearzero.training.memory import advice, is_out_of_memory, memory_advice
from nearzero.training.preflight import checkpoint_bytes, measure
from nearzero.training.state import TrainingState

CPU = torch.device("cpu")
flags = st.lists(st.sampled_from(["fine", "bad", "overflow"]), max_size=120)
limits = st.tuples(st.integers(1, 4), st.integers(0, 3))


def check(guard, what):
    return guard.check(what == "fine", overflow=what == "overflow")


# ---- the machine


@given(flags, limits)
def test_patience_and_rollbacks_are_bounds(sequence, limit):
    """Never more than `patience` bad steps without "go", "roll back" or "stop", never more than `rollbacks` roll backs; a finite step always goes and a bad one never does; every step is counted once."""
    patience, rollbacks = limit
    guard, row, actions = Guard(*limit), 0, []
    for what in sequence:
        action = check(guard, what)
        actions.append(action)
        assert (action == "go") == (what == "fine") and (action == "overflow") == (what == "overflow")
        row = 0 if action in ("go", "roll back") else row + (what == "bad")
        if row == patience:
            assert action in ("stop", "overflow") and actions.count("roll back") == rollbacks
        if action == "stop":
            break
    done = sequence[: len(actions)]
    assert actions.count("roll back") == guard.rolled_back <= rollbacks
    assert guard.skipped == done.count("bad") and guard.overflows == done.count("overflow")
    if actions and actions[-1] == "stop":
        assert guard.check(False) == "stop"  # and again


def test_ten_in_a_row_roll_back_and_the_fourth_time_stops():
    """By default 9 skips and a roll back, three times over, then 9 skips and the stop; one finite step begins the count anew."""
    guard = Guard()
    one = ["skip"] * 9 + ["roll back"]
    assert [guard.check(False) for _ in range(40)] == one * 3 + ["skip"] * 9 + ["stop"]
    guard = Guard()
    assert [guard.check(k % 10 == 9) for k in range(100)] == (["skip"] * 9 + ["go"]) * 10


@given(flags, limits, st.integers(0, 120), st.integers(0, 9))
def test_a_restored_guard_goes_on(sequence, limit, cut, good):
    """At any cut, another guard with the saved counters, through JSON, gives the same actions and ends in the same counters."""
    first, second = Guard(*limit), Guard(*limit)
    for what in sequence[:cut]:
        check(first, what)
    first.saving(good)
    second.restore(json.loads(json.dumps(first.state())))
    assert second == first
    assert [check(first, what) for what in sequence[cut:]] == [check(second, what) for what in sequence[cut:]]
    assert second == first


def train_toy(bad, stops, every=5, steps=40):
    """A run of one number with a guard: step n adds sin(n) unless it is bad; `stops` are {step: signal}."""
    checkpoints = {}
    w, guard, step = 0.0, Guard(3, 4), 0

    def save():
        checkpoints[step] = json.dumps([w, guard.state()])

    while step < steps:
        action = guard.check(step not in bad)
        if action == "go":
            w += math.sin(step) * (1 + abs(w))  # what came before matters
        elif action == "roll back":
            w = json.loads(checkpoints[guard.good])[0] if guard.good else 0.0
        elif action == "stop":
            return "stopped", step, w, guard.state()
        step += 1
        if step % every == 0:
            guard.saving(step)
            save()
        elif stops.get(step) == "SIGTERM":
            save()
        if stops.pop(step, None):
            step = max(checkpoints, default=0)
            guard = Guard(3, 4)
            w = 0.0
            if step:
                w, counters = json.loads(checkpoints[step])
                guard.restore(counters)
            for later in [one for one in checkpoints if one > step]:
                del checkpoints[later]
    return "done", step, w, guard.state()


@given(
    st.sets(st.integers(0, 39)) | st.integers(0, 25).map(lambda a: set(range(a, a + 12))),
    st.dictionaries(st.integers(1, 39), st.sampled_from(["SIGTERM", "SIGKILL"]), max_size=6),
)
def test_a_run_that_was_stopped_rolls_back_as_one_that_was_not(bad, stops):
    """Whatever steps are bad and wherever the run is stopped or killed, it ends with the weights and counters of the run that was not."""
    assert train_toy(bad, dict(stops)) == train_toy(bad, {})


def test_condemned_weights_roll_back_at_once():
    """Weights that are not finite themselves cost a roll back without patience, and the stop when there is none left."""
    guard = Guard(10, 2)
    assert [guard.check(False), guard.condemn(), guard.check(False), guard.condemn(), guard.condemn()] == [
        "skip",
        "roll back",
        "skip",
        "roll back",
        "stop",
    ]


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"rollbacks": -1}, {"patience": True}, {"patience": 1.5}])
def test_a_guard_has_patience(wrong):
    """Patience below 1 and rollbacks below 0, and what is no integer, are refused by name and value."""
    ((name, value),) = wrong.items()
    with pytest.raises(ArgumentError, match=f"{name} must be an integer of at least ., got {value}"):
        Guard(**wrong)


@pytest.mark.parametrize("wrong", [None, [], 3, {"in_a_row": -1}, {"good": 1.5}, {"skipped": "2"}, {"good": True}])
def test_counters_that_are_none_are_refused(wrong):
    """A state.json that counts with anything but integers of at least 0 is a CheckpointError; one without counters is a run without trouble."""
    with pytest.raises(CheckpointError, match=r"state.json counts"):
        Guard().restore(wrong)
    guard = Guard()
    guard.restore({})
    assert guard == Guard() and set(guard.state()) == set(COUNTERS)


# ---- what is finite


@given(st.lists(st.sampled_from([0.0, -1.0, 3e38, math.inf, -math.inf, math.nan]), min_size=1, max_size=5), st.data())
def test_a_step_is_finite_where_all_of_it_is(losses, data):
    """The flag is true exactly where each loss, and the gradients' norm, is finite in Python's sense, though the losses' sum be not."""
    norm = data.draw(st.sampled_from([0.0, 1.0, math.inf, math.nan]))
    expected = all(map(math.isfinite, [*losses, norm]))
    assert bool(is_finite(torch.tensor(losses), torch.tensor(norm))) is expected


@pytest.mark.parametrize(("size", "fine"), [(1e18, True), (1e19, True), (2e19, False), (1e30, False)])
def test_a_gradient_that_adam_cannot_square_is_not_finite(size, fine):
    """A finite float32 gradient is let through exactly where Adam's second moment of it is finite."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), size)
    norm = nn.utils.get_total_norm([weight.grad])
    adam = torch.optim.Adam([weight], lr=1.0, betas=(0.9, 0.0))
    adam.step()
    assert bool(is_finite(torch.zeros(1), norm)) is fine is bool(adam.state[weight]["exp_avg_sq"].isfinite())


# ---- events and the report


class Events(list):
    """A log in memory that holds strict JSON."""

    def add(self, kind, step, **facts):
        self.append(json.loads(json.dumps({"kind": kind, "step": step, **facts}, allow_nan=False)))


def test_a_line_names_the_samples():
    """A line holds first and last sample, those whose loss is not finite with their times, the norm and the counters; with finite losses it blames the gradient."""
    events, guard = Events(), Guard()
    index, t = torch.arange(12, 16), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    losses = torch.tensor([1.0, math.nan, 2.0, math.inf])
    record(events, guard.check(False), guard, 3, index, losses, torch.tensor(math.nan), t)
    record(events, guard.check(False), guard, 4, index + 4, torch.ones(4), torch.tensor(math.inf), t)
    first, second = events
    assert (first["kind"], first["step"], first["samples"], first["what"]) == ("skip", 3, [12, 15], "loss")
    assert first["not_finite"] == [13, 15] and first["times"] == [0.2, 0.4] and first["gradient_norm"] == "nan"
    assert (first["in_a_row"], first["skipped"], second["in_a_row"]) == (1, 1, 2)
    assert second["samples"] == [16, 19] and second["what"] == "gradient" and second["not_finite"] == []
    assert second["gradient_norm"] == "inf"


def a_step(recipe=None, size=8, first=40):
    """A denoiser, its objective and what it sees in one step: samples 40 ... 47."""
    recipe = recipe or tiny_recipe()
    state = TrainingState(recipe, 0, CPU)
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(size, 1, 8, 8, generator=generator) for _ in range(2))
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    with torch.no_grad():  # a fresh network's last layer is 0, and most gradients with it
        for weight in state.denoiser.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return state.denoiser, state.objective, Samples(torch.arange(first, first + size), x0, u, eps)


def strict(folder):
    """The report, read as strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.txt"]
    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)


def blamed(found):
    return {key: value for key, value in found.items() if key.endswith("not_finite") and value}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["x0", "eps"])
def test_the_report_names_the_poisoned_sample(tmp_path, value, what):
    """One number of one sample's data or noise is not finite: that sample is named and no other, no weight is, and the first layer is the network's first with an input that was not finite."""
    denoiser, objective, samples = a_step()
    getattr(samples, what)[5, 0, 3, 3] = value
    facts = {"step": 5, "learning_rate": 1e-3, "recipe": "etsdm"}
    found = strict(report(tmp_path, denoiser, objective, samples, **facts))
    assert {key: found[key] for key in facts} == facts
    assert blamed(found) == {"data_not_finite": [45], "losses_not_finite": [45]}
    names = [name for name, module in denoiser.network.named_modules() if name and not list(module.children())]
    assert found["first_layer"]["input_finite"] is False and found["first_layer"]["layer"] in names
    with torch.no_grad():
        losses = objective(denoiser, *samples[1:4])
    t = times(objective, denoiser, samples.u)
    assert [row["index"] for row in found["samples"]] == list(range(40, 48))
    assert [row["time"] for row in found["samples"]] == t.tolist()
    for row, loss in zip(found["samples"], losses.tolist(), strict=True):
        assert row["loss"] == (pytest.approx(loss, rel=1e-6) if math.isfinite(loss) else str(loss))
    assert [loss for row in found["samples"] if isinstance(loss := row["loss"], str)] == [str(losses[5].item())]
    text = (tmp_path / "nan_report" / "report.txt").read_text()
    assert "losses_not_finite: [45]" in text and "learning_rate: 0.001" in text


def test_the_report_names_the_poisoned_weight(tmp_path):
    """One weight is not finite: it is named, the first layer is its own with an input that was finite, and no sample's data is blamed."""
    denoiser, objective, samples = a_step()
    weights = dict(denoiser.network.named_parameters())
    name = [name for name in weights if name.endswith("weight")][-2]
    with torch.no_grad():
        weights[name].view(-1)[0] = math.nan
    found = strict(report(tmp_path, denoiser, objective, samples))
    assert blamed(found) == {"losses_not_finite": list(range(40, 48)), "weights_not_finite": [name]}
    layer = name.rpartition(".")[0]
    assert (found["first_layer"]["layer"], found["first_layer"]["input_finite"]) == (layer, True)
    assert found["by_layer"] == [] and all(row["share"] is None for row in found["by_time"])


class Rooted(nn.Module):
    """F = a x + sqrt(b |x|): finite everywhere, and its slope in b is not a number where x = 0."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x, c):
        return self.a * x + torch.sqrt(self.b * x.abs())


@pytest.mark.parametrize("guilty", [[0], [7], [2, 3], [0, 4, 7], list(range(8))])
def test_the_report_finds_gradients_by_halving(tmp_path, guilty):
    """Samples with finite losses and gradients that are not are named, exactly those, and left out of the shares."""
    denoiser, objective, samples = a_step()
    denoiser.network = Rooted()
    for i in guilty:
        samples.x0[i, 0, 0, 0] = samples.eps[i, 0, 0, 0] = 0
    found = strict(report(tmp_path, denoiser, objective, samples))
    assert blamed(found) == {"gradients_not_finite": [40 + i for i in guilty]}
    assert sum(row["not_finite"] for row in found["by_time"]) == len(guilty) and found["first_layer"] is None
    assert (found["by_layer"] == []) == (len(guilty) == 8)


def gradients(denoiser, loss):
    """Squared gradient norms by parameter with torch's backward on a copy's graph."""
    denoiser.zero_grad(set_to_none=True)
    loss.backward()
    found = {
        name: weight.grad.double().square().sum().item()
        for name, weight in denoiser.network.named_parameters()
        if weight.grad is not None
    }
    denoiser.zero_grad(set_to_none=True)
    return found


def test_shares_are_those_of_separate_gradients(tmp_path):
    """By time: |gradient of a bin's part|^2 over their sum, in bins of log(sigma / alpha); by layer: |gradient of the layer|^2 over that of all; each as backward computes it, and each sums to 1."""
    denoiser, objective, samples = a_step(size=12)
    found = strict(report(tmp_path, denoiser, objective, samples))
    assert blamed(found) == {} and found["first_layer"] is None
    level = denoiser.process(times(objective, denoiser, samples.u))
    floors = [math.floor(math.log(s / a)) for a, s in zip(level.alpha.tolist(), level.sigma.tolist(), strict=True)]
    keys = [min(6, max(-7, floor)) for floor in floors]
    expected = {}
    for key in sorted(set(keys)):
        rows = torch.tensor([k == key for k in keys])
        losses = objective(denoiser, *samples[1:4])
        expected[key] = sum(gradients(denoiser, losses[rows].sum() / 12).values())
    assert len(expected) > 3
    total = sum(expected.values())
    for row, (key, square) in zip(found["by_time"], expected.items(), strict=True):
        a, b = row["log_sigma_over_alpha"]
        assert (a, b) == (None if key == -7 else key, None if key == 6 else key + 1)
        assert row["samples"] == keys.count(key) and row["share"] == pytest.approx(square / total, rel=1e-4)
    layers = {}
    for name, square in gradients(denoiser, objective(denoiser, *samples[1:4]).mean()).items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0) + square
    whole = sum(layers.values())
    shares = {row["layer"]: row["share"] for row in found["by_layer"]}
    assert shares == pytest.approx({name: square / whole for name, square in layers.items()}, rel=1e-3, abs=1e-9)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for rows in ("by_time", "by_layer"):
        assert sum(row["share"] for row in found[rows]) == pytest.approx(1)


@pytest.mark.parametrize("outer", [nz.Antithetic, nz.Stratified])
def test_the_report_keeps_times_that_a_whole_batch_has(tmp_path, outer):
    """With times that depend on the whole batch, and an objective that learns, each sample is looked at in parts at the time that it had, and a learned weight that is poisoned is named."""
    recipe = replace(tiny_recipe(), times=outer(nz.DiscreteTimes()))
    denoiser, objective, samples = a_step(recipe)
    objective = nz.LearnedUncertainty(objective, terms=3)
    whole = strict(report(tmp_path / "whole", denoiser, objective, samples))
    parts = strict(report(tmp_path / "parts", denoiser, objective, samples, micro=3))
    assert [row["time"] for row in whole["samples"]] == times(objective, denoiser, samples.u).tolist()
    for one, other in zip(whole["by_time"] + whole["by_layer"], parts["by_time"] + parts["by_layer"], strict=True):
        assert one["share"] == pytest.approx(other["share"], rel=1e-3, abs=1e-9)
    assert [row["loss"] for row in whole["samples"]] == pytest.approx([row["loss"] for row in parts["samples"]])
    with torch.no_grad():
        objective.a[1] = math.nan
    found = strict(report(tmp_path / "learned", denoiser, objective, samples))
    assert found["weights_not_finite"] == ["objective.a"]


class Own(nn.Module):
    """An objective of one's own, which only gives losses."""

    def forward(self, denoiser, x0, u, eps):
        return denoiser.network(x0, u.float()).flatten(1).square().mean(1)


def test_any_objective_can_be_reported(tmp_path):
    """An objective that takes and tells no times gets a report of samples and layers, without times."""
    denoiser, _, samples = a_step()
    samples.x0[1] = math.nan
    found = strict(report(tmp_path, denoiser, Own(), samples))
    assert blamed(found) == {"data_not_finite": [41], "losses_not_finite": [41]}
    assert found["by_time"] == [] and found["by_layer"] and {row["time"] for row in found["samples"]} == {None}


def test_a_report_changes_nothing(tmp_path):
    """Weights, gradients, modes, hooks and torch's generator are after a report what they were before; a second report replaces the first."""
    denoiser, objective, samples = a_step()
    objective(denoiser, *samples[1:4]).mean().backward()
    samples.x0[3] = math.inf
    before = copy.deepcopy([(w, w.grad) for w in denoiser.network.parameters()])
    generator = torch.get_rng_state()
    for _ in range(2):
        folder = report(tmp_path, denoiser, objective, samples)
    assert folder == tmp_path / "nan_report" and [path.name for path in tmp_path.iterdir()] == ["nan_report"]
    for (weight, gradient), now in zip(before, denoiser.network.parameters(), strict=True):
        assert torch.equal(weight, now) and torch.equal(gradient, now.grad)
    assert torch.equal(torch.get_rng_state(), generator) and denoiser.network.training
    assert not any(module._forward_hooks for module in denoiser.network.modules())


def test_giving_up_is_one_line(tmp_path, faults):
    """The error names step, report and what is kept, exit 5; where the disk or the report fails it says so and is the same error."""
    denoiser, objective, samples = a_step()
    samples.x0[3] = math.nan
    guard = Guard(1, 0)
    guard.check(False)
    error = give_up(guard, 7, tmp_path, denoiser, objective, samples, recipe="etsdm")
    assert isinstance(error, NumericalError) and error.exit_code == 5 and "\n" not in str(error)
    assert f"step 7, after 0 roll backs; see {tmp_path / 'nan_report' / 'report.txt'}" in str(error)
    assert strict(tmp_path / "nan_report")["guard"] == guard.state()
    faults.arm("fsync", 1, OSError(28, "No space left on device"))
    assert "no report could be made (cannot write" in str(give_up(guard, 7, tmp_path, denoiser, objective, samples))
    faults.disarm()
    assert "no report could be made" in str(give_up(guard, 7, tmp_path, denoiser, None, samples))


# ---- memory


def raising(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**60),
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
        raising(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")),
        raising(MemoryError()),
    ],
    ids=["the CPU's allocator", "CUDA", "MPS", "Python"],
)
def test_the_end_of_memory_names_what_to_try(fail):
    """A real refusal of the CPU's allocator, and those of CUDA, MPS and Python, become exit 6 with --batch and --accumulate in one line."""
    with pytest.raises(OutOfMemoryError, match="--batch 64 --accumulate 2.*--batch 64 --accumulate 4") as caught:
        with memory_advice(64, 2):
            fail()
    assert caught.value.exit_code == 6 and "\n" not in str(caught.value) and is_out_of_memory(caught.value.__cause__)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), OutOfMemoryError("mine"), ArgumentError("a")])
def test_other_errors_pass(error):
    """What is no end of memory, or has been said already, comes out as it was."""
    with pytest.raises(type(error)) as caught:
        with memory_advice(4):
            raise error
    assert caught.value is error


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3))
def test_the_advice_keeps_the_batch(once, accumulation, processes):
    """Each accumulation that is named is larger, divides the batch among the processes and holds fewer images at once; none is named where one image is too much."""
    batch = once * accumulation * processes
    line = advice(batch, accumulation, processes)
    assert f"with {once} images at once" in line
    named = [part.split() for part in line.split("in smaller parts: ")[1:] for part in part.split(", or ")]
    assert bool(named) == (once > 1)
    for _, total, _, more, held, *_ in named:
        assert int(total) == batch and int(more) > accumulation
        assert int(more) * int(held.strip("(")) * processes == batch and int(held.strip("(")) < once


# ---- before it starts


def tensor_bytes(path):
    """The bytes of a safetensors file without its header."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.parametrize("uncertainty", [0, 8])
def test_the_size_of_a_checkpoint_is_that_of_its_files(tmp_path, uncertainty):
    """Before a step is done, the bytes foreseen are those of all tensors in the checkpoint that training writes, to the last."""
    averages = (recipes.EMA(0.9),) * (uncertainty // 4)
    recipe = replace(tiny_recipe(steps=1, averages=averages), uncertainty=uncertainty)
    foreseen = checkpoint_bytes(TrainingState(recipe, 0, CPU))
    run = train(recipe, pictures(), tmp_path / "run")
    written = [tensor_bytes(path) for path in run.checkpoint().glob("*.safetensors")]
    assert len(written) == (6 if uncertainty else 3) and foreseen == sum(written)


@pytest.mark.parametrize("kept", [1, 4])
def test_the_disk_must_hold_one_checkpoint_more_than_are_kept(tmp_path, monkeypatch, kept):
    """A byte less free than kept + 1 checkpoints and 1 MiB is refused with both numbers, unless the check is off; just enough is not."""
    recipe = tiny_recipe(batch=1)
    need = (kept + 1) * checkpoint_bytes(TrainingState(recipe, 0, CPU)) + 2**20
    usage = type("Usage", (), {"free": need})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    assert measure(recipe, tmp_path / "out", kept=kept).disk == need
    usage.free -= 1
    with pytest.raises(DiskError, match=f"needs {need / 1e6:,.1f} MB for {kept + 1} checkpoints") as caught:
        measure(recipe, tmp_path / "out", kept=kept)
    assert caught.value.exit_code == 7
    assert measure(recipe, tmp_path / "out", kept=kept, check_space=False).free == need - 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_permission_is_refused_before_a_network_is_made(tmp_path, monkeypatch):
    """A folder that cannot be written is exit 7 though the network could not even be built."""
    monkeypatch.setattr(files.os, "access", lambda path, how: False)
    monkeypatch.setattr(preflight, "TrainingState", raising(AssertionError("a network was made")))
    with pytest.raises(DiskError, match="no permission"):
        measure(tiny_recipe(), tmp_path / "out")


def test_a_batch_that_does_not_fit_is_found_before_training(tmp_path, monkeypatch):
    """When the measurement runs out of memory, the advice names the recipe's batch."""
    monkeypatch.setattr(preflight, "_speed", lambda state, recipe: torch.empty(2**60))
    with pytest.raises(OutOfMemoryError, match="--batch 4 --accumulate 2"):
        measure(tiny_recipe(), tmp_path)
