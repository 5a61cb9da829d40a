"""Checkpoints as folders: whatever happens to one of them is seen, named, and costs no more than that one."""

import json
import os
import re
import shutil
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nearzero as nz
from conftest import tree
from nearzero import manifest
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.files import digest
from nearzero.manifest import NAME, SCHEMA, Keep, checkpoints, newest, problem, thin_out, verify, write_manifest
from nearzero.training.checkpoint import write

FILES = ("ema.safetensors", "weights.safetensors", "state.json", NAME)


def tensors(value=0.0):
    """The smallest network, and its average."""
    return {
        "weights": {"a": torch.full((2, 3), value), "b": torch.tensor(value)},
        "ema": {"a": torch.full((2, 3), value + 0.5), "b": torch.tensor(0.0)},
    }


def saved(run, *steps, keep=None, metrics=()):
    """Checkpoints of these steps, all of them kept; their folder."""
    for step, metric in zip(steps, [*metrics, *[None] * len(steps)], strict=False):
        write(run, tensors(float(step)), {"step": step, "metric": metric}, keep or Keep(last=100))
    return run / "checkpoints"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of steps 1 and 2. Read only."""
    return saved(tmp_path_factory.mktemp("two"), 1, 2)


def damaged(two, folder, change):
    """A copy of both in which `change` was done to the newer one; what is said of it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(two, folder)
    change(folder / "000000002")
    path, wrong = newest(folder)
    assert path == folder / "000000001", "the damage was not seen"
    with pytest.raises(CheckpointError) as caught:
        verify(folder / "000000002")
    assert wrong == [str(caught.value)] and "\n" not in wrong[0]
    return wrong[0]


# ---- what a manifest says


def test_the_manifest_names_every_file(two):
    """It holds step, versions, and of each other file its bytes and BLAKE2b, and verify returns it."""
    record = verify(two / "000000002")
    files = {name: content for name, content in tree(two / "000000002").items() if name != NAME}
    assert record["files"] == {name: {"bytes": len(c), "blake2b": digest(c)} for name, c in files.items()}
    assert (record["step"], record["nearzero"], record["torch"]) == (2, nz.__version__, torch.__version__)
    assert record["schema_version"] == SCHEMA and newest(two) == (two / "000000002", [])


names = st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=1, max_size=8)


@given(st.dictionaries(names, st.binary(max_size=40), max_size=4), st.integers(0, 10**9))
def test_a_manifest_comes_back(tmp_path_factory, files, step):
    """For files of any content, what write_manifest says of a folder is what verify finds."""
    folder = tmp_path_factory.mktemp("any")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    record = write_manifest(folder, {"step": step})
    assert verify(folder) == {key: value for key, value in record.items() if key != "blake2b"}
    assert record["files"].keys() == files.keys()


# ---- damage


@given(st.sampled_from(FILES), st.integers(0, 10**6), st.integers(0, 7))
def test_one_bit(tmp_path_factory, two, name, byte, bit):
    """Whichever bit of whichever file is flipped, the file is named and the checkpoint before is used."""

    def flip(folder):
        content = bytearray((folder / name).read_bytes())
        content[byte % len(content)] ^= 1 << bit
        (folder / name).write_bytes(content)

    assert f"000000002/{name} has changed: " in damaged(two, tmp_path_factory.getbasetemp() / "bit", flip)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(tmp_path, two, name):
    """A file cut to any shorter length is named, with both lengths where a manifest tells."""
    whole = (two / "000000002" / name).stat().st_size - (name == NAME)  # its last byte ends the line
    for length in {*range(0, whole, 1 + whole // 12), whole - 1}:
        said = damaged(two, tmp_path / "cut", lambda folder, n=length: os.truncate(folder / name, n))
        assert f"000000002/{name} has " in said
        assert name == NAME or f"{length:,} bytes, the manifest says {whole:,}" in said


DAMAGE = {
    "missing": (lambda path: path.unlink(), "is missing", "is missing"),
    "a folder": (lambda path: [path.unlink(), path.mkdir()], "is no file", "is missing"),
    "a pipe": (lambda path: [path.unlink(), os.mkfifo(path)], "is no file", "is missing"),
    "a link": (
        lambda path: [path.rename(path.parent.parent / "x"), path.symlink_to("../x")],
        "is no file",
        "is no file",
    ),
    "longer": (
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        "has .* bytes, the manifest says",
        "has changed",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", DAMAGE)
def test_a_file_that_is_something_else(tmp_path, two, name, what):
    """A file that is missing, longer, or no regular file is named, and nothing waits for a pipe."""
    change, said, of_manifest = DAMAGE[what]
    told = damaged(two, tmp_path / "c", lambda folder: change(folder / name))
    assert re.search(f"000000002/{name} {of_manifest if name == NAME else said}", told)


def test_a_file_too_many(tmp_path, two):
    """A file that the manifest does not name is named; hidden ones, which file systems leave behind, do not matter."""
    assert "000000002/more.bin is not in the manifest" in damaged(
        two, tmp_path / "c", lambda folder: (folder / "more.bin").write_bytes(b"")
    )
    (tmp_path / "c/000000002/more.bin").rename(tmp_path / "c/000000002/.nfs0001")
    assert newest(tmp_path / "c") == (tmp_path / "c/000000002", [])


def test_a_checkpoint_under_another_name(tmp_path, two):
    """A folder whose name is not the step in its manifest is left out: the newest is that of the most steps."""
    shutil.copytree(two, tmp_path / "c")
    (tmp_path / "c/000000001").rename(tmp_path / "c/000000009")
    assert newest(tmp_path / "c") == (
        tmp_path / "c/000000002",
        [f"{tmp_path / 'c/000000009'} holds step 1, which is not its name"],
    )


@pytest.mark.parametrize(
    "change", [{"files": []}, {"files": {"a": 1}}, {"files": {}}, {"schema_version": 0}, {"step": 3}]
)
def test_a_manifest_that_says_something_else(tmp_path, two, change):
    """A manifest with its right hash and other content is refused in a line."""

    def rewrite(folder):
        record = {**verify(folder), **change}
        (folder / NAME).write_text(
            json.dumps({**record, "blake2b": digest(json.dumps(record, sort_keys=True).encode())})
        )

    damaged(two, tmp_path / "c", rewrite)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", "[" * 10**5, '{"a": 1', "\ud800"], ids=lambda text: text[:5]
)
def test_a_manifest_that_is_none(tmp_path, two, content):
    """What is no JSON object is a damaged manifest."""
    said = damaged(
        two, tmp_path / "c", lambda folder: (folder / NAME).write_bytes(content.encode("utf-8", "surrogatepass"))
    )
    assert f"{NAME} has changed" in said


def test_a_newer_manifest_asks_for_an_upgrade(tmp_path, two):
    """A schema version above this one's is not called damaged."""
    said = damaged(two, tmp_path / "c", lambda folder: (folder / NAME).write_text('{"schema_version": 2}'))
    assert f"schema version 2, this nearzero reads up to {SCHEMA}; upgrade it" in said


# ---- the newest


def test_steps_count_not_times(tmp_path):
    """The order is that of the steps as numbers, whatever the files' times and the width of the names."""
    folder = saved(tmp_path, 3, 20, 100)
    (folder / "000000100").rename(folder / "100")
    for name, seconds in (("000000003", 3e9), ("000000020", 2e9), ("100", 1e9)):
        os.utime(folder / name, (seconds, seconds))
    assert [int(path.name) for path in checkpoints(folder)] == [100, 20, 3]
    assert newest(folder) == (folder / "100", [])


def test_only_folders_with_numbers_are_checkpoints(tmp_path):
    """Files, hidden folders and digits of other alphabets are left aside, and a folder that is not there holds none."""
    folder = saved(tmp_path, 1)
    for name in (".tmp-000000002-x", "²", "٣", "1e3", "-1", "notes"):
        (folder / name).mkdir()
    (folder / "000000004").write_text("a file")
    assert checkpoints(folder) == [folder / "000000001"]
    assert newest(tmp_path / "none") == (None, [])


def test_all_damaged(tmp_path, two):
    """Where none is whole each is named, newest first."""
    shutil.copytree(two, tmp_path / "c")
    for step, name in ((1, "ema.safetensors"), (2, "state.json")):
        (tmp_path / f"c/00000000{step}" / name).unlink()
    path, wrong = newest(tmp_path / "c")
    assert path is None and [one.split("/c/")[1] for one in wrong] == [
        "000000002/state.json is missing",
        "000000001/ema.safetensors is missing",
    ]


def test_files_are_read_again_only_when_they_change(tmp_path, two, monkeypatch):
    """A second look at a checkpoint reads nothing; after a change that keeps size and times it reads and sees it."""
    folder = shutil.copytree(two, tmp_path / "c") / "000000002"
    read, hashed = [], manifest.digest_file
    monkeypatch.setattr(manifest, "digest_file", lambda path: [read.append(path.name), hashed(path)][1])
    assert problem(folder) is None and sorted(read) == sorted(name for name in FILES if name != NAME)
    assert problem(folder) is None and len(read) == 3
    path = folder / "ema.safetensors"
    former, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    time.sleep(0.01)
    path.write_bytes(content)
    os.utime(path, ns=(former.st_atime_ns, former.st_mtime_ns))
    assert "has changed" in problem(folder)


def test_a_checkpoint_that_training_deletes_meanwhile(tmp_path, monkeypatch):
    """Where the newest vanishes while it is read, as training has a newer one, that one is found."""
    folder, hashed = saved(tmp_path, 1), manifest.digest_file
    manifest._KNOWN.clear()

    def replaced(path):
        monkeypatch.setattr(manifest, "digest_file", hashed)
        saved(tmp_path, 2, keep=Keep())
        return hashed(path)

    monkeypatch.setattr(manifest, "digest_file", replaced)
    assert newest(folder) == (folder / "000000002", [])


# ---- the time before manifests


def old(folder, step=7, told=7):
    """A checkpoint as the first version wrote it."""
    path = folder / f"{step:09d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"step": told, "images": 8}))
    return path


def test_checkpoints_without_manifest_are_read(tmp_path):
    """One of the first version, whose state.json tells no schema, is taken at its word, and is older or newer by its step."""
    path = old(tmp_path / "checkpoints")
    assert newest(tmp_path / "checkpoints") == (path, [])
    saved(tmp_path, 8)
    assert newest(tmp_path / "checkpoints")[0].name == "000000008"
    old(tmp_path / "checkpoints", 9, 9)
    assert newest(tmp_path / "checkpoints")[0].name == "000000009"


@pytest.mark.parametrize("damage", ["no state", "another step", "a list", "no JSON"])
def test_an_old_checkpoint_that_is_none(tmp_path, damage):
    """Without a state.json of its own step a folder is no checkpoint of the first version, and is named."""
    path = old(tmp_path, told=8 if damage == "another step" else 7)
    if damage == "no state":
        (path / "state.json").unlink()
    elif damage != "another step":
        (path / "state.json").write_text("[]" if damage == "a list" else "{")
    found, (said,) = newest(tmp_path)
    assert found is None and str(path) in said


# ---- which stay


metrics = st.dictionaries(st.integers(1, 50), st.none() | st.floats(0, 1), min_size=1)


@given(metrics, st.integers(1, 5), st.none() | st.integers(1, 7), st.booleans())
def test_what_stays(metrics, last, every, best):
    """The last k, all multiples of m, and with `best` one of least metric; nothing else."""
    stay = Keep(last, every, best).of(metrics)
    told = [metric for metric in metrics.values() if metric is not None]
    ranked = sorted(metrics, reverse=True)
    sure = {step for i, step in enumerate(ranked) if i < last or (every and step % every == 0)}
    assert sure <= stay <= metrics.keys()
    more = stay - sure
    assert not more or (best and len(more) == 1 and {metrics[step] for step in more} == {min(told)})
    assert not (best and told) or min(told) in {metrics[step] for step in stay}


def test_thinning(tmp_path):
    """Of ten checkpoints the two newest, the multiples of five, the best and those that are needed stay on disk, whole."""
    folder = saved(tmp_path, *range(1, 11), metrics=[5, 4, 3, 2, 1, 6, 0.5, 8, 9, 9])
    assert thin_out(folder / "000000010", Keep(last=2, every=5, best=True), needed=(2, 77)) == [
        f"{step:09d}" for step in (8, 6, 4, 3, 1)
    ]
    assert [int(path.name) for path in checkpoints(folder)] == [10, 9, 7, 5, 2]
    assert newest(folder) == (folder / "000000010", []) and all(problem(path) is None for path in checkpoints(folder))
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_thinning_takes_no_damaged_one_for_a_good_one(tmp_path):
    """A damaged checkpoint is none of the `last` that stay: the good one before it does, and it goes."""
    folder = saved(tmp_path, 1, 2, 3)
    (folder / "000000002/ema.safetensors").unlink()
    assert thin_out(folder / "000000003", Keep(last=2)) == ["000000002"]
    assert [int(path.name) for path in checkpoints(folder)] == [3, 1]


def test_a_run_that_went_back_leaves_no_later_steps(tmp_path):
    """Checkpoints of steps after the one just saved are of a path that was left: the newest is what was saved last."""
    folder = saved(tmp_path, 1, 8, 9)
    write(tmp_path, tensors(), {"step": 5}, Keep(last=2))
    assert [int(path.name) for path in checkpoints(folder)] == [5, 1]


@pytest.mark.parametrize("wrong", [{"last": 0}, {"last": -1}, {"every": 0}])
def test_numbers_of_checkpoints(wrong):
    """A run keeps at least its newest checkpoint."""
    with pytest.raises(ArgumentError, match="must be at least 1, got"):
        Keep(**wrong)
