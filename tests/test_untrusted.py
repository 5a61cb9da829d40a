"""A stranger's files: run folders, checkpoints, images and archives that are made to hurt end in one line and do nothing.

Every payload would leave a canary behind; an audit hook of Python sees unpickling, shells, processes and sockets.
"""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

import nearzero as nz
from conftest import tree, write_folder
from nearzero.cli import run as command
from nearzero.data import read_images
from nearzero.errors import CheckpointError, DataError, NearzeroError
from nearzero.manifest import write_manifest
from nearzero.run import load_weights

FORBIDDEN = {
    *(
        "pickle.find_class",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "os.spawn",
        "subprocess.Popen",
        "pty.spawn",
    ),
    *("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"),
    *("ctypes.dlopen", "webbrowser.open", "ftplib.connect", "http.client.connect"),
}
SEEN: list[str] = []
WATCH = threading.local()


def _audit(event, arguments):
    if getattr(WATCH, "on", False) and event in FORBIDDEN:
        SEEN.append(event)


sys.addaudithook(_audit)  # it cannot be taken away, so it listens only inside `watched`


@contextlib.contextmanager
def watched():
    """Nothing in this block may unpickle, start a process or open a socket."""
    SEEN.clear()
    WATCH.on = True
    try:
        yield
    finally:
        WATCH.on = False
    assert SEEN == []


@pytest.fixture
def canary(tmp_path):
    """A file that every payload tries to make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class Evil:
    """Unpickling this makes the canary."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_the_payload_is_live(tmp_path):
    """The canary sings and the hook hears it where a pickle is loaded: the tests below test something."""
    path = tmp_path / "canary"
    with pytest.raises(AssertionError), watched():
        pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists() and {"pickle.find_class", "os.system"} <= set(SEEN)


def edit(folder, change):
    """Lets `change` work on the values of run.json."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def newest(folder):
    return max((folder / "checkpoints").iterdir(), key=lambda path: path.name)


def sealed(checkpoint):
    """Writes the manifest anew, as somebody who changed a file on purpose would."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    write_manifest(checkpoint, {"step": int(checkpoint.name)})


def fails(capsys, arguments, code):
    """A command ends in one of these exit codes with one printable line on stderr, the last, and no escape anywhere."""
    capsys.readouterr()
    with watched():
        found = command([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert found in ((code,) if isinstance(code, int) else code), err
    assert "\x1b" not in out + err and "\x07" not in out + err and "Traceback" not in err
    if found:
        assert err.endswith("\n") and err.splitlines()[-1].startswith("nearzero: error: "), err
        assert len(err) < 4000, len(err)
    return err


# ---- checkpoints


def header(value, body=b"", length=None):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def torch_zip(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def npy_of_objects(canary):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil(canary)], dtype=object))
    return buffer.getvalue()


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EVIL = {
    "a pickle": lambda canary: pickle.dumps(Evil(canary)),
    "a pickle of protocol 0": lambda canary: f"cos\nsystem\n(S'touch {canary}'\ntR.".encode(),
    "a pickle behind a header": lambda canary: header({}, pickle.dumps(Evil(canary))),
    "torch.save": lambda canary: torch_zip({"x": Evil(canary)}),
    "torch.save, the old format": lambda canary: pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(Evil(canary)),
    "TorchScript": lambda canary: zipped(
        m__data_pkl=pickle.dumps(Evil(canary)), m__code_x=f"import os; os.system('touch {canary}')", m__version="3"
    ),
    "a zip": lambda canary: zipped(a=b"x"),
    "distributed metadata": lambda canary: zipped(_metadata=pickle.dumps(Evil(canary))),
    "numpy objects": npy_of_objects,
    "Python": lambda canary: f"#!/usr/bin/python\nopen('{canary}', 'w')\n".encode(),
    "nothing": lambda canary: b"",
    "seven bytes": lambda canary: b"\0" * 7,
    "a header of 2^63": lambda canary: header({}, length=2**63),
    "a header of 2^64 - 1": lambda canary: header({}, length=2**64 - 1),
    "a header of 1 GB": lambda canary: header({}, length=2**30),
    "a header of spaces": lambda canary: header(b" " * 1000),
    "a header that is a list": lambda canary: header([1, 2]),
    "a header that is no JSON": lambda canary: header(b"{'x': __import__('os')}"),
    "a header that is no UTF-8": lambda canary: header(b'{"\xff": 1}'),
    "a header without end": lambda canary: header(b"[" * 100_000),
    "a header with NaN": lambda canary: header(
        b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', bytes(8)
    ),
    "a shape that lies": lambda canary: header({"x": tensor(shape=(3,))}, bytes(8)),
    "a shape of 2^62": lambda canary: header({"x": tensor(shape=(2**62,))}, bytes(8)),
    "a shape that overflows": lambda canary: header({"x": tensor(shape=(2**32, 2**32), offsets=(0, 0))}),
    "a negative shape": lambda canary: header({"x": tensor(shape=(-2,))}, bytes(8)),
    "an offset beyond the end": lambda canary: header({"x": tensor(offsets=(2**40, 2**40 + 8))}, bytes(8)),
    "an offset before the start": lambda canary: header({"x": tensor(offsets=(-8, 0))}, bytes(8)),
    "offsets the wrong way": lambda canary: header({"x": tensor(offsets=(8, 0))}, bytes(8)),
    "tensors that overlap": lambda canary: header({"x": tensor(), "y": tensor(offsets=(4, 12))}, bytes(12)),
    "a hole": lambda canary: header({"x": tensor(), "y": tensor(offsets=(16, 24))}, bytes(24)),
    "bytes that nobody owns": lambda canary: header({"x": tensor()}, bytes(16)),
    "an unknown type": lambda canary: header({"x": tensor("PY_OBJECT")}, bytes(8)),
    "no tensors": lambda canary: header({}),
    "metadata with code": lambda canary: header({"__metadata__": {"auto_map": "os.system", "x": f"touch {canary}"}}),
    "a name with escapes": lambda canary: save({"\x1b]0;owned\x07\n\x1b[31m": torch.zeros(1)}),
    "a name of an attribute": lambda canary: save({"__class__": torch.zeros(1), "unet.__init__": torch.zeros(1)}),
    "ten thousand names": lambda canary: header({f"{i}": tensor("F32", (0,), (0, 0)) for i in range(10**4)}),
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_evil_checkpoint_executes_nothing(run_folder, canary, kind, capsys):
    """Whatever stands in a weights file, under a manifest that fits it: CheckpointError of one line, exit code 4, no canary, no unpickling."""
    checkpoint = newest(run_folder)
    for name in ("ema", "weights"):
        (checkpoint / f"{name}.safetensors").write_bytes(EVIL[kind](canary))
    sealed(checkpoint)
    for ema in (True, False):
        with watched(), pytest.raises(CheckpointError) as caught:
            nz.Run.load(run_folder).denoiser(ema=ema)
        assert "\n" not in str(caught.value)
    fails(capsys, ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"], 4)


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "model.ckpt", "pytorch_model.bin", ".metadata", "data.pkl"])
def test_pickles_beside_a_checkpoint_are_never_opened(run_folder, canary, name):
    """A pickle under any usual name, in the run or in its checkpoint, changes nothing: there is no way back to it."""
    for folder in (run_folder, newest(run_folder)):
        (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    sealed(newest(run_folder))
    with watched():
        nz.Run.load(run_folder).sample([0])
        (newest(run_folder) / "ema.safetensors").unlink()
        sealed(newest(run_folder))
        with pytest.raises(CheckpointError):
            nz.Run.load(run_folder).sample([0])


OPTIMIZERS = [
    "a pickle",
    "torch.save",
    "nothing",
    "a shape that lies",
    "no tensors",
    "metadata with code",
    "a name with escapes",
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_evil_optimizer_executes_nothing(run_folder, canary, kind, capsys):
    """The same for what only resuming reads."""
    checkpoint = newest(run_folder)
    (checkpoint / "optimizer.safetensors").write_bytes(EVIL[kind](canary))
    sealed(checkpoint)
    before = tree(run_folder / "checkpoints")
    arguments = ["--steps", "8", "--data", write_folder(run_folder.parent / "d", 10), "--device", "cpu"]
    fails(capsys, ["train", "--resume", "--out", run_folder, *arguments], 4)
    assert tree(run_folder / "checkpoints") == before


@pytest.mark.parametrize("change", ["more", "fewer", "shape", "dtype"])
def test_weights_of_something_else_are_named(run_folder, change):
    """Tensors that are too many, too few or of another shape are refused by name before they are used; numbers of another width are converted."""
    path = newest(run_folder) / "ema.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    if change == "more":
        tensors["__reduce__"] = torch.zeros(1)
    elif change == "fewer":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][None]
    else:
        tensors = {key: value.half() for key, value in tensors.items()}
    save_file(tensors, path)
    sealed(path.parent)
    if change == "dtype":
        weights = nz.Run.load(run_folder).denoiser().network.state_dict()
        assert all(torch.equal(weights[key], value.float()) for key, value in tensors.items())
        return
    with pytest.raises(CheckpointError, match="__reduce__" if change == "more" else name) as caught:
        load_weights(nz.Run.load(run_folder).recipe.denoiser().network, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=["pipe", "device", "folder"]
)
def test_a_pipe_in_place_of_weights_does_not_hang(tmp_path, make):
    """Weights that are a pipe, a device or a folder are refused at once."""
    path = tmp_path / "ema.safetensors"
    make(path)
    code = (
        "import sys; from pathlib import Path; from nearzero.run import load_tensors; load_tensors(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        env={**os.environ, "PYTHONPATH": str(Path(nz.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1 and "CheckpointError" in done.stderr.splitlines()[-1], done.stderr


# ---- run.json


def nested(depth, kind):
    if kind == "list":
        return "[" * depth + "]" * depth
    return '{"class": "Recipe", "name": ' * depth + "1" + "}" * depth


@pytest.mark.parametrize("depth", [100, 490, 900, 200_000])
@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("where", ["recipe", "data", "provenance"])
def test_nesting_of_any_depth_is_one_line(run_folder, capsys, depth, kind, where):
    """JSON nested as deep as a file allows is refused, or ignored where nothing reads it; the stack does not overflow."""
    record = json.loads((run_folder / "run.json").read_text())
    text = json.dumps({**record, where: "HERE"}).replace('"HERE"', nested(depth, kind))
    (run_folder / "run.json").write_text(text)
    with contextlib.suppress(CheckpointError):
        nz.Run.load(run_folder)
    for name in ("sample", "status"):
        out = ("-n", "1", "--steps", "1", "--out", run_folder.parent / "out", "--overwrite") if name == "sample" else ()
        fails(capsys, [name, run_folder, *out], (4,) if where == "recipe" else (0, 4))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, '"\\ud800"', "true"])
@pytest.mark.parametrize("field", ["seed", "schema_version"])
def test_numbers_that_are_none_are_refused(run_folder, capsys, field, text):
    """NaN, infinities, numbers of 5,000 digits and text in place of a whole number end in exit code 4."""
    record = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps({**record, field: "HERE"}).replace('"HERE"', text))
    fails(capsys, ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"], 4)


def test_a_file_of_any_size_is_refused_unread(run_folder, capsys):
    """A run.json of a gigabyte is refused by its size."""
    with (run_folder / "run.json").open("r+b") as file:
        file.truncate(2**30)
    assert "more than" in fails(capsys, ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"], 4)


def test_a_pipe_in_place_of_a_record_does_not_hang(run_folder):
    """A record that is a pipe, a device or a folder ends every command that reads it, without waiting for anybody."""
    cases = []
    for name in ("run.json", "stats.jsonl", "events.jsonl", "state.json", "manifest.json"):
        for i, make in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir)):
            folder = Path(shutil.copytree(run_folder, run_folder.parent / f"{name}.{i}"))
            path = (folder if name == "run.json" or name.endswith("l") else newest(folder)) / name
            path.unlink(missing_ok=True)
            make(path)
            cases.append(folder)
    code = """if True:
        import sys
        from nearzero.cli import run
        for folder in sys.argv[1:]:
            print(folder, flush=True)
            assert {run([name, folder]) for name in ("status", "verify", "inspect")} <= {0, 4}
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *cases],
        env={**os.environ, "PYTHONPATH": str(Path(nz.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=45,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


JUNK = [
    None,
    3,
    -1,
    "x",
    [],
    ["x"],
    {},
    {"data": ["x"]},
    {"data": 3},
    {"size": "x", "data": None},
    {"channels": [1], "data": None},
]


@pytest.mark.parametrize("where", ["data", "provenance", "source", "classes", "name", "count", "fingerprint"])
def test_junk_in_a_record_is_no_bug(run_folder, capsys, where):
    """Values of any kind in what a run says of its data and origin make commands work or end in one line, never in a traceback."""
    out = run_folder.parent / "out"
    for junk in JUNK:
        edit(
            run_folder, lambda r, junk=junk: (r if where in ("data", "provenance") else r["data"]).update({where: junk})
        )
        for arguments in (
            ["sample", run_folder, "-n", "1", "--steps", "1", "--out", out, "--overwrite"],
            ["inspect", run_folder],
            ["status", run_folder],
            ["train", "--resume", "--dry-run", "--out", run_folder],
        ):
            fails(capsys, arguments, (0, 2, 3, 4))
        if where == "data":
            edit(run_folder, lambda r: r.update(data={"source": {"data": None}}))


@pytest.mark.parametrize(
    "name", ["\x1b]0;owned\x07", "two\nlines", "\x1b[2J<img src=x onerror=alert(1)>", "\u202e", "\ud800"]
)
def test_names_reach_the_terminal_escaped(run_folder, capsys, name):
    """A recipe, a class, a field or a tensor whose name holds terminal escapes or line breaks cannot speak to the terminal."""
    edit(
        run_folder,
        lambda record: (record["recipe"].update(name=name), record["data"].update(name=name, classes=[name])),
    )
    out = run_folder.parent / "out"
    for arguments in (["inspect", run_folder], ["status", run_folder], ["sample", run_folder, "-n", "1", "--out", out]):
        fails(capsys, arguments, 0)
    for change in ({"class": name}, {name: 1}):
        edit(run_folder, lambda record, change=change: record["recipe"].update(change))
        assert fails(capsys, ["sample", run_folder, "-n", "1", "--out", out], 4).count("\n") == 1


def test_a_class_with_a_name_of_a_megabyte_is_one_line(run_folder, capsys):
    """The name of an unknown class is shown shortened."""
    edit(run_folder, lambda record: record["recipe"].update({"class": "x" * 10**6}))
    fails(capsys, ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"], 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 10**9),
        ("size", 0),
        ("size", -8),
        ("size", 2**70),
        ("channels", 10**9),
        ("channels", 0),
        ("base", 10**12),
        ("time_channels", 10**12),
        ("head_channels", 10**12),
    ],
)
def test_a_network_beyond_measure_is_refused(run_folder, capsys, field, value):
    """A recipe that asks for a network or an image that no machine holds ends in one line before anything is computed."""
    edit(run_folder, lambda record: record["recipe"]["network"].update({field: value}))
    fails(capsys, ["sample", run_folder, "-n", "1", "--out", run_folder.parent / "out"], (2, 4, 6))


@pytest.mark.parametrize(
    "key", ["_target_", "auto_map", "_class_name", "trust_remote_code", "architectures", "__reduce__", "py/object"]
)
@pytest.mark.parametrize("value", ["os.system", ["os.system", "x"], True, {"class": "os.system"}])
def test_keys_that_make_other_tools_run_code_do_nothing(run_folder, canary, capsys, key, value):
    """Beside a class such a key is an unknown field; beside the recipe it is not even read; in place of a class it is none."""
    args = {"args": [f"touch {canary}"], "command": f"touch {canary}"}
    clean = (run_folder / "run.json").read_text()
    out = ["-n", "1", "--steps", "1", "--out", run_folder.parent / "out", "--overwrite"]
    edit(run_folder, lambda record: record.update({key: value, **args}))
    fails(capsys, ["sample", run_folder, *out], 0)
    for change in (
        lambda record: record["recipe"].update({key: value}),
        lambda record: record["recipe"].update(network={key: value, **args}),
        lambda record: record.update(recipe={key: value, **args}),
    ):
        (run_folder / "run.json").write_text(clean)
        edit(run_folder, change)
        fails(capsys, ["sample", run_folder, *out], 4)


# ---- images, archives, arrays: the details are in test_data.py and test_archive.py


def evil_data(root, canary):
    """Data that should not be read, by name."""
    good = io.BytesIO()
    Image.new("L", (8, 8)).save(good, format="PNG")
    write_folder(root / "pickle")
    (root / "pickle/a.png").write_bytes(pickle.dumps(Evil(canary)))
    write_folder(root / "svg")
    (root / "svg/a.png").write_text(f"<svg><script>require('fs').writeFileSync('{canary}', '')</script></svg>")
    write_folder(root / "eps")
    (root / "eps/a.png").write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({canary}) (w) file closefile\n")
    for name, entries in {
        "way.zip": {"../canary": good.getvalue()},
        "absolute.zip": {str(canary): good.getvalue()},
        "nested.zip": {"a.png": good.getvalue(), "b.zip": zipped(x=b"")},
        "bomb.zip": {"a.png": bytes(10**7)},
    }.items():
        with zipfile.ZipFile(root / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for inner, content in entries.items():
                archive.writestr(inner, content)
    (root / "torch.zip").write_bytes(torch_zip({"x": Evil(canary)}))
    np.savez(root / "objects.npz", images=np.array([Evil(canary)], dtype=object))
    np.savez(root / "labels.npz", images=np.zeros((1, 8, 8), np.uint8), labels=np.array([Evil(canary)], dtype=object))
    (root / "objects.npy").write_bytes(npy_of_objects(canary))
    (root / "pickle.npz").write_bytes(pickle.dumps(Evil(canary)))
    (root / "pickle.npy").write_bytes(pickle.dumps(Evil(canary)))
    return sorted(root.iterdir())


def test_evil_data_executes_nothing(tmp_path, canary, capsys):
    """Each kind is refused with exit code 3 in one line by train and by read_images, makes no file, unpickles nothing."""
    (tmp_path / "data").mkdir()
    paths = evil_data(tmp_path / "data", canary)
    before = tree(tmp_path)
    for path in paths:
        with watched(), pytest.raises(DataError) as caught:
            read_images(path)
        assert str(caught.value).isprintable() and caught.value.exit_code == 3
        fails(capsys, ["train", "etsdm", "--data", path, "--out", tmp_path / "run"], 3)
    assert tree(tmp_path) == before


def test_class_names_are_only_text(tmp_path):
    """Folders called like markup, templates, paths or commands are classes of that name, from a folder and from a .zip alike."""
    names = [
        "<img src=x onerror=alert(1)>",
        "{{7*7}}",
        "$(touch canary)",
        "os.system",
        "=cmd|' C calc'!A0",
        "%s%n",
        "-rf ~",
    ]
    for i, name in enumerate(names):
        write_folder(tmp_path / "data" / name, 1, seed=i)
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data")
    with watched():
        a, b = read_images(tmp_path / "data"), read_images(tmp_path / "data.zip")
    assert a.classes == b.classes == tuple(sorted(names)) and a.fingerprint() == b.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.zip"]


# ---- no network

ALONE = """
import sys
seen = []
def hook(event, arguments):
    if event == "socket.__new__" or event == "socket.bind" and arguments[1][:2] == ("::1", 0):
        return  # urllib3 asks the kernel whether there is IPv6 when it is imported; no packet leaves
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) or event in {
        "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "webbrowser.open"
    }:
        seen.append((event, str(arguments)[:100]))
sys.addaudithook(hook)
import nearzero as nz
[getattr(nz, name) for name in nz.__all__]
run = nz.Run.load(sys.argv[1])
run.denoiser()
run.sample([0], steps=1)
from nearzero.data import read_images
read_images(sys.argv[2]), nz.embedded()
from nearzero.cli import run as command
assert command(["status", sys.argv[1]]) == 0 and command(["train", "--resume", "--dry-run", "--out", sys.argv[1]]) in (0, 2)
print(seen)
"""


def test_nothing_asks_the_network(run_folder):
    """In a fresh process that loads every public name, a run, images and two commands, no socket is made, no name resolved, nothing unpickled."""
    folder = write_folder(run_folder.parent / "pictures")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, run_folder, folder],
        env={**os.environ, "PYTHONPATH": str(Path(nz.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_errors_have_the_right_code():
    """Files of others end in 3 (data) or 4 (checkpoint)."""
    assert (DataError.exit_code, CheckpointError.exit_code) == (3, 4)
    assert issubclass(DataError, NearzeroError) and issubclass(CheckpointError, NearzeroError)
