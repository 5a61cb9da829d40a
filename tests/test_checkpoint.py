"""Saving: at whatever moment a process dies or the disk is full, a run has a checkpoint that loads, bit for bit."""

import errno
import json
import os
import shutil
import signal
import threading
import time

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from conftest import pictures, tiny_recipe, tree
from nearzero import files
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, CheckpointError, DiskError, NumericalError
from nearzero.manifest import Keep, checkpoints, newest
from nearzero.run import load_tensors
from nearzero.training import checkpoint
from nearzero.training.checkpoint import Writer, clean, load, write
from nearzero.training.lock import lock
from nearzero.training.state import TrainingState

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tensors(value):
    """A network, its average and its moments, made of one number."""
    return {
        "weights": {"a": torch.full((2, 3), float(value)), "b": torch.tensor(float(value))},
        "ema": {"a": torch.full((2, 3), value + 0.5)},
        "optimizer": {"a.step": torch.tensor(3.0)},
    }


def one(run, step, **meta):
    """A checkpoint made of its step."""
    return write(run, tensors(step), {"step": step, **meta})


def folders(run):
    """The steps of the checkpoints."""
    return [int(path.name) for path in checkpoints(run / "checkpoints")]


class Log(list):
    """Events as (kind, step, facts)."""

    def add(self, kind, step, **facts):
        json.dumps(facts, allow_nan=False)
        self.append((kind, step, facts))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What a process wrote outlives it without fsync, which only a power failure needs and a busy disk makes slow."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What the folders of steps 1 and 2 hold."""
    made = {}
    for step in (1, 2):
        folder = tmp_path_factory.mktemp("good")
        made[step] = tree(one(folder, step).path)
    return made


# ---- killed


class Killer:
    """Kills this process with SIGKILL at its `at`-th change of the disk; a write leaves its first half."""

    CALLS = ("mkdir", "chmod", "rename", "replace", "unlink", "rmdir")

    def __init__(self, at):
        self.left = at
        for name in self.CALLS:
            setattr(os, name, self.before(getattr(os, name)))
        os.fsync = self.before(os.fsync)
        fdopen = os.fdopen
        os.fdopen = lambda *args, **kwargs: KilledFile(fdopen(*args, **kwargs), self)

    def due(self):
        self.left -= 1
        return self.left == 0

    def before(self, call):
        def killed(*args, **kwargs):
            if self.due():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return killed


class KilledFile:
    """A file whose writes may be the last."""

    def __init__(self, file, killer):
        self.file, self.killer = file, killer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        if self.killer.due():
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.file.write(content)
        self.file.flush()


def killed(at, work):
    """Whether a child that does `work` was killed at its `at`-th change of the disk; it ends well otherwise."""
    child = os.fork()
    if child == 0:
        try:
            Killer(at)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def through(writer):
    """Saves step 2 by a writer, in its thread."""

    def work(run):
        with Writer(run) as one:
            one.save(tensors(2), {"step": 2})

    return work if writer else lambda run: one(run, 2)


@pytest.mark.parametrize("writer", [True, False], ids=["in a thread", "at once"])
@pytest.mark.parametrize("before", ["none", "old", "damaged", "same step"])
def test_killed_anywhere(tmp_path, good, before, writer):
    """kill -9 at each write, fsync, rename, chmod and deletion of a save leaves the old checkpoint or the new one, bit
    for bit; the next start cleans up what was half-written, and its save succeeds."""
    point, alive = 0, False
    while not alive:
        point += 1
        run = tmp_path / str(point)
        if before != "none":
            one(run, 1)
        if before in ("damaged", "same step"):
            write(run, tensors(2), {"step": 2}, Keep(last=2))
        if before == "damaged":
            (run / "checkpoints/000000002/ema.safetensors").write_bytes(b"")
        if before == "same step":
            shutil.rmtree(run / "checkpoints/000000001")
        alive = not killed(point, lambda run=run: through(writer)(run))
        for cleaned in (False, True):
            if cleaned:
                clean(run)
                assert not [name for name in tree(run) if "/." in name or name.startswith(".")]
            path, _ = newest(run / "checkpoints")
            if before == "none" or (before == "same step" and not cleaned):
                assert path is None or tree(path) == good[2], point
            else:
                assert tree(path) == good[int(path.name)], point
            assert not alive or path.name == "000000002"
        through(writer)(run)
        assert folders(run) == [2] and tree(run / "checkpoints/000000002") == good[2]
        assert not clean(run)
        shutil.rmtree(run)
    assert point > 20


@settings(max_examples=8)
@given(st.floats(0, 1))
def test_killed_at_any_time(tmp_path_factory, good, when):
    """The same for SIGKILL after a time that nobody chose: steps 1, 2, 1, 2, ... are saved until it comes."""
    run = tmp_path_factory.mktemp("time")
    one(run, 1)
    child = os.fork()
    if child == 0:
        while True:
            for step in (2, 3):
                write(run, tensors(1 + step % 2), {"step": step}, Keep(last=2))
            shutil.rmtree(run / "checkpoints/000000003")
    time.sleep(0.05 + 0.1 * when)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    clean(run)
    path, _ = newest(run / "checkpoints")
    assert path is not None
    value = {1: 1, 2: 1, 3: 2}[int(path.name)]
    assert torch.equal(load_tensors(path / "weights.safetensors")["a"], torch.full((2, 3), float(value)))


def test_leftovers_of_every_kind_go(tmp_path):
    """clean takes what write_bytes and new_folder were writing, of this version and the first, and nothing else."""
    one(tmp_path, 1)
    left = ["checkpoints/.tmp-000000002-ab_c1234", "checkpoints/.000000002.abcd1234", ".run.json.abcd1234"]
    left += ["previews/.000000002.png.abcd1234", ".stats.jsonl.abcd1234", ".events.jsonl.x_y_z_12"]
    mine = [".notes", ".run.json", "previews/.DS_Store", "checkpoints/notes", "checkpoints/.tmp", ".tmp-x-y"]
    (tmp_path / "previews").mkdir()
    for name in (*left, *mine):
        if "checkpoints/.tmp-" in name or name.endswith("/.000000002.abcd1234"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text("x")
        else:
            (tmp_path / name).write_text("x")
    before = {name: content for name, content in tree(tmp_path).items() if not name.startswith(tuple(left))}
    assert clean(tmp_path) == sorted(name.split("/")[-1] for name in left)
    assert tree(tmp_path) == before and clean(tmp_path) == [] == clean(tmp_path / "nowhere")


# ---- files


@given(st.data())
def test_files_are_those_of_safetensors(data):
    """Byte for byte what safetensors.torch.save writes, for every type, shape and name that a checkpoint may hold."""
    shapes = st.lists(st.integers(0, 3), max_size=3)
    kinds = st.sampled_from(list(files.DTYPES))
    made = data.draw(st.dictionaries(st.text('abä."\\_\n', min_size=1), st.tuples(shapes, kinds), max_size=5))
    given_ = {name: (torch.rand(shape) * 100).to(kind) for name, (shape, kind) in made.items()}
    assert b"".join(bytes(memoryview(part)) for part in files.safetensors(given_)) == safetensors.torch.save(given_)


def test_channels_last_and_views_are_saved_as_what_they_are(tmp_path):
    """Memory formats, slices and transposes come back equal, in plain order."""
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    named = {"last": x.to(memory_format=torch.channels_last), "slice": x[:, 1], "turned": x[0, 0].T}
    with Writer(tmp_path) as writer:
        writer.save({"weights": named}, {"step": 1})
    back = load_tensors(writer.saved.path / "weights.safetensors")
    assert all(torch.equal(back[name], value) and back[name].is_contiguous() for name, value in named.items())


def test_another_type_is_refused(tmp_path):
    """A type that is not in the table is an ArgumentError with the tensor's name."""
    with pytest.raises(ArgumentError, match="weights_c holds torch.complex64"):
        write(tmp_path, {"weights": {"weights_c": torch.zeros(1, dtype=torch.complex64)}}, {"step": 1})


# ---- the writer


def test_a_save_is_of_the_moment_it_was_asked(tmp_path, monkeypatch):
    """What is done to the tensors, in place, once save has returned is not in the file."""
    go, write_parts = threading.Event(), checkpoint.write_parts
    monkeypatch.setattr(checkpoint, "write_parts", lambda *args: [go.wait(), write_parts(*args)][1])
    now = tensors(7)
    with Writer(tmp_path) as writer:
        meta = {"step": 1, "images": 4}
        for _ in range(2):  # into the same memory as before, too
            writer.save(now, meta)
            for named in now.values():
                for tensor in named.values():
                    tensor.fill_(torch.nan)
            meta["images"] = 5
            assert writer.busy and not newest(tmp_path / "checkpoints")[0]
            go.set()
            writer.wait()
            path = writer.saved.path
            for file, named in tensors(7).items():
                back = load_tensors(path / f"{file}.safetensors")
                assert back.keys() == named.keys() and all(torch.equal(back[key], named[key]) for key in back)
            assert json.loads((path / "state.json").read_text()) == {"schema_version": 2, **meta, "images": 4}
            shutil.rmtree(tmp_path / "checkpoints")
            go.clear()
            now, meta = tensors(7), {"step": 2, "images": 4}


def test_one_save_at_a_time(tmp_path, monkeypatch):
    """A second save waits for the first; asking for a step that is under way or there is no second save."""
    running, most, original = [0], [0], checkpoint.write

    def watched(*args):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        done = original(*args)
        running[0] -= 1
        return done

    monkeypatch.setattr(checkpoint, "write", watched)
    log = Log()
    with Writer(tmp_path, Keep(last=9), log) as writer:
        for step in (1, 1, 2, 3, 3, 3):
            writer.save(tensors(step), {"step": step})
        writer.wait()
        writer.save(tensors(0), {"step": 3})
    assert most == [1] and [step for _, step, _ in log] == [1, 2, 3] and folders(tmp_path) == [3, 2, 1]
    assert newest(tmp_path / "checkpoints")[1] == []


def test_events_say_what_was_saved_and_deleted(tmp_path):
    """Each save is an event with folder, bytes, seconds and the older checkpoints that it deleted."""
    log = Log()
    with Writer(tmp_path, Keep(last=2), log) as writer:
        for step in (1, 2, 3):
            writer.save(tensors(step), {"step": step})
    assert [(kind, step, facts["path"], facts["deleted"]) for kind, step, facts in log] == [
        ("checkpoint", 1, "000000001", []),
        ("checkpoint", 2, "000000002", []),
        ("checkpoint", 3, "000000003", ["000000001"]),
    ]
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints/000000003").iterdir())
    assert all(0 < facts["bytes"] <= size and facts["seconds"] >= 0 for _, _, facts in log)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("file", ["weights", "ema", "optimizer"])
def test_what_is_not_finite_is_never_a_checkpoint(tmp_path, file, value):
    """One number that is none: NumericalError, with the tensor's name, at once; the old checkpoint stays."""
    bad = tensors(2)
    bad["weights"] |= {"none": torch.zeros(0, 3), "large": torch.full((9,), 3e38), "whole": torch.arange(3)}
    next(iter(bad[file].values())).view(-1)[-1] = value
    writer = Writer(tmp_path)
    writer.save(tensors(1), {"step": 1})
    said = "(weights|moments) of a.* are not finite at step 2; lower"
    with pytest.raises(NumericalError, match=said):
        writer.save(bad, {"step": 2})
    with pytest.raises(NumericalError, match=said):
        write(tmp_path, bad, {"step": 2})
    writer.wait()
    assert folders(tmp_path) == [1] and not clean(tmp_path)
    writer.save(tensors(3), {"step": 3})
    writer.finish()
    assert folders(tmp_path) == [3]


def test_the_old_one_goes_when_the_new_one_has_been_read_back(tmp_path, monkeypatch):
    """Where the disk keeps something else than was written, the error names the file and no older checkpoint is deleted."""
    one(tmp_path, 1)
    sync = files._sync

    def rot(path):
        sync(path)
        if path.name == "ema.safetensors":
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(files, "_sync", rot)
    with pytest.raises(CheckpointError, match="000000002/ema.safetensors has changed"), Writer(tmp_path) as writer:
        writer.save(tensors(2), {"step": 2})
    path, wrong = newest(tmp_path / "checkpoints")
    assert path.name == "000000001" and len(wrong) == 1


def test_an_interrupt_breaks_off_and_an_error_does_not(tmp_path, monkeypatch, good):
    """KeyboardInterrupt ends a save at the next piece of a file, and nothing stays of it; after an error the save is whole."""
    one(tmp_path, 1)
    started, go, pieces = threading.Event(), threading.Event(), files.safetensors

    def slow(named):
        for part in pieces(named):
            started.set()
            go.wait(5)
            yield part

    monkeypatch.setattr(checkpoint, "safetensors", slow)
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path) as writer:
        writer.save(tensors(2), {"step": 2})
        started.wait()
        threading.Timer(0.05, go.set).start()
        raise KeyboardInterrupt
    assert folders(tmp_path) == [1] and not clean(tmp_path)
    log = Log()
    with pytest.raises(ZeroDivisionError), Writer(tmp_path, events=log) as writer:
        writer.save(tensors(2), {"step": 2})
        _ = 1 // 0
    assert tree(tmp_path / "checkpoints/000000002") == good[2] and [kind for kind, _, _ in log] == ["checkpoint"]


def test_a_folder_that_will_not_go_costs_nothing(tmp_path, faults, good):
    """Where an older checkpoint cannot be deleted the new one is saved all the same; the next save tries again."""
    log = Log()
    with Writer(tmp_path, events=log) as writer:
        writer.save(tensors(1), {"step": 1})
        writer.wait()
        faults.arm("replace", 3, OSError(errno.EACCES, "not today"))  # 1: manifest.json, 2: the folder, 3: the old one
        writer.save(tensors(2), {"step": 2})
        writer.wait()
        faults.disarm()
        assert folders(tmp_path) == [2, 1] and tree(writer.saved.path) == good[2]
        writer.save(tensors(3), {"step": 3})
    assert [facts["deleted"] for _, _, facts in log] == [[], [], ["000000002", "000000001"]]


# ---- a full disk


@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, errno.ENOSPC) for kind in ("write", "fsync", "chmod", "replace")), ("write", errno.EDQUOT)],
)
def test_a_full_disk_at_every_call(tmp_path, faults, capsys, good, kind, number):
    """Whichever call the disk refuses for want of space: an event, a warning, no leftover, the old checkpoint as it was;
    the save at the next interval is whole."""
    for at in range(1, 100):
        run, log = tmp_path / str(at), Log()
        one(run, 1)
        before = tree(run)
        faults.arm(kind, at, OSError(number, os.strerror(number)))
        writer = Writer(run, events=log)
        writer.save(tensors(5), {"step": 5})
        writer.wait()
        faults.disarm()
        if log[0][0] == "checkpoint":
            break
        assert [(name, step, facts["failures"]) for name, step, facts in log] == [("disk_full", 5, 1)]
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and os.strerror(number) in err and "the next checkpoint tries again" in err
        late = kind == "fsync" and folders(run) == [5, 1]  # it has its name, only the disk may not know it yet
        assert late or tree(run) == before
        writer.save(tensors(2), {"step": 6})
        writer.finish()
        assert folders(run) == [6] and [name for name, _, _ in log] == ["disk_full", "checkpoint"]
        assert tree(writer.saved.path)["weights.safetensors"] == good[2]["weights.safetensors"]
    assert at > (1 if kind in ("chmod", "replace") else 5)


def test_three_times_full_is_enough(tmp_path, monkeypatch, capsys):
    """Two failures in a row are told, the third is DiskError; a success between them starts the count anew."""
    fails, write_parts = [], checkpoint.write_parts

    def refuse(path, *args):
        if fails and fails.pop(0):
            with files.disk_errors(path):
                raise FULL
        return write_parts(path, *args)

    monkeypatch.setattr(checkpoint, "write_parts", refuse)
    log = Log()
    writer = Writer(tmp_path, Keep(last=9), log)
    for step, bad in enumerate([True, True, False, True, True], 1):
        fails[:] = [bad]
        writer.save(tensors(step), {"step": step})
        writer.wait()
    fails[:] = [True]
    writer.save(tensors(6), {"step": 6})
    with pytest.raises(DiskError, match=r"No space left.*free some space") as caught:
        writer.wait()
    assert caught.value.exit_code == 7 and folders(tmp_path) == [3]
    assert [facts.get("failures") for _, _, facts in log] == [1, 2, None, 1, 2, 3]
    assert capsys.readouterr().err.count("tries again") == 4


def test_the_last_save_is_tried_twice(tmp_path, monkeypatch):
    """finish saves again what a full disk refused, from its own copy; where it still refuses, DiskError."""
    fails, space = [True], checkpoint._check_space

    def check(path, size):
        if fails and fails.pop():
            raise DiskError("full") from FULL
        space(path, size)

    monkeypatch.setattr(checkpoint, "_check_space", check)
    now = tensors(4)
    with Writer(tmp_path) as writer:
        writer.save(now, {"step": 4})
        now["weights"]["a"].zero_()
    assert torch.equal(load_tensors(writer.saved.path / "weights.safetensors")["a"], tensors(4)["weights"]["a"])
    fails[:] = [True, True]
    with pytest.raises(DiskError), Writer(tmp_path) as writer:
        writer.save(tensors(5), {"step": 5})
    assert folders(tmp_path) == [4]


def test_space_is_counted_before(tmp_path, monkeypatch):
    """With less free than the tensors take, nothing is written: DiskError with both numbers, counted as a full disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(DiskError, match=r"it takes 4.0 MB and 1.0 MB are free; free some space"):
        write(tmp_path / "run", {"weights": {"a": torch.zeros(10**6)}}, {"step": 1})
    assert tree(tmp_path) == {}
    log = Log()
    writer = Writer(tmp_path / "run", events=log)
    writer.save({"weights": {"a": torch.zeros(10**6)}}, {"step": 1})
    writer.wait()
    assert [kind for kind, _, _ in log] == ["disk_full"]


def test_another_refusal_ends_training(tmp_path, faults):
    """A disk that may not be written is DiskError at the next call: waiting would not help."""
    faults.arm("fsync", 1, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    writer = Writer(tmp_path)
    writer.save(tensors(1), {"step": 1})
    with pytest.raises(DiskError, match="choose a folder"):
        writer.wait()


# ---- reading


def flip(path):
    """Changes one bit."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)


@pytest.fixture
def longer(run_folder):
    """A run with the checkpoints of steps 6 and 8, by the loop's own state."""
    run = nz.Run.load(run_folder)
    state = TrainingState(run.recipe, 0, torch.device("cpu"))
    load(state, run.checkpoint())
    state.weights["unet.conv_in.weight"].data.add_(1)
    state.step = 8
    write(run_folder, state.tensors(), {"step": 8}, Keep(last=2))
    return nz.Run.load(run_folder)


def test_a_run_falls_back(longer, trained):
    """With a damaged newest checkpoint a run is at the one before, with its weights, and says so in a line."""
    assert longer.step == 8
    flip(longer.path / "checkpoints/000000008/optimizer.safetensors")
    with pytest.warns(UserWarning, match="000000008/optimizer.safetensors has changed.*; using 000000006$"):
        assert longer.step == 6
    with pytest.warns(UserWarning):
        ours = longer.denoiser(ema=False).network.state_dict()
    theirs = trained.denoiser(ema=False).network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    flip(longer.path / "checkpoints/000000006/ema.safetensors")
    with pytest.raises(
        CheckpointError, match="no whole.*8/optimizer.*6/ema.*; restore the file or train again"
    ) as caught:
        longer.denoiser()
    assert "\n" not in str(caught.value)


def test_a_pinned_run_does_not_ask_again(longer):
    """A pinned run stays at its checkpoint, whatever becomes of others."""
    pinned = longer.pinned()
    write(longer.path, tensors(1), {"step": 9}, Keep(last=3))
    flip(longer.path / "checkpoints/000000009/ema.safetensors")
    assert pinned.step == 8


def test_several_averages(longer):
    """Each average is picked by the name of its file, "ema" is the default, and others are refused with the names."""
    folder = longer.path / "checkpoints/000000008"
    tensors_ = {file: load_tensors(folder / f"{file}.safetensors") for file in ("weights", "ema", "optimizer")}
    more = {name: value + 1 for name, value in tensors_["ema"].items()}
    write(longer.path, {**tensors_, "ema-1": more}, {"step": 9})
    assert longer.averages() == ["ema", "ema-1"]
    a, b, c = (longer.denoiser(ema=ema).network.state_dict() for ema in (True, "ema", "ema-1"))
    assert all(torch.equal(a[name], b[name]) and torch.equal(c[name], more[name]) for name in a)
    for wrong in ("ema-2", "weights", "../ema", "optimizer", ""):
        with pytest.raises(ArgumentError, match="holds no average .*known: ema, ema-1"):
            longer.denoiser(ema=wrong)


def test_a_run_of_the_first_version_is_read(run_folder, trained):
    """A run of schema version 1, whose checkpoint has no manifest, loads, samples and gets a manifest with its next save."""
    record = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps({**record, "schema_version": 1}))
    folder = run_folder / "checkpoints/000000006"
    (folder / "manifest.json").unlink()
    (folder / "state.json").write_text('{"step": 6, "images": 24}')
    run = nz.Run.load(run_folder)
    assert run.step == 6 and torch.equal(run.sample([0]), trained.sample([0]))
    state = TrainingState(run.recipe, 0, torch.device("cpu"))
    assert load(state, run.checkpoint()) == {"step": 6, "images": 24}
    run.write()
    write(run.path, state.tensors(), {"step": 7})
    assert folders(run.path) == [7] and nz.Run.load(run_folder).step == 7


def test_a_manifest_cannot_be_left_out(longer):
    """Without its manifest a checkpoint of today is damaged, not one of the first version."""
    (longer.path / "checkpoints/000000008/manifest.json").unlink()
    with pytest.warns(UserWarning, match="000000008/manifest.json is missing; using 000000006"):
        assert longer.step == 6


def test_loading_gives_every_bit_and_what_was_told(longer):
    """load restores what write was given and returns its facts; another version of torch is a warning."""
    state = TrainingState(longer.recipe, 5, torch.device("cpu"))
    assert load(state, longer.checkpoint()) == {"schema_version": 2, "step": 8}
    for file, named in state.tensors().items():
        saved = load_tensors(longer.checkpoint() / f"{file}.safetensors")
        assert saved.keys() == named.keys() and all(torch.equal(saved[name], named[name]) for name in saved)
    path = longer.checkpoint() / "manifest.json"
    path.write_text(path.read_text().replace(torch.__version__, "2.9.9"))
    with pytest.warns(UserWarning, match=r"saved by torch 2.9.9, this is .*not necessarily bit for bit"):
        load(state, path.parent)


@pytest.mark.parametrize(("file", "name"), [("weights", "unet.conv_in.weight"), ("ema", "unet.conv_out.bias")])
@pytest.mark.parametrize("change", ["gone", "another shape"])
def test_what_does_not_fit_is_named(longer, file, name, change):
    """A checkpoint of another network is CheckpointError of one line with the file and the tensor; nothing is broadcast."""
    state = TrainingState(longer.recipe, 5, torch.device("cpu"))
    made = {one: load_tensors(longer.checkpoint() / f"{one}.safetensors") for one in state.tensors()}
    made[file].pop(name) if change == "gone" else made[file].update({name: torch.zeros(())})
    write(longer.path, made, {"step": 9})
    with pytest.raises(
        CheckpointError, match=f"000000009/{file}.safetensors does not fit .*{name}.*; restore"
    ) as caught:
        load(state, longer.checkpoint())
    assert "\n" not in str(caught.value)


# ---- commands


def told(capsys, *arguments, code=0):
    """What a command prints with --json, and its error."""
    assert command([*arguments, "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_inspect(longer, capsys):
    """inspect says recipe, data, step, parameters, every checkpoint with its bytes, and the origin."""
    found, err = told(capsys, "inspect", str(longer.path))
    assert (found["step"], found["steps"], found["seed"], err) == (8, 6, 0, "")
    assert nz.registry.decode(found["recipe"]) == longer.recipe and found["parameters"] == 32_609
    assert found["data"]["count"] == 10 and found["provenance"]["torch"] == torch.__version__
    assert [(one["step"], one["valid"], one["averages"]) for one in found["checkpoints"]] == [
        (8, True, ["ema"]),
        (6, True, ["ema"]),
    ]
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in checkpoints(longer.path / "checkpoints")]
    assert [one["bytes"] for one in found["checkpoints"]] == sizes
    assert command(["inspect", str(longer.path)]) == 0
    text = capsys.readouterr().out
    assert "32,609 parameters" in text and "Shared(Timestep(), interval=100, cells=5)" in text and "step 8" in text


def test_verify(longer, capsys):
    """verify lists all: 0 while the newest is whole, 4 with its damage when it is not, or where there is none."""
    flip(longer.path / "checkpoints/000000006/ema.safetensors")
    found, _ = told(capsys, "verify", str(longer.path))
    assert [one["valid"] for one in found["checkpoints"]] == [True, False] and found["newest"] == 8
    assert "000000006/ema.safetensors has changed" in found["checkpoints"][1]["problem"]
    (longer.path / "checkpoints/000000008/state.json").unlink()
    found, err = told(capsys, "verify", str(longer.path), code=4)
    assert found["newest"] is None and err.count("\n") == 1 and "000000008/state.json is missing; no other is" in err
    flip(longer.path / "checkpoints/000000006/ema.safetensors")
    found, err = told(capsys, "verify", str(longer.path), code=4)
    assert found["newest"] == 6 and "resuming takes step 6" in err
    shutil.rmtree(longer.path / "checkpoints")
    assert "no checkpoint yet" in told(capsys, "verify", str(longer.path), code=4)[1]


def test_status(longer, capsys):
    """status says the step of the last line, loss, speed, time left while somebody trains and who, and the last events."""
    line = {"step": 3, "Loss/loss": {"num": 1, "mean": 0.25, "std": 0}, "Timing/sec_per_kimg": {"mean": 500.0}}
    (longer.path / "stats.jsonl").write_text(f'{json.dumps(line)}\n{{"step": 4, "Lo')
    for path in checkpoints(longer.path / "checkpoints"):
        shutil.rmtree(path)
    events = [{"time": f"t{i}", "kind": "skip", "step": i} for i in range(9)]
    (longer.path / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    found, _ = told(capsys, "status", str(longer.path))
    expected = {"step": 3, "steps": 6, "checkpoint": 0, "loss": 0.25, "images_per_second": 2.0, "seconds_left": None}
    assert {name: found[name] for name in expected} == expected
    assert found["training"] is None and found["events"] == events[-5:]
    with lock(longer.path):
        before = tree(longer.path)
        found, _ = told(capsys, "status", str(longer.path), "--events", "0")
        assert found["training"]["pid"] == os.getpid() and found["events"] == []
        assert found["seconds_left"] == 3 * 4 / 2.0
        assert command(["status", str(longer.path)]) == 0
        text = capsys.readouterr().out
        assert f"process {os.getpid()}" in text and "6 s left" in text and "step 8: skip" in text and "none yet" in text
        assert tree(longer.path) == before


def test_a_fresh_run_has_a_status(tmp_path, capsys):
    """Before its first step a run is at step 0, without loss, speed, checkpoint or events."""
    nz.Run.create(tmp_path, tiny_recipe(), pictures().describe(), 0)
    found, _ = told(capsys, "status", str(tmp_path))
    assert (found["step"], found["loss"], found["images_per_second"], found["events"]) == (0, None, None, [])
    assert told(capsys, "inspect", str(tmp_path))[0]["checkpoints"] == []
    for name in ("inspect", "verify", "status"):
        assert "does not exist" in told_error(capsys, name, str(tmp_path / "none"))


def told_error(capsys, *arguments):
    assert command(arguments) == 4
    return capsys.readouterr().err


@pytest.mark.filterwarnings("default:left out a damaged")
def test_sampling_says_what_it_leaves_out(longer, tmp_path, capsys):
    """nearzero sample draws from the checkpoint before a damaged one, and says so in a line on stderr."""
    flip(longer.path / "checkpoints/000000008/weights.safetensors")
    asked = ["-n", "1", "--steps", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert command(["sample", str(longer.path), *asked]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert lines and all(line.startswith("nearzero: warning: left out a damaged checkpoint: ") for line in lines)
    assert all("000000008/weights.safetensors has changed" in line and "using 000000006" in line for line in lines)
