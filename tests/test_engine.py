"""Processes, micro-batches and precision: they change how a step is computed, and not what it trains on.

Run as a script, as the tests do, this file is one of several processes.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nearzero as nz
from conftest import pictures, tiny_recipe
from nearzero import recipes
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, DataError, NearzeroError
from nearzero.randomness import step_seed
from nearzero.training import draws
from nearzero.training import step as one_step
from nearzero.training.engine import Engine
from nearzero.training.loop import train
from nearzero.training.state import TrainingState
from nearzero.training.step import steps

CPU = torch.device("cpu")


@nz.register
@dataclass(frozen=True)
class Double:
    """A perceptron of 5,185 parameters in float64, of which one takes no part."""

    size: int = 8
    channels: int = 1

    def build(self):
        """Fresh."""
        return Perceptron()


class Perceptron(nn.Module):
    """Its module."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(65, 40).double(), nn.Linear(40, 64).double()
        self.idle = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x, c):
        """What a network answers."""
        features = torch.cat([x.flatten(1).double(), c[:, None].double() / 1000], 1)
        return 1.0 * self.second(torch.nn.functional.silu(self.first(features))).reshape(x.shape)  # no view


def made(recipe, **training):
    """The recipe with the perceptron, 5 steps of 8."""
    small = recipes.small(recipe, 8, 1)
    short = replace(small.training, **{"steps": 5, "batch": 8, **training})
    return replace(small, network=Double(), training=short, steps=3)


CASES = {
    "stratified": replace(made(recipes.etsdm(), flip=True, clip=0.5), times=nz.Stratified(nz.DiscreteTimes())),
    "antithetic": replace(made(recipes.ddpm()), times=nz.Antithetic(nz.DiscreteTimes())),
    "soft truncation": made(recipes.soft_truncation()),
    "uncertainty": made(recipes.edm_uncertainty()),
    "penalty": replace(made(recipes.ddpm()), penalty=0.1),
}
PARTS = {2: (1, 4), 4: (2,)}
SOME = ("stratified", "soft truncation")


def trace(recipe, engine):
    """Trains; every number of the state at the end, the losses, and what this process saw: indices and times."""
    seen, examples = [], one_step.examples

    def spy(recipe, images, seed, index, device):
        seen.append(index)
        return examples(recipe, images, seed, index, device)

    one_step.examples = spy
    try:
        state = TrainingState(recipe, 3, CPU, engine)
        found = [(now.loss, now.t, now.norm) for now in steps(state, recipe, pictures(), 3)]
    finally:
        one_step.examples = examples
    loss, t, norm = (torch.stack(parts) for parts in zip(*found, strict=True))
    tensors = {f"{file}/{name}": one for file, kept in state.tensors().items() for name, one in kept.items()}
    return {**tensors, "loss": loss, "t": t, "norm": norm, "index": torch.stack(seen)}


# ---- several processes


def worker(job, folder):
    """One of several processes."""
    for name in PAIR if job == "pair" else [job]:
        globals()[f"do_{name}"](Path(folder), int(os.environ["RANK"]))


PAIR = ("trace", "begin", "go_on", "poison", "refuse", "fail", "stop", "split")


def do_trace(folder, rank):
    """Every case."""
    for parts in PARTS[int(os.environ["WORLD_SIZE"])]:
        for name in CASES if parts == 1 else SOME:
            found = trace(CASES[name], Engine(accumulation=parts))
            save_file({key: one.detach().contiguous() for key, one in found.items()}, folder / f"{name}-{parts}-{rank}")


def told(folder, call):
    """Writes down how a call ends: a class and what it says."""
    try:
        call()
    except (NearzeroError, SystemExit) as error:
        folder.write_text(f"{type(error).__name__}: {error}")


def part(steps):
    """The first steps of the stratified case."""
    recipe = CASES["stratified"]
    return replace(recipe, training=replace(recipe.training, steps=steps))


def do_begin(folder, rank):
    """Two of five steps."""
    train(part(2), pictures(), folder / "mine", seed=3)


def do_go_on(folder, rank):
    """The rest of a run of which others did two."""
    train(part(5), pictures(), folder / "theirs", seed=3, resume=True, engine=Engine(accumulation=2))


class Poisoned(nn.Module):
    """An objective that is not a number at the last sample of its micro-batch."""

    def __init__(self, objective):
        super().__init__()
        self.objective, self.times = objective, objective.times

    def at(self, *arguments):
        """With its last loss spoilt."""
        now = self.objective.at(*arguments)
        return now._replace(loss=torch.cat([now.loss[:-1], now.loss[-1:] * torch.nan]))


def do_poison(folder, rank):
    """A loss that is not a number in one process only."""
    state = TrainingState(part(5), 3, CPU, Engine())
    if rank == 1:
        state.losses.module.objective = Poisoned(state.objective)
    losses = one_step.gradient(state, part(5), pictures(), 3, one_step.times(state, part(5), 3))
    save_file({"losses": losses, "norm": state.clip()}, folder / f"poison-{rank}")
    assert state.engine.any(rank == 1, False) == [True, False]


def do_refuse(folder, rank):
    """What no process accepts."""
    told(folder / f"refuse-{rank}", lambda: train(part(5), pictures(size=4), folder / "out"))


def do_fail(folder, rank):
    """One process fails where all wait for each other."""

    def fail():
        with Engine().together():
            if rank == 1:
                raise DataError("rank 1 cannot read")

    told(folder / f"fail-{rank}", fail)


def do_stop(folder, rank):
    """A signal for one process in the middle of a run, which then goes on."""
    step = TrainingState.apply

    def apply(self):
        if rank == 1 and self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    TrainingState.apply = apply
    told(folder / f"stop-{rank}", lambda: train(part(5), pictures(), folder / "stopped", seed=3))
    TrainingState.apply = step
    (folder / f"stopped-at-{rank}").write_text(str(nz.Run.load(folder / "stopped").step))
    Engine().any(True)  # both have looked
    train(part(5), pictures(), folder / "stopped", seed=3, resume=True)


def do_die(folder, rank):
    """One process is killed in the middle of a run."""
    step = TrainingState.apply

    def apply(self):
        if rank == 1 and self.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self)

    TrainingState.apply = apply
    train(part(5), pictures(), folder / "run", checkpoint_every=2)


def do_split(folder, rank):
    """Weights split among processes."""
    for name in ("stratified", "uncertainty", "penalty"):
        found = trace(CASES[name], Engine(strategy="fsdp", accumulation=2))
        save_file({key: one.detach().contiguous() for key, one in found.items()}, folder / f"{name}-split-{rank}")
    train(part(2), pictures(), folder / "split", seed=3, engine=Engine(strategy="fsdp"))
    train(part(5), pictures(), folder / "split", seed=3, engine=Engine(strategy="fsdp"), resume=True)


def start(job, folder, processes):
    """Starts processes of this file, as torchrun would, and returns them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    where |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", __file__, job, str(folder)],
            env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(started, within=120):
    """Their exit codes and what they said."""
    said = [process.communicate(timeout=within) for process in started]
    return [process.returncode for process in started], said


def several(job, folder, processes):
    """Runs processes of this file; all must end well."""
    codes, said = ended(start(job, folder, processes))
    assert codes == [0] * processes, said
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        worker(*sys.argv[1:])
    except NearzeroError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit()


@pytest.fixture(scope="module")
def alone():
    """What one process does in one piece."""
    return {name: trace(recipe, Engine()) for name, recipe in CASES.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes did: all of PAIR, started once, as starting takes longer than doing it."""
    folder = tmp_path_factory.mktemp("pair")
    train(part(2), pictures(), folder / "theirs", seed=3)
    return several("pair", folder, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What four processes did."""
    return several("trace", tmp_path_factory.mktemp("four"), 4)


def agree(found, expected, name):
    """The same times, exactly, and the same numbers but for float64's rounding; float32's, where an objective has its own weights."""
    assert torch.equal(found["t"], expected["t"])
    near = 1e-5 if name == "uncertainty" else 1e-10
    for key, one in expected.items():
        if key != "index":
            torch.testing.assert_close(
                found[key], one, rtol=near, atol=near, msg=lambda text, key=key: f"{name}, {key}: {text}"
            )


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_nothing_but_rounding(alone, parts):
    """2 and 4 micro-batches see the same samples at the same times, and end in the same float64 weights to 1e-10."""
    for name, recipe in CASES.items():
        found = trace(recipe, Engine(accumulation=parts))
        agree(found, alone[name], name)
        assert torch.equal(found["index"].reshape(5, 8), torch.arange(40).reshape(5, 8))
        assert found["index"].shape == (5 * parts, 8 // parts)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_change_nothing_but_rounding(alone, request, processes):
    """2 processes with 1 and 4 micro-batches, and 4 with 2, share the samples of each step and end in the same float64 weights to 1e-10, in every process."""
    folder = request.getfixturevalue({2: "pair", 4: "four"}[processes])
    for parts in PARTS[processes]:
        for name in CASES if parts == 1 else SOME:
            found = [load_file(folder / f"{name}-{parts}-{rank}") for rank in range(processes)]
            for one in found:
                agree(one, alone[name], name)
                assert all(torch.equal(one[key], found[0][key]) for key in one if key != "index")
            index = torch.stack([one["index"].reshape(5, -1) for one in found], 1)
            assert torch.equal(index.reshape(5, 8), torch.arange(40).reshape(5, 8))


def same_weights(run, expected):
    """The run's weights are those, to float64's rounding."""
    for key, weight in load_file(run.checkpoint() / "weights.safetensors").items():
        torch.testing.assert_close(weight, expected[f"weights/{key}"].detach(), rtol=1e-10, atol=1e-10)


def test_a_run_goes_on_with_other_processes(pair, alone):
    """Two steps in one process and three in two with two micro-batches, or two in two and three in one, are five in one, to 1e-10."""
    train(part(5), pictures(), pair / "mine", seed=3, resume=True)
    for name in ("theirs", "mine"):
        run = nz.Run.load(pair / name)
        assert run.step == 5
        same_weights(run, alone["stratified"])


def test_a_number_that_is_none_in_one_process_is_none_in_all(pair):
    """A loss of process 1 that is not a number is seen by both, and so is the gradient's norm; a flag of one is a flag of all."""
    for rank in range(2):
        one = load_file(pair / f"poison-{rank}")
        assert one["losses"].isnan().tolist() == [False] * 7 + [True]
        assert bool(one["norm"].isnan())


def test_an_error_of_one_process_is_raised_once_and_ends_all(pair):
    """What no process accepts is raised by the first; what one fails at, by that one; the others exit with the same code and say nothing."""
    assert (pair / "refuse-0").read_text().startswith("DataError: the network takes")
    assert (pair / "fail-1").read_text() == "DataError: rank 1 cannot read"
    assert (pair / "refuse-1").read_text() == (pair / "fail-0").read_text() == "SystemExit: 3"
    assert not (pair / "out").exists()


def test_a_signal_for_one_process_stops_all(pair, alone):
    """SIGTERM for process 1 in step 3 stops both after that step with a checkpoint, and the run that goes on ends as one that was not stopped."""
    for rank in range(2):
        assert (pair / f"stop-{rank}").read_text().startswith("Stopped: stopped at step 3 of 5")
        assert (pair / f"stopped-at-{rank}").read_text() == "3"
    same_weights(nz.Run.load(pair / "stopped"), alone["stratified"])


def test_split_weights_are_the_same_weights(pair, alone):
    """With fsdp in two processes weights, averages and moments are those of one process to 1e-10, and a run that stops goes on with them."""
    for name in ("stratified", "uncertainty", "penalty"):
        for rank in range(2):
            agree(load_file(pair / f"{name}-split-{rank}"), alone[name], name)
    same_weights(nz.Run.load(pair / "split"), alone["stratified"])


def test_a_process_that_dies_ends_all(tmp_path):
    """With process 1 killed in step 3, process 0 ends within a minute with one line; the checkpoint of step 2 is there to go on with.

    Once in some hundred times torch's gloo aborts process 0 in a thread or destructor of its own, out of Python's reach.
    """
    codes, said = ended(start("die", tmp_path, 2), within=60)
    assert codes[0] in (1, -signal.SIGABRT) and codes[1] == -signal.SIGKILL, said
    assert "NearzeroError: another of the 2 processes has ended" in said[0][1] or codes[0] != 1
    assert nz.Run.load(tmp_path / "run").step == 2


def test_torchrun_trains(tmp_path):
    """`torchrun --nproc_per_node=2 -m nearzero train` writes the run of one process but for rounding, and says everything once."""
    asked = ["train", "etsdm", "--steps", "2", "--batch", "4", "--size", "8", "--preset", "small", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "nearzero", *asked, "--accumulate", "2", "--out", str(tmp_path / "two"), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["processes"] == 2
    assert done.stderr.count("recipe ") == 1
    assert "2 steps of 4 images (2 processes x 2 parts of 1) on cpu" in done.stderr
    assert command([*asked, "--out", str(tmp_path / "one")]) == 0
    one, two = (nz.Run.load(tmp_path / name) for name in ("one", "two"))
    assert one.recipe == two.recipe and two.step == 2
    for a, b in zip(*(load_file(run.checkpoint() / "ema.safetensors").values() for run in (one, two)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# ---- one process


@pytest.mark.parametrize(
    ("batch", "parts", "said"),
    [
        (
            7,
            2,
            "a batch of 7 does not divide into 1 processes times 2 micro-batches; use --batch 6 or 8, or --accumulate 1 or 7",
        ),
        (3, 4, "use --batch 4, or --accumulate 3"),
        (6, 4, "use --batch 4 or 8, or --accumulate 3 or 6"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(tmp_path, batch, parts, said):
    """The refusal names batch, processes and micro-batches with the nearest that fit, before a folder is made; each of them does fit."""
    with pytest.raises(ArgumentError, match=re.escape(said)):
        train(tiny_recipe(batch=batch), pictures(), tmp_path / "run", engine=Engine(accumulation=parts))
    assert not (tmp_path / "run").exists()
    near, _, other = said.partition("use --batch ")[2].partition(", or --accumulate ")
    for fits in near.split(" or "):
        Engine(accumulation=parts).rows(int(fits))
    for fits in other.split(" or "):
        Engine(accumulation=int(fits)).rows(batch)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'; known: no, bf16, fp16"),
        ({"precision": "fp16"}, "fp16 needs a CUDA device, got cpu; use bf16"),
        ({"strategy": "zero"}, "unknown strategy 'zero'; known: ddp, fsdp"),
        ({"strategy": "fsdp"}, "there is one; start more with torchrun"),
        ({"accumulation": 0}, "at least 1, got 0"),
        ({"accumulation": 1.5}, "at least 1, got 1.5"),
    ],
)
def test_what_an_engine_refuses(asked, said):
    """Each refusal is one line with the value and the remedy."""
    with pytest.raises(ArgumentError, match=said):
        Engine(**asked)


def first_gradient(engine, recipe):
    """The losses and the gradient of the first step."""
    state = TrainingState(recipe, 0, CPU, engine)
    for weight in state.weights.values():
        weight.data.add_(0.01)  # layers that are zero at the start hide what comes before them
    losses = one_step.gradient(state, recipe, pictures(), 0, one_step.times(state, recipe, 0))
    return losses, {name: weight.grad.clone() for name, weight in state.trained.items()}


def test_checkpointing_changes_no_gradient(monkeypatch):
    """Features computed a second time give the same losses and gradients bit for bit, float64, and are indeed computed again."""
    build, calls = nz.UNet.build, []

    def double(self):
        network = build(self).double()
        forward = network.forward
        network.forward = lambda x, c: forward(x.double(), c.double())
        network.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
        return network

    monkeypatch.setattr(nz.UNet, "build", double)
    plain, once = first_gradient(Engine(), tiny_recipe()), len(calls)
    again, twice = first_gradient(Engine(checkpointing=True), tiny_recipe()), len(calls) - once
    assert once == 1 and twice == 2
    assert torch.equal(plain[0], again[0]) and plain[0].dtype == torch.float64
    for name, gradient in plain[1].items():
        torch.testing.assert_close(again[1][name], gradient, rtol=1e-12, atol=1e-14)


def test_checkpointing_needs_a_network_that_can():
    """Another network is refused by name."""
    with pytest.raises(ArgumentError, match="Perceptron has no gradient checkpointing; leave out --checkpointing"):
        TrainingState(CASES["penalty"], 0, CPU, Engine(checkpointing=True))


def test_bfloat16_trains_alike(tmp_path):
    """In bfloat16, whose numbers have 8 bits, losses and gradients are those of float32 within 2 %; weights and moments stay float32, and the run resumes bit for bit."""
    (plain, gradient), (cast, other) = (
        first_gradient(Engine(precision=name), tiny_recipe()) for name in ("no", "bf16")
    )
    assert not torch.equal(plain, cast) and cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0.02, atol=0)
    a, b = (torch.cat([one.flatten() for one in grads.values()]) for grads in (gradient, other))
    assert (a - b).norm() < 0.02 * a.norm()
    whole = train(tiny_recipe(), pictures(), tmp_path / "whole", engine=Engine(precision="bf16"))
    train(tiny_recipe(steps=3), pictures(), tmp_path / "parts", engine=Engine(precision="bf16"))
    parts = train(tiny_recipe(), pictures(), tmp_path / "parts", resume=True, engine=Engine(precision="bf16"))
    for file in ("weights", "ema", "optimizer"):
        a, b = (load_file(run.checkpoint() / f"{file}.safetensors") for run in (whole, parts))
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == torch.float32 for name in a)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_trains_alike():
    """torch.compile changes losses and gradients by rounding only, and the state still holds the network itself."""
    plain, gradient = first_gradient(Engine(), tiny_recipe())
    compiled, other = first_gradient(Engine(compile=True), tiny_recipe())
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    for name in gradient:
        torch.testing.assert_close(other[name], gradient[name], rtol=1e-3, atol=1e-4)


def test_the_network_draws_by_step_and_row():
    """torch's generator is seeded by (seed, step, first row of the micro-batch): all differ, and row 0 has the seed of a step in one piece."""
    seeds = {
        (seed, step, row): draws.network_seed(seed, step, row)
        for seed in (0, 1)
        for step in range(9)
        for row in range(9)
    }
    assert len(set(seeds.values())) == len(seeds)
    assert all(seeds[seed, step, 0] == step_seed(seed, step) for seed in (0, 1) for step in range(9))
