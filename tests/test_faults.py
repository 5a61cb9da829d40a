"""Faults from end to end: what a run is after signals, kills, full disks, poisoned numbers, damage and change.

Run as a script, as the tests do, this file is the process that something happens to.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nearzero as nz
from conftest import pictures, tiny_recipe, tree, write_folder
from nearzero import files
from nearzero.cli import run as command
from nearzero.errors import NearzeroError, Stopped
from nearzero.manifest import Keep, problem, write_manifest
from nearzero.run import Run, is_run
from nearzero.training import checkpoint, loop, preflight, sinks
from nearzero.training.engine import Engine
from nearzero.training.events import Appender, read_events
from nearzero.training.lock import holder
from nearzero.training.state import TrainingState

SOURCE = Path(nz.__file__).parents[1]
ALONE = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
LONG = 60
"""Steps of the run that is stopped at twenty moments."""


@nz.register
@dataclass(frozen=True)
class Sour:
    """A perceptron whose answer is not a number from its `first` call in training to its `last`."""

    size: int = 8
    channels: int = 1
    first: int = 0
    last: int = 0

    def build(self):
        """Fresh."""
        return SourNetwork(self.first, self.last)


class SourNetwork(nn.Module):
    """Its module."""

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last, self.calls, self.linear = first, last, 0, nn.Linear(64, 64)

    def forward(self, x, c):
        """c is left aside."""
        self.calls += self.training
        y = self.linear(x.flatten(1)).reshape(x.shape)
        return y * torch.nan if self.training and self.first <= self.calls <= self.last else y


# ---- the process that something happens to


def go_on(out, *more):
    """`nearzero train --resume` here; its exit code."""
    return command(["train", "--resume", "--out", str(out), "--device", "cpu", *map(str, more)])


def do_deaf(folder):
    """A run whose fifth step does not end."""
    apply, signals, asked = TrainingState.apply, loop.stop_on_signals, []

    @contextlib.contextmanager
    def watched():
        with signals() as stopping:
            asked.append(stopping)
            yield stopping

    def slow(self):
        if self.step == 4 and asked:
            (folder / "deaf").touch()
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                if asked[0]():
                    (folder / "heard").touch()
                time.sleep(0.01)
        apply(self)

    TrainingState.apply, loop.stop_on_signals = slow, watched
    return go_on(folder / "run", "--checkpoint-every", 2, "--no-space-check")


def do_pair(folder):
    """One of two processes, of which the second has a loss that is not a number in its first step."""
    rank, backward = os.environ["RANK"], Engine.backward
    poisoned = []

    def sour(self, module, x0, t, eps, *, last):
        if rank == "1" and module.training and not poisoned and (folder / "run/events.jsonl").exists():
            poisoned.append(1)
            x0 = x0 * torch.nan
        return backward(self, module, x0, t, eps, last=last)

    Engine.backward = sour
    code = go_on(folder / "run", "--steps", 5000, "--checkpoint-every", 4)
    (folder / f"code-{rank}").write_text(str(code))
    return code


def do_serve(folder):
    """Forks a process for each line that is read, says its id, and its exit code when it has ended."""
    os.fsync = lambda handle: None  # what a process wrote outlives it without, and a busy disk makes it slow
    import test_checkpoint  # noqa: F401  once for all

    with tempfile.TemporaryDirectory() as warm:  # torch imports much of itself at the first step
        nz.train(tiny_recipe(steps=1), pictures(), Path(warm) / "run")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = globals()[f"one_{asked.pop('job')}"](**asked)
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0


def one_train(out, armed):
    """The long run, from where it is; `armed` appears when it takes signals."""
    original = loop.stop_on_signals

    @contextlib.contextmanager
    def watched():
        with original() as stopping:
            Path(armed).touch()
            yield stopping

    loop.stop_on_signals = watched
    return long_run(Path(out), progress=lambda now: time.sleep(0.005))


def long_run(out, **how):
    """The run that is stopped at twenty moments; its exit code."""
    try:
        recipe = tiny_recipe(steps=LONG, flip=True)
        nz.train(recipe, pictures(), out, resume=is_run(out), checkpoint_every=4, preview_every=6, **how)
    except NearzeroError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def one_killed(out, at, overwrite=False):
    """A run of four steps that is killed at its `at`-th change of the disk."""
    from test_checkpoint import Killer

    Killer(at)
    how = {"overwrite": True} if overwrite else {"resume": is_run(Path(out))}
    nz.train(tiny_recipe(steps=4), pictures(), Path(out), **how, checkpoint_every=2)
    return 0


if __name__ == "__main__":
    sys.exit(globals()[f"do_{sys.argv[1]}"](Path(sys.argv[2])))


# ---- those who look on


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six images of 8 x 8 pixels."""
    return write_folder(tmp_path_factory.mktemp("faults") / "data")


@pytest.fixture
def begun(data, tmp_path):
    """Makes tmp_path/NAME, a run of the tiny recipe on the images that has not done a step."""

    def make(name="run", network=None, **training):
        recipe = tiny_recipe(**training)
        recipe = recipe if network is None else replace(recipe, network=network)
        source = {"data": str(data), "preset": "small"}
        out = tmp_path / name
        out.mkdir()
        return Run.create(out, recipe, {**nz.read_folder(data).describe(), "source": source}, 0).path

    return make


def newest(out):
    """Every bit of a run's newest checkpoint, by file name."""
    path = Run.load(out).checkpoint()
    return {"checkpoint": path.name, **tree(path)}


def log(out):
    """stats.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    clock = ("timestamp", "Progress/images_per_sec")
    return [{k: v for k, v in row.items() if k not in clock and not k.startswith("Timing/")} for row in rows]


def happened(out, *kinds):
    """The events of these kinds, of all by default."""
    return [event for event in read_events(out / "events.jsonl") if not kinds or event["kind"] in kinds]


def steps_of(out, *kinds):
    """Their steps."""
    return [event["step"] for event in happened(out, *kinds)]


def process(*arguments, **how):
    """A Python process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=ALONE, **{**pipes, **how})


def wait_for(what, running, seconds=120):
    """Polls until `what()`, while the process runs."""
    deadline = time.monotonic() + seconds
    while not what():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def damage(path, how):
    """Flips one bit of a file, or cuts off its end."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content if how == "one bit" else content[:-10])


# ---- signals


class Server:
    """Starts processes that have imported everything."""

    def __init__(self, folder):
        with (folder / "said").open("w") as said:
            pipes = {"stdin": subprocess.PIPE, "stderr": said}
            self.folder, self.process = folder, process(__file__, "serve", folder, **pipes)

    def start(self, **asked):
        """Its id."""
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def code(self):
        """The exit code of the one that was started."""
        return int(self.process.stdout.readline())

    def said(self):
        """What all said on stderr."""
        return (self.folder / "said").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests."""
    one = Server(tmp_path_factory.mktemp("server"))
    yield one
    one.process.communicate(timeout=60)


def test_sigterm_at_twenty_random_moments(tmp_path, server):
    """F9, F10: a process that gets SIGTERM at any of twenty random moments, start-up and saves and previews among them, ends
    with 75 and a whole checkpoint, and run upon run that went on after it ends in the bits, lines and previews of one
    that was not stopped."""
    assert long_run(tmp_path / "whole") == 0
    expected = newest(tmp_path / "whole"), log(tmp_path / "whole"), tree(tmp_path / "whole/previews")
    rng, stopped, early, runs, tries, code = random.Random(7), [], 0, 0, 0, 75
    while len(stopped) < 20 or code != 0:
        tries += 1
        assert tries <= 100
        out, armed = tmp_path / f"run{runs}", tmp_path / f"armed{tries}"
        child = server.start(job="train", out=str(out), armed=str(armed))
        if len(stopped) < 20:
            time.sleep(0.4 * rng.random())
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        code = server.code()
        done = is_run(out) and Run.load(out).step == LONG
        if code == 75:
            stopped.append(Run.load(out).step)
            assert f"stopped at step {stopped[-1]} of {LONG}" in server.said() and not done
        elif code == -signal.SIGTERM and not done:
            early += 1
            assert not armed.exists()  # before a run takes signals there is nothing to save
        else:
            assert code in (0, -signal.SIGTERM) and done, server.said()  # the signal came too late
            code, runs = 0, runs + 1
            assert (newest(out), log(out), tree(out / "previews")) == expected
            assert Run.load(out).checkpoint() is not None and not list((out / "checkpoints").glob(".*"))
    assert len(stopped) == 20 and runs > 0
    print(f"stopped at {stopped}, {early} times before it took signals, {runs} runs")


def test_sigterm_to_the_command_in_the_middle_of_a_step(begun, capsys):
    """F9: SIGTERM to `nearzero train` is exit 75, one line and a checkpoint that verifies; --resume ends in the bits of a run without it."""
    out = begun(steps=100_000, batch=2)
    running = process("-m", "nearzero", "train", "--resume", "--out", out, "--checkpoint-every", 3, "--device", "cpu")
    wait_for(lambda: (out / "checkpoints").is_dir() and Run.load(out).step, running)
    running.terminate()
    said, err = running.communicate(timeout=120)
    step = Run.load(out).step
    assert (running.returncode, said) == (75, "") and f"nearzero: stopped at step {step} of 100000" in err
    assert command(["verify", str(out)]) == 0 and holder(out) is None
    assert go_on(out, "--steps", step + 2, "--checkpoint-every", 3) == 0
    whole = begun("whole", steps=step + 2, batch=2)
    assert go_on(whole, "--checkpoint-every", 3) == 0
    assert newest(out) == newest(whole) and log(out) == log(whole)


@pytest.mark.parametrize("piece", [1, 3])
def test_sigterm_during_a_save(tmp_path, monkeypatch, trained, piece):
    """F10: a SIGTERM that comes while a checkpoint is half-written leaves that checkpoint whole, saves no step twice, and is exit 75."""
    write_parts, written = checkpoint.write_parts, []

    def write(path, *arguments):
        written.append(path)
        if len(written) == piece:
            os.kill(os.getpid(), signal.SIGTERM)
        return write_parts(path, *arguments)

    monkeypatch.setattr(checkpoint, "write_parts", write)
    out = tmp_path / "run"
    with pytest.raises(Stopped) as caught:
        nz.train(tiny_recipe(), pictures(), out, checkpoint_every=2, keep=Keep(9))
    saved = steps_of(out, "checkpoint")
    assert caught.value.exit_code == 75 and saved[0] == 2 and len(saved) == len(set(saved))
    assert [problem(path) for path in sorted((out / "checkpoints").iterdir())] == [None] * len(saved)
    assert newest(nz.train(tiny_recipe(), pictures(), out, resume=True).path) == newest(trained.path)


def test_a_second_sigint_to_the_command(begun, capsys):
    """F11: while a step does not end, the second SIGINT is exit 130 at once, with the checkpoint before it as it was."""
    out = begun()
    running = process(__file__, "deaf", out.parent)
    wait_for(lambda: (out.parent / "deaf").exists() and Run.load(out).step == 4, running)
    before = newest(out)
    running.send_signal(signal.SIGINT)
    wait_for((out.parent / "heard").exists, running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.splitlines()[-1] == "nearzero: error: interrupted"
    assert newest(out) == before and before["checkpoint"] == "000000004"
    assert go_on(out, "--checkpoint-every", 2) == 0
    whole = begun("whole")
    assert go_on(whole, "--checkpoint-every", 2) == 0 and newest(out) == newest(whole)


def test_two_processes_are_poisoned_and_stopped_together(begun, tmp_path, capsys):
    """F12, F15, F26: under torchrun both processes leave out a step that is poisoned in one; SIGTERM to torchrun's group and to
    both is 75 in each with a checkpoint that verifies; each change of the number of processes is an event."""
    out = begun(steps=5000)
    assert go_on(out, "--steps", 2) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    running = process(*torchrun, __file__, "pair", tmp_path, start_new_session=True)
    wait_for(lambda: Run.load(out).step > 4, running)
    pid = holder(out).pid
    os.killpg(running.pid, signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _, err = running.communicate(timeout=120)
    assert [(tmp_path / f"code-{rank}").read_text() for rank in (0, 1)] == ["75", "75"], err
    step = Run.load(out).step
    assert f"stopped at step {step} of 5000" in err
    assert command(["verify", str(out)]) == 0
    (skip,) = happened(out, "skip")
    assert (skip["step"], skip["what"], len(skip["not_finite"])) == (3, "loss", 2)
    assert go_on(out, "--steps", step + 1) == 0
    assert [event["processes"] for event in happened(out, "split_changed")] == [2, 1]
    assert steps_of(out, "split_changed") == [2, step]


# ---- kills


def test_killed_anywhere_from_start_to_end(tmp_path, server):
    """F1, F2: kill -9 at each of a run's first changes of the disk, and at some of the rest, leaves a folder in which the same
    call goes on, to the bits of a run that was not killed."""
    whole = nz.train(tiny_recipe(steps=4), pictures(), tmp_path / "whole", checkpoint_every=2)
    expected = newest(whole.path)
    for at in [*range(1, 15), *random.Random(1).sample(range(15, 60), 5)]:
        out = tmp_path / str(at)
        server.start(job="killed", out=str(out), at=at)
        assert server.code() == -signal.SIGKILL, (at, server.said())
        server.start(job="killed", out=str(out), at=10**6)
        assert server.code() == 0, (at, server.said())
        assert newest(out) == expected and log(out) == log(whole.path), at
        assert not [name for name in tree(out) if "/." in name or name.startswith(".")], at
        shutil.rmtree(out)


def test_killed_while_it_overwrites(tmp_path, server):
    """F1: kill -9 at some change of the disk by which --overwrite deletes the old run leaves a folder that the same call overwrites."""
    old = nz.train(tiny_recipe(steps=1), pictures(), tmp_path / "old", seed=1)
    expected = newest(nz.train(tiny_recipe(steps=4), pictures(), tmp_path / "whole", checkpoint_every=2).path)
    for at in sorted(random.Random(2).sample(range(1, 21), 8)):
        out = shutil.copytree(old.path, tmp_path / str(at))
        server.start(job="killed", out=str(out), at=at, overwrite=True)
        assert server.code() == -signal.SIGKILL, (at, server.said())
        server.start(job="killed", out=str(out), at=10**6, overwrite=True)
        assert server.code() == 0, (at, server.said())
        assert newest(out) == expected, at


def test_a_second_process_is_refused_and_a_killed_one_is_not_in_the_way(begun, capsys):
    """F28: while a process trains, another is exit 2 and names it; once it is killed the next takes the lock, and ends in the bits of a run without all this."""
    out = begun(steps=100_000, batch=2)
    running = process("-m", "nearzero", "train", "--resume", "--out", out, "--checkpoint-every", 3, "--device", "cpu")
    wait_for(lambda: (out / "checkpoints").is_dir() and Run.load(out).step, running)
    capsys.readouterr()
    assert go_on(out, "--no-space-check") == 2
    assert f"is being written by process {running.pid} on " in capsys.readouterr().err.splitlines()[-1]
    assert command(["status", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["pid"] == running.pid
    running.kill()
    running.communicate(timeout=60)
    step = Run.load(out).step
    assert go_on(out, "--steps", step + 2, "--checkpoint-every", 3) == 0
    whole = begun("whole", steps=step + 2, batch=2)
    assert go_on(whole, "--checkpoint-every", 3) == 0
    assert newest(out) == newest(whole) and log(out) == log(whole)


# ---- damage


@pytest.mark.filterwarnings("default:left out a damaged")
@pytest.mark.parametrize("how", ["one bit", "cut"])
def test_a_damaged_newest_checkpoint(begun, tmp_path, capsys, how):
    """F3, F4: where the newest checkpoint is damaged, sample and --resume take the one before, name the file in one line, and --resume ends in the bits of an undamaged run."""
    out = begun(steps=4)
    assert go_on(out, "--checkpoint-every", 2, "--keep", 2) == 0
    older = shutil.copytree(out, tmp_path / "older")
    shutil.rmtree(older / "checkpoints/000000004")
    damage(out / "checkpoints/000000004/ema.safetensors", how)
    asked = ["-n", "2", "--steps", "2", "--device", "cpu"]
    for run in (out, older):
        capsys.readouterr()
        assert command(["sample", str(run), *asked, "--out", str(tmp_path / f"samples-{run.name}")]) == 0
        named = [line for line in capsys.readouterr().err.splitlines() if "left out a damaged" in line]
        assert len(named) == (run is out), named
        assert all("000000004/ema.safetensors has" in line and "using 000000002" in line for line in named)
    images = [{k: v for k, v in tree(tmp_path / f"samples-{run.name}").items() if k.endswith(".png")} for run in (out, older)]  # fmt: skip
    assert images[0] == images[1] and len(images[0]) >= 2
    assert go_on(out, "--checkpoint-every", 2, "--steps", 6) == 0
    named = [line for line in capsys.readouterr().err.splitlines() if "left out a damaged" in line]
    assert len(named) == 1 and "000000004/ema.safetensors has" in named[0], named
    assert steps_of(out, "checkpoint") == [2, 4, 4, 6]
    whole = begun("whole", steps=6)
    assert go_on(whole, "--checkpoint-every", 2) == 0 and newest(out) == newest(whole)


def test_steps_count_and_not_times(begun):
    """F2, F32: --resume goes on from the highest step, whichever checkpoint was touched last and with half a newer one beside it."""
    out = begun(steps=4)
    assert go_on(out, "--checkpoint-every", 2, "--keep", 2) == 0
    for path in [*(out / "checkpoints/000000004").iterdir(), out / "checkpoints/000000004"]:
        os.utime(path, (1, 1))
    aside = out / "checkpoints/.tmp-000000006-ab_c1234"
    shutil.copytree(out / "checkpoints/000000002", aside)
    assert go_on(out, "--checkpoint-every", 2, "--steps", 6) == 0
    assert steps_of(out, "checkpoint") == [2, 4, 6] and not aside.exists()
    assert happened(out, "cleaned")[0]["removed"] == [aside.name]


# ---- disks


def test_three_full_disks_in_a_row(begun, monkeypatch, capsys):
    """F5: with no room for checkpoints training goes on twice with a warning and an event, the third is exit 7; the old checkpoint stays, and with room again --resume ends in the same bits."""
    out, write_parts = begun(steps=12), checkpoint.write_parts

    def full(path, *arguments):
        if int(path.parent.name.split("-")[1]) > 2:
            with files.disk_errors(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_parts(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_parts", full)
        assert go_on(out, "--checkpoint-every", 2) == 7
    lines = capsys.readouterr().err.splitlines()
    assert sum("training goes on, the next checkpoint tries again" in line for line in lines) == 2
    assert lines[-1].startswith("nearzero: error: cannot write") and "free some space" in lines[-1]
    assert [(one["step"], one["failures"]) for one in happened(out, "disk_full")] == [(4, 1), (6, 2), (8, 3)]
    assert os.listdir(out / "checkpoints") == ["000000002"] and command(["verify", str(out)]) == 0
    whole = begun("whole", steps=12)
    assert go_on(out, "--checkpoint-every", 2) == 0 == go_on(whole, "--checkpoint-every", 2)
    assert newest(out) == newest(whole) and log(out) == log(whole)


def test_no_room_for_logs(begun, monkeypatch, capsys):
    """F6: with no room for a line in any log the command ends well, with one warning for each file and the bits of a run with room."""
    out = begun(steps=100, batch=1)

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Appender, "_write", full)
        assert go_on(out, "--checkpoint-every", 50) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert sorted(Path(line.split(": ")[2].split()[-1]).name for line in warned) == ["events.jsonl", "stats.jsonl"]
    assert not (out / "events.jsonl").exists() and (out / "stats.jsonl").read_text() == ""
    whole = begun("whole", steps=100, batch=1)
    assert go_on(whole, "--checkpoint-every", 50) == 0 and newest(out) == newest(whole)


def test_space_is_asked_for_before(begun, monkeypatch, capsys):
    """F7: with room for less than two checkpoints the command is exit 7 with both numbers and nothing done; --no-space-check starts all the same."""
    out = begun()
    before = tree(out)
    free = lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1_800_000)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", free)
    assert go_on(out) == 7 and tree(out) == before
    err = capsys.readouterr().err
    assert "has 1.8 MB free and this run needs 2.1 MB for 2 checkpoints" in err and "--no-space-check" in err
    assert go_on(out, "--no-space-check") == 0 and Run.load(out).step == 6


@pytest.mark.parametrize("place", ["below a file", "no permission"])
def test_a_place_that_cannot_be_written(tmp_path, data, monkeypatch, capsys, place):
    """F8: where the run folder cannot be made the command is exit 7 in one line, before a network is built."""
    (tmp_path / "file").write_text("mine")
    if place == "no permission":  # which root always has
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    out = tmp_path / ("file" if place == "below a file" else "folder") / "run"
    monkeypatch.setattr(nz.UNet, "build", lambda self: pytest.fail("a network was built"))
    assert command(["train", "etsdm", "--data", str(data), "--out", str(out), "--device", "cpu"]) == 7
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("nearzero: error: cannot write")


# ---- numbers


@pytest.mark.parametrize("at", [1, 3])
def test_one_poisoned_step(begun, capsys, at):
    """F13: a loss that is not a number at one step changes no bit of weights, averages and moments; the command says so in a line and an event and ends well."""
    out = begun(network=Sour(first=at, last=at))
    assert go_on(out, "--checkpoint-every", 1, "--keep", 9) == 0
    assert capsys.readouterr().err.count(f"warning: step {at} is not finite and left out (1 so far)") == 1
    assert steps_of(out, "skip") == [at] and Run.load(out).step == 6
    if at > 1:
        before, after = (tree(out / f"checkpoints/{step:09d}") for step in (at - 1, at))
        for name in ("weights", "ema", "optimizer"):
            assert before[f"{name}.safetensors"] == after[f"{name}.safetensors"]


def test_poison_for_ever(begun, capsys):
    """F14: ten poisoned steps roll back, past their samples; after three roll backs the command is exit 5 with a report, the events in status, and the good checkpoint's weights."""
    out = begun(network=Sour(first=5, last=10**6), steps=200)
    assert go_on(out, "--checkpoint-every", 4, "--keep", 20) == 5
    last = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 44, after 3 roll backs" in last and "nan_report/report.txt" in last
    bad = happened(out, "skip", "roll back", "stop")
    assert [event["step"] for event in bad] == list(range(5, 45))
    assert [event["samples"] for event in bad] == [[4 * k - 4, 4 * k - 1] for k in range(5, 45)]
    assert [(event["step"], event["to"]) for event in happened(out, "rolled_back")] == [(14, 4), (24, 4), (34, 24)]
    good, late = tree(out / "checkpoints/000000004"), newest(out)
    assert good["weights.safetensors"] == late["weights.safetensors"] and late["checkpoint"] > "000000030"
    found = json.loads((out / "nan_report/report.json").read_text())
    assert found["losses_not_finite"] == [172, 173, 174, 175]
    assert command(["status", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"][-1]["kind"] in ("stop", "checkpoint")
    assert command(["verify", str(out)]) == 0


def test_weights_that_become_no_numbers(begun, monkeypatch, capsys):
    """F16: a weight that is not a number after an update is never in a checkpoint that verifies: the command rolls back, an event says why, and it ends well."""
    out, apply = begun(), TrainingState.apply

    def spoil(self):
        apply(self)
        if self.step == 4:
            next(iter(self.weights.values())).data.view(-1)[0] = torch.nan

    monkeypatch.setattr(TrainingState, "apply", spoil)
    assert go_on(out, "--checkpoint-every", 2, "--keep", 9) == 0
    two, four = (tree(out / f"checkpoints/{step:09d}") for step in (2, 4))
    assert two["weights.safetensors"] == four["weights.safetensors"]
    assert steps_of(out, "weights_not_finite") == [4] == steps_of(out, "rolled_back")
    assert command(["verify", str(out)]) == 0


def test_an_overflow_is_no_error(begun, monkeypatch, capsys):
    """F17: a gradient that a loss scaler made too large, with finite losses, is left out and counted as an overflow: no skip, no warning; at scale 1 it is one that is not finite."""
    clip = TrainingState.clip
    monkeypatch.setattr(TrainingState, "clip", lambda self: clip(self) * (torch.inf if self.step == 2 else 1))
    for name, scale, kind in (("run", 2.0**16, "overflow"), ("one", 1.0, "skip")):
        out = begun(name)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "scale", scale)
            assert go_on(out) == 0
        assert steps_of(out, "overflow", "skip") == [3] == steps_of(out, kind)
        counted = json.loads(newest(out)["state.json"])["guard"]
        assert (counted["overflows"], counted["skipped"]) == ((1, 0) if kind == "overflow" else (0, 1))
        assert ("not finite" in capsys.readouterr().err) == (kind == "skip")


# ---- memory


@pytest.mark.parametrize("where", ["before", "in training"])
def test_too_little_memory(begun, monkeypatch, capsys, where):
    """F18: out of memory, while costs are measured or in the first step, is exit 6 with the batch as it was asked for and the next --accumulate; with that the run goes on."""
    out = begun(batch=8)

    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(*((preflight, "_step") if where == "before" else (Engine, "backward")), full)
        assert go_on(out) == 6
        said = capsys.readouterr().err.splitlines()[-1]
        assert "8 images at once (--batch 8 --accumulate 1)" in said and "--batch 8 --accumulate 2 (4 at once)" in said
        assert go_on(out, "--accumulate", 2) == 6
        said = capsys.readouterr().err.splitlines()[-1]
        assert "4 images at once (--batch 8 --accumulate 2)" in said and "--batch 8 --accumulate 4 (2 at once)" in said
    assert go_on(out, "--accumulate", 4) == 0 and Run.load(out).step == 6


# ---- data, processes, recipes, versions, logs


def test_bad_images(tmp_path, capsys):
    """F20: a damaged image is exit 3 with its name; with --bad-images skip the run goes without it and an event names it."""
    folder = write_folder(tmp_path / "data")
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:40])
    asked = ["train", "etsdm", "--data", folder, "--out", tmp_path / "run", "--steps", 1, "--batch", 2]
    asked = [*map(str, asked), "--device", "cpu"]
    assert command(asked) == 3 and "003.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command([*asked, "--bad-images", "skip"]) == 0
    (event,) = happened(tmp_path / "run", "bad_image")
    assert event["path"].endswith("003.png") and Run.load(tmp_path / "run").data["count"] == 5


def test_changed_images(begun, data, tmp_path, capsys):
    """F22: other images are exit 3 and change nothing; with --allow-data-change the run goes on, and an event and run.json say so."""
    out, other = begun(steps=2), shutil.copytree(data, tmp_path / "other")
    assert go_on(out) == 0
    write_folder(tmp_path / "more", count=1, seed=5)
    shutil.copy(tmp_path / "more/000.png", other / "new.png")
    before = tree(out)
    assert go_on(out, "--steps", 3, "--data", other) == 3
    assert "these are not the 6 images" in (err := capsys.readouterr().err) and "--allow-data-change" in err
    assert {k: v for k, v in tree(out).items() if k != "lock"} == {k: v for k, v in before.items() if k != "lock"}
    assert go_on(out, "--steps", 3, "--data", other, "--allow-data-change") == 0
    (event,) = happened(out, "data_changed")
    assert (event["step"], event["images"], Run.load(out).data["count"]) == (2, 7, 7)


def test_a_batch_that_does_not_divide(begun, capsys):
    """F27: a batch that does not divide is exit 2 with the nearest numbers that do, each of which is taken; another division is an event."""
    out = begun()
    before = tree(out)
    assert go_on(out, "--accumulate", 3) == 2 and tree(out) == before
    assert "use --batch 3 or 6, or --accumulate 2 or 4" in capsys.readouterr().err
    assert go_on(out, "--accumulate", 4, "--steps", 2) == 0 == go_on(out, "--accumulate", 2, "--steps", 4)
    assert [event["accumulation"] for event in happened(out, "split_changed")] == [2]


def test_a_changed_recipe(begun, data, capsys):
    """F29: another batch is exit 2 with the difference and nothing changed; another learning rate goes on with an event."""
    out = begun(steps=2)
    assert go_on(out) == 0
    before = tree(out)
    assert go_on(out, "--batch", 5, "--steps", 4) == 2 and tree(out) == before
    assert "training.batch: 4 became 5" in capsys.readouterr().err
    run = nz.train(tiny_recipe(steps=4, learning_rate=1e-5), nz.read_folder(data), out, resume=True)
    (event,) = happened(out, "recipe_changed")
    assert (run.step, event["step"], event["fields"]) == (4, 2, ["training"])
    assert Run.load(out).recipe.training.learning_rate == 1e-5


@pytest.mark.filterwarnings("default:.*was saved by torch")
def test_other_versions(begun, capsys):
    """F30: a run or checkpoint of a newer schema is exit 4 with the advice to upgrade; one of another torch goes on with a warning."""
    out = begun(steps=2)
    assert go_on(out) == 0
    folder, record = out / "checkpoints/000000002", json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "schema_version": 99}))
    assert go_on(out, "--steps", 3) == 4 and "upgrade nearzero" in capsys.readouterr().err
    (out / "run.json").write_text(json.dumps(record))
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"schema_version": 1', '"schema_version": 99'))
    assert go_on(out, "--steps", 3) == 4 and "schema version 99" in capsys.readouterr().err
    write_manifest(folder, {"step": 2, "torch": "2.0.0"})
    assert go_on(out, "--steps", 3) == 0
    assert capsys.readouterr().err.count("was saved by torch 2.0.0, this is") == 1 and Run.load(out).step == 3


def test_a_log_that_is_down(begun, monkeypatch, capsys):
    """F31: with --log to a service that is down the command ends well with all lines in stats.jsonl, a warning, a final note and events."""

    def down(run, step):
        raise ConnectionError("the server is down")

    monkeypatch.setitem(sinks.SINKS, "wandb", down)
    monkeypatch.setattr(sinks, "find_spec", lambda name: name)
    out = begun(steps=100, batch=1)
    assert go_on(out, "--log", "wandb", "--checkpoint-every", 100) == 0
    err = capsys.readouterr().err
    assert err.count("--log wandb failed (ConnectionError: the server is down)") == 1
    assert err.count("--log wandb did not take 2 of 2 lines; stats.jsonl has them all") == 1
    assert [row["step"] for row in log(out)] == [50, 100]
    assert [event["kind"] for event in happened(out, "sink_failed", "sink_incomplete")] == ["sink_failed", "sink_incomplete"]  # fmt: skip


def test_a_resumed_run_keeps_and_saves_as_before(begun):
    """--keep and --checkpoint-every that were once given hold for --resume without them; new ones are remembered."""
    out = begun("kept", steps=4)
    assert go_on(out, "--keep", 3, "--checkpoint-every", 1) == 0
    assert go_on(out, "--steps", 6) == 0
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["000000004", "000000005", "000000006"]
    assert go_on(out, "--steps", 7, "--keep", 1) == 0
    assert nz.Run.load(out).data["source"]["keep"] == 1 and len(list((out / "checkpoints").iterdir())) == 1
