"""Tensors out of pickles: what torch.save wrote comes back bit for bit, and nothing that a file says is ever run."""

import collections
import copyreg
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from nearzero import pickled
from nearzero.errors import CheckpointError
from nearzero.pickled import Name, Stub, machine, places, reader
from test_untrusted import EVIL, Evil, watched

FORMATS = pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])


@pytest.fixture
def canary(tmp_path):
    """A file that every payload tries to make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def written(path, content):
    path.write_bytes(content)
    return path


def packed(files):
    """A .zip of {name: content} in the folder m, as torch lays its files out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"m/{name}", content)
    return buffer.getvalue()


def saved(path, value, new=True):
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


def same(a, b):
    """Two tensors with the same bits, layout and place in their storage."""
    assert (a.dtype, a.shape, a.stride(), a.storage_offset()) == (b.dtype, b.shape, b.stride(), b.storage_offset())
    assert torch.equal(bits(a), bits(b))


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


# ---- torch.save


def tensors():
    """Every kind that a checkpoint may hold: dtypes, no numbers, no dimensions, views of all sorts, NaN's own bits."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(6, 8, generator=generator)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool)
    found = {str(kind): (base * 9).to(kind) for kind in kinds}
    found |= {
        str(kind): (base * 9).to(kind) for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    }
    found |= {
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "nan": torch.tensor([0x7FC12345]).view(torch.float32),
    }
    found |= {"base": base, "row": base[2], "column": base[:, 3], "transposed": base.t(), "steps": base[1::2, ::3]}
    return found | {
        "expanded": base[:1].expand(5, 8),
        "parameter": nn.Parameter(base[0].clone()),
        "big": torch.ones(70_000),
    }


@FORMATS
def test_what_torch_saved_comes_back(tmp_path, new):
    """Bit for bit, stride for stride, as torch itself reads it; views of one storage share it again."""
    path = saved(tmp_path / "x.pt", {"model": tensors(), "step": 7, "args": {"lr": 1e-4, "names": ("a", None)}}, new)
    with watched():
        found = pickled.read(path)
    oracle = torch.load(path, weights_only=True)
    assert found["step"] == 7 and found["args"] == {"lr": 1e-4, "names": ("a", None)}
    assert found["model"].keys() == oracle["model"].keys()
    for name, tensor in oracle["model"].items():
        same(found["model"][name], tensor.detach())
    found["model"]["base"][2, 3] = 99.0
    assert found["model"]["row"][3] == found["model"]["column"][2] == found["model"]["transposed"][3, 2] == 99.0


@FORMATS
def test_a_float8_tensor_and_one_with_attributes(tmp_path, new):
    """Tensors that torch rebuilds by other functions come back too."""
    marked = nn.Parameter(torch.arange(3.0))
    marked.note = "mine"
    value = {"f8": torch.arange(4.0).to(torch.float8_e4m3fn), "marked": marked}
    found = pickled.read(saved(tmp_path / "x.pt", value, new))
    same(found["f8"], value["f8"])
    same(found["marked"], marked.detach())


class Small(nn.Module):
    """A module with everything a module may hold."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.tied = self.layers[0]
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.scale, self.none = nn.Parameter(torch.ones(())), None

    def forward(self, x):
        return self.layers(x) * self.scale + torch.tensor([2.5, 1.0, 3.0, 4.0]).reshape(1, 4, 1, 1)


@FORMATS
def test_a_module_gives_its_state_dict(tmp_path, new):
    """A whole pickled module has the names and numbers of its own state_dict, and no class of it is imported."""
    module = Small()
    found = pickled.state_dicts(saved(tmp_path / "x.pt", {"ema": module, "epoch": 3}, new))
    assert found.keys() == {"ema"} and found["ema"].keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        same(found["ema"][name], tensor)
    assert "test_pickled.Small" in pickled.contents(tmp_path / "x.pt").names


@pytest.mark.filterwarnings("ignore")  # TorchScript is old, and its tracer warns of constants
def test_torchscript_gives_its_state_dict_and_its_constants(tmp_path):
    """A TorchScript archive is read without its code: names and numbers are those of torch.jit.load, constants apart."""
    module = Small().eval()
    traced = torch.jit.trace(module, torch.zeros(1, 1, 5, 5))
    torch.jit.save(traced, str(tmp_path / "x.pt"))
    with watched():
        found = pickled.state_dicts(tmp_path / "x.pt")
    oracle = torch.jit.load(str(tmp_path / "x.pt")).state_dict()
    assert found["module"].keys() == oracle.keys()
    for name, tensor in oracle.items():
        same(found["module"][name], tensor)
    assert found[""].keys() == {"constants.0"} and found[""]["constants.0"].tolist() == [2.5, 1, 3, 4]


# ---- numpy


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_numpy_come_back(tmp_path, protocol):
    """Arrays of every kind of number, order and byte order, and numpy's scalars, in every protocol of pickle."""
    base = np.arange(24).reshape(2, 3, 4)
    kinds = ["f4", "f8", "f2", "i1", "i8", "u1", "u2", "?", "c8", ">f4", ">i4"]
    value = {kind: base.astype(kind) for kind in kinds}
    value |= {"fortran": np.asfortranarray(base * 1.5), "empty": np.empty((0, 2)), "none": np.array(2.0)}
    value |= {"scalar": np.float32(1.25), "list": [base, base[:, 1]]}
    path = written(tmp_path / "x.pkl", pickle.dumps(value, protocol))
    with watched():
        found = pickled.read(path)
    for name in value.keys() - {"scalar", "list"}:
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype.newbyteorder("=")
    assert found["scalar"] == 1.25
    np.testing.assert_array_equal(found["list"][1], base[:, 1])


@pytest.mark.parametrize("shape", [(2,), (4,), (-3,), (2**62,), (2**32, 2**32), (1,) * 40])
def test_an_array_with_another_shape_than_its_bytes(tmp_path, shape):
    """Bytes that are more or fewer than an array's shape takes are refused."""
    honest = (glob("numpy.dtype") + text("f8") + b"\x85R", b"(" + number(3) + b"t")
    lie = b"(" + b"".join(number(value) for value in shape) + b"t"
    for size, ends in ((honest[1], True), (lie, False)):
        content = glob("numpy.core.numeric._frombuffer") + b"(" + bytes_of(24) + honest[0] + size + text("C") + b"tR"
        path = written(tmp_path / "x.pkl", proto2(content))
        if ends:
            assert pickled.read(path).tolist() == [0, 0, 0]
        else:
            with pytest.raises(CheckpointError, match="cannot be read"):
                pickled.read(path)


def test_layers_as_lists_of_arrays(tmp_path):
    """The look-alike of the numpy SqueezeNet: {"layer": [weight, bias]} is one state dict, numbered inside a layer."""
    layers = {f"conv{i}": [np.ones((3, 3, 1, i), np.float32), np.zeros(i, np.float32)] for i in (1, 2)}
    found = pickled.state_dicts(written(tmp_path / "x.pkl", pickle.dumps(layers, 3)))
    assert {name: tuple(t.shape) for name, t in found[""].items()} == {
        "conv1.0": (3, 3, 1, 1), "conv1.1": (1,), "conv2.0": (3, 3, 1, 2), "conv2.1": (2,),
    }  # fmt: skip


# ---- EDM's snapshots


def edm_pickle(canary):
    """A look-alike of EDM's snapshot: modules that name a rebuilding function, and carry their source as text."""
    home = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError

    _reconstruct_persistent_obj.__module__ = home.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    home._reconstruct_persistent_obj = _reconstruct_persistent_obj

    class Persistent(nn.Module):
        def __reduce__(self):
            source = f"open({str(canary)!r}, 'w').write('run')"
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": type(self).__name__}
            return _reconstruct_persistent_obj, (meta | {"state": self.__dict__},), None

    class Linear(Persistent):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 2)), None

    class Precond(Persistent):
        def __init__(self):
            super().__init__()
            self.model, self.sigma_data = nn.ModuleDict({"16x16_conv": Linear()}), 0.5
            self.register_buffer("filter", torch.ones(4) / 4)

    network = Precond()
    sys.modules["torch_utils"], sys.modules["torch_utils.persistence"] = types.ModuleType("torch_utils"), home
    try:
        return network, pickle.dumps({"ema": network, "loss_fn": None, "dataset_kwargs": {"path": "x", "n": 3}})
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


def test_edms_snapshot_gives_its_tensors_and_its_source_stays_text(tmp_path, canary):
    """The tensors are those of the network that was pickled; the source in the file would write a canary."""
    network, content = edm_pickle(canary)
    assert str(canary).encode() in content
    with watched():
        found = pickled.state_dicts(written(tmp_path / "x.pkl", content))
    assert found.keys() == {"ema"} and found["ema"].keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        same(found["ema"][name], tensor)
    assert "torch_utils.persistence._reconstruct_persistent_obj" in pickled.contents(tmp_path / "x.pkl").names


# ---- where state dicts lie


def test_places_of_state_dicts(tmp_path):
    """Lightning's, score_sde's and lucidrains' files: each state dict has its place, optimizers one each, no tensor is lost."""
    weights, adam = {"net.w": torch.ones(2)}, {"state": {0: {"exp_avg": torch.ones(2)}, 1: {"exp_avg": torch.ones(1)}}}
    value = {
        "state_dict": collections.OrderedDict(weights),
        "optimizer_states": [adam],
        "ema": {"decay": 0.9, "shadow_params": [torch.ones(2), torch.ones(1)]},
        "step": torch.tensor(3),
        "hyper_parameters": {"nested": {"deep": {"w": torch.zeros(1)}}},
        "nothing": {"x": 1},
    }
    found = pickled.state_dicts(saved(tmp_path / "x.pt", value))
    assert {place: set(names) for place, names in found.items()} == {
        "": {"step"},
        "state_dict": {"net.w"},
        "optimizer_states.0": {"state.0.exp_avg", "state.1.exp_avg"},
        "ema": {"shadow_params.0", "shadow_params.1"},
        "hyper_parameters.nested.deep": {"w"},
    }


@pytest.mark.parametrize(("value", "place", "name"), [(torch.ones(2), "", "tensor"), ([torch.ones(2)], "", "0")])
def test_a_bare_tensor_has_a_place(tmp_path, value, place, name):
    """A tensor alone, and a list of them, are found."""
    assert pickled.state_dicts(saved(tmp_path / "x.pt", value))[place].keys() == {name}


# ---- evil: nothing runs


def proto2(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def glob(name):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def command(canary):
    return f"touch {canary}"


def getattr_chain(canary):
    """builtins.getattr(builtins.__import__("os"), "system")("touch ...")."""
    imported = glob("builtins.__import__") + text("os") + b"\x85R"
    return proto2(glob("builtins.getattr"), imported, text("system"), b"\x86R", text(command(canary)), b"\x85R")


class Twice:
    """A torch.load inside a pickle: a path that torch would open."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return torch.load, (str(self.path),)


PAYLOADS = {
    "reduce": lambda c: pickle.dumps(Evil(c)),
    "posix.system": lambda c: proto2(glob("posix.system"), text(command(c)), b"\x85R"),
    "eval": lambda c: proto2(glob("builtins.eval"), text(f"open('{c}', 'w')"), b"\x85R"),
    "exec": lambda c: proto2(glob("builtins.exec"), text(f"open('{c}', 'w')"), b"\x85R"),
    "eval of Python 2": lambda c: f"c__builtin__\neval\n(S'open(\"{c}\", \"w\")'\ntR.".encode(),
    "INST": lambda c: f"(S'{command(c)}'\nios\nsystem\n.".encode(),
    "OBJ": lambda c: proto2(b"(", glob("os.system"), text(command(c)), b"o"),
    "NEWOBJ": lambda c: proto2(glob("subprocess.Popen"), text(command(c)), b"\x85\x81"),
    "NEWOBJ_EX": lambda c: proto2(
        glob("subprocess.Popen"), text(command(c)), b"\x85}", text("shell"), b"\x88s\x92"
    ),
    "STACK_GLOBAL": lambda c: proto2(text("os"), text("system"), b"\x93", text(command(c)), b"\x85R"),
    "getattr": getattr_chain,
    "copyreg": lambda c: proto2(glob("copyreg._reconstructor"), glob("os.system"), glob("builtins.object"), text("x"), b"\x87R"),
    "BUILD": lambda c: proto2(glob("os.system"), b")\x81}", text("__setstate__"), glob("os.system"), b"sb", text(command(c)), b"b"),
    "runpy": lambda c: proto2(glob("runpy.run_path"), text(str(c)), b"\x85R"),
    "torch.load": lambda c: pickle.dumps(Twice(c)),
    "a rebuild function of another name": lambda c: proto2(
        glob("torch._tensor._rebuild_from_type_v2"), b"(", glob("os.system"), glob("torch.Tensor"), text(command(c)), b"\x85NtR"
    ),
    "numpy objects": lambda c: pickle.dumps(np.array([Evil(c)], dtype=object)),
    "a numpy dtype of objects": lambda c: proto2(
        glob("numpy.core.multiarray.scalar"), glob("numpy.dtype"), text("O8"), b"\x85R", text(command(c)), b"\x86R"
    ),
    "a storage that is a pickle": lambda c: proto2(
        glob("torch.storage._load_from_bytes"), b"B", struct.pack("<I", len(pickle.dumps(Evil(c)))), pickle.dumps(Evil(c)), b"\x85R"
    ),
    "EDM's source": lambda c: edm_pickle(c)[1],
    "an opcode of the registry": lambda c: proto2(b"\x82\x01"),
    "a buffer from outside": lambda c: b"\x80\x05\x97.",
}  # fmt: skip


@pytest.mark.parametrize("payload", [*PAYLOADS, *EVIL])
@pytest.mark.parametrize("wrap", ["bare", "zip", "old"])
def test_nothing_runs(tmp_path, canary, payload, wrap):
    """No payload runs, bare, as data.pkl of a torch file or behind the old header: it ends in stubs, or in an error."""
    content = (PAYLOADS.get(payload) or EVIL[payload])(canary)
    if wrap == "zip":
        content = packed({"data.pkl": content, "constants.pkl": content, "version": "3\n"})
    if wrap == "old":
        content = pickle.dumps(reader.TORCH_MAGIC) + pickle.dumps(1001) + pickle.dumps({}) + content + pickle.dumps([])
    path = written(tmp_path / "x.pt", content)
    modules = set(sys.modules)
    with watched():
        try:
            pickled.state_dicts(path)
        except CheckpointError as error:
            assert str(path) in str(error)
    assert {name for name in set(sys.modules) - modules if not name.startswith("encodings.")} == set()


def test_an_evil_pickle_becomes_a_stub(tmp_path, canary):
    """What would be called is kept as text, with its arguments."""
    found = pickled.read(written(tmp_path / "x.pkl", pickle.dumps({"x": Evil(canary)})))
    assert isinstance(found["x"], Stub) and found["x"].name in ("posix.system", "nt.system")
    assert found["x"].args == (command(canary),)


def test_the_registry_of_copyreg_is_not_asked(tmp_path, canary):
    """An extension code that this process knows is refused all the same."""
    copyreg.add_extension("os", "system", 201)
    try:
        content = proto2(b"\x82\xc9", text(command(canary)), b"\x85R")
        with pytest.raises(CheckpointError, match="EXT1"):
            pickled.read(written(tmp_path / "x.pkl", content))
    finally:
        copyreg.remove_extension("os", "system", 201)


def test_a_class_is_a_name(tmp_path):
    """A class that stands in a pickle is a Name; its state is refused."""
    assert pickled.read(written(tmp_path / "x.pkl", proto2(glob("os.system")))) == Name("os.system")
    with pytest.raises(CheckpointError, match="Name is given a state"):
        pickled.read(written(tmp_path / "y.pkl", proto2(glob("os.system"), b"}b")))


# ---- lies about sizes


def view(size, stride, offset=0, count=4, key="0", kind="torch.FloatStorage", where="cpu"):
    """data.pkl of one tensor of a storage that says it has `count` numbers."""

    def numbers(values):
        return b"(" + b"".join(number(value) for value in values) + b"t"

    storage = b"(" + text("storage") + glob(kind) + text(key) + text(where) + number(count) + b"tQ"
    hooks = glob("collections.OrderedDict") + b")R"
    arguments = b"(" + storage + number(offset) + numbers(size) + numbers(stride) + b"\x89" + hooks + b"t"
    return proto2(glob("torch._utils._rebuild_tensor_v2") + arguments + b"R")


def test_an_honest_view_is_read(tmp_path):
    """The maker of lies below tells the truth here."""
    content = packed({"data.pkl": view((2, 2), (1, 2)), "data/0": struct.pack("<4f", 1, 2, 3, 4)})
    found = pickled.read(written(tmp_path / "x.pt", content))
    assert found.tolist() == [[1, 3], [2, 4]]


LIES = {
    "one row too many": view((3, 2), (2, 1)),
    "a stride too large": view((2, 2), (3, 1)),
    "a stride of 2^62": view((2, 2), (2**62, 1)),
    "strides that overflow": view((2**33, 2**33), (2**33, 2**33)),
    "an endless broadcast": view((2**40, 2**30), (0, 0)),
    "an offset beyond": view((1,), (1,), offset=4),
    "an offset of 2^63": view((1,), (1,), offset=2**63),
    "a negative offset": view((1,), (1,), offset=-1),
    "a negative stride": view((2,), (-1,), offset=1),
    "a negative size": view((-2,), (1,)),
    "a missing stride": view((2, 2), (1,)),
    "forty dimensions": view((1,) * 40, (1,) * 40),
    "a storage that is smaller": view((4,), (1,), count=8),
    "a storage that is larger": view((1,), (1,), count=2),
    "a storage of 2^40": view((1,), (1,), count=2**40),
    "a negative storage": view((1,), (1,), count=-4),
    "wider numbers": view((4,), (1,), kind="torch.DoubleStorage"),
    "an unknown storage": view((4,), (1,), kind="torch.QInt8Storage"),
    "a storage of another module": view((4,), (1,), kind="os.FloatStorage"),
    "a storage that is missing": view((4,), (1,), key="1"),
    "a storage out of the archive": view((4,), (1,), key="../../../etc/passwd"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_view_beyond_its_storage_is_refused(tmp_path, lie):
    """A size, stride, offset or storage that reaches beyond what is there ends in one line, not in foreign memory."""
    content = packed({"data.pkl": LIES[lie], "data/0": bytes(16)})
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        pickled.read(written(tmp_path / "x.pt", content))
    assert "\n" not in str(caught.value)


def old_file(body, keys, storages):
    head = pickle.dumps(reader.TORCH_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + body + pickle.dumps(keys, 2) + storages


def old_view(size, count=4, part=b"N", offset=0):
    content = view((size,), (1,), offset, count)
    return content.replace(number(count) + b"tQ", number(count) + part + b"tQ", 1)


def part_of(offset, count):
    return b"(" + text("view") + number(offset) + number(count) + b"t"


FOUR = struct.pack("<q4f", 4, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (old_file(old_view(4), ["0"], FOUR), [1, 2, 3, 4]),
        (old_file(old_view(2, part=part_of(2, 2)), ["0"], FOUR), [3, 4]),
        (old_file(old_view(1, part=part_of(2, 2), offset=1), ["0"], FOUR), [4]),
        (old_file(old_view(2, part=part_of(2, 2), offset=1), ["0"], FOUR), None),
        (old_file(old_view(3, part=part_of(1, 2)), ["0"], FOUR), None),
        (old_file(old_view(2, part=part_of(3, 2)), ["0"], FOUR), None),
        (old_file(old_view(2, part=part_of(-1, 2)), ["0"], FOUR), None),
        (old_file(old_view(5), ["0"], FOUR), None),
        (old_file(old_view(4), ["0"], struct.pack("<q", 2**40) + FOUR[8:]), None),
        (old_file(old_view(4), ["0"], struct.pack("<q", -4) + FOUR[8:]), None),
        (old_file(old_view(4), ["0"], FOUR[:-1]), None),
        (old_file(old_view(4), ["0"], FOUR + b"x"), None),
        (old_file(old_view(4), ["1"], FOUR), None),
        (old_file(old_view(4), [], b""), None),
        (old_file(old_view(4), "0", FOUR), None),
        (old_file(old_view(1, 2**34), ["0"], b""), None),
        (old_view(4), None),
    ],
)
def test_storages_of_the_old_format(tmp_path, content, numbers):
    """They are as large as the file says in both places, and as the file is; none stays empty, no view leaves its part."""
    path = written(tmp_path / "x.pt", content)
    if numbers is not None:
        assert pickled.read(path).tolist() == numbers
    else:
        with pytest.raises(CheckpointError, match="cannot be read"):
            pickled.read(path)


# ---- bombs


def bytes_of(size):
    return b"B" + struct.pack("<I", size) + bytes(size)


def laughs(levels):
    """A list of ten of a list of ten of ...: 10^levels empty lists in a few hundred bytes."""
    content = b"]q\x00"
    for level in range(levels):
        content += b"(" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"lq" + bytes([level + 1])
    return proto2(content)


BOMBS = {
    "a memo of 2^32": proto2(b"]r\xff\xff\xff\xff"),
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "text of 2^32": b"\x80\x02X\xff\xff\xff\xffx.",
    "a number of 2^31 digits": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "a number in ten million digits": b"L" + b"9" * 10_000_000 + b"L\n.",
    "marks without end": proto2(b"(" * 100_000),
    "a tuple of tuples of ...": proto2(b")" + b"\x85" * 100_000),
    "a key that is a tuple of tuples of ...": proto2(b"}" + b")" + b"\x85" * 100_000 + b"Ns"),
    "a list that holds itself": proto2(b"]q\x00h\x00a"),
    "a dict that holds itself": proto2(b"}q\x00", text("x"), b"h\x00s"),
    "a billion laughs": laughs(40),
    "a billion laughs as the name of a storage": view((1,), (1,)).replace(text("0"), laughs(40)[2:-1]),
    "a billion laughs as a class": laughs(40)[:-1] + b")\x81.",
    "bytes copied again and again": proto2(
        bytes_of(10**6) + b"q\x00(" + (glob("_codecs.encode") + text("x" * 10**6) + b"q\x01\x85R") * 1
        + (glob("_codecs.encode") + b"h\x01\x85R") * 100 + b"l"
    ),
    "an array copied again and again": proto2(
        bytes_of(8 * 10**6) + b"q\x000" + glob("numpy.dtype") + text("f8") + b"\x85Rq\x010("
        + (glob("numpy.core.numeric._frombuffer") + b"(h\x00h\x01" + number(10**6) + b"\x85" + text("C") + b"tR") * 20 + b"l"
    ),
    "storages inside storages": None,
    "nothing": b"",
    "half a pickle": pickle.dumps(list(range(1000)))[:500],
    "two pickles": pickle.dumps(1) * 2,
    "pops of nothing": proto2(b"0000"),
}  # fmt: skip


def nested(depth):
    content = proto2(b"N")
    for _ in range(depth):
        content = proto2(
            glob("torch.storage._load_from_bytes"), b"B", struct.pack("<I", len(content)), content, b"\x85R"
        )
    return content


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end(tmp_path, bomb):
    """What would fill memory, or never end, is refused or read in seconds."""
    content = nested(1000) if bomb == "storages inside storages" else BOMBS[bomb]
    path = written(tmp_path / "x.pkl", content)
    with watched():
        try:
            found = pickled.state_dicts(path)
        except CheckpointError as error:
            assert str(path) in str(error) and len(str(error)) < 1000
        else:
            assert found == {}


def test_what_holds_no_tensors_is_seen_once(tmp_path, monkeypatch):
    """A billion laughs hold nothing, which a few hundred steps find out."""
    monkeypatch.setattr(places, "MAX_VISITS", 10_000)
    assert pickled.state_dicts(written(tmp_path / "x.pkl", laughs(40))) == {}


def test_a_maze_of_tensors_ends(tmp_path, monkeypatch):
    """Dicts that lead to one tensor by 2^60 ways are refused after as many steps as are allowed."""
    monkeypatch.setattr(places, "MAX_VISITS", 10_000)
    inner = {"w": torch.ones(1)}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    with pytest.raises(CheckpointError, match="more than 10,000 places"):
        pickled.state_dicts(saved(tmp_path / "x.pt", inner))


def test_limits_of_opcodes_and_names(tmp_path, monkeypatch):
    """More opcodes than allowed, and a name without end, are refused."""
    with pytest.raises(CheckpointError, match="a name in it has more than"):
        pickled.state_dicts(saved(tmp_path / "x.pt", {"x" * 2000: {"w": torch.ones(1)}}))
    monkeypatch.setattr(
        machine.Budget, "__init__", lambda self, size: vars(self).update(bytes=size, opcodes=5, names=set())
    )
    with pytest.raises(CheckpointError, match="opcodes"):
        pickled.read(tmp_path / "x.pt")


def test_a_storage_that_unpacks_to_a_thousand_times_its_size(tmp_path):
    """A packed entry may be larger than the file, but not by much, once it is more than a few megabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", view((1,), (1,), count=20_000_000))
        archive.writestr("m/data/0", bytes(80_000_000))
    with pytest.raises(CheckpointError, match="many times its size"):
        pickled.read(written(tmp_path / "x.pt", buffer.getvalue()))


def test_zips_that_are_no_checkpoints(tmp_path):
    """A .zip without data.pkl, with two of them, with an entry twice, or of another byte order is refused."""
    honest = {"data.pkl": view((1,), (1,)), "data/0": bytes(16)}
    assert pickled.read(written(tmp_path / "honest.pt", packed(honest))).tolist() == [0.0]
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("m/data.pkl", pickle.dumps(1))
        archive.writestr("m/data.pkl", pickle.dumps(2))
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(1))
        archive.writestr("n/data.pkl", pickle.dumps(2))
    evil = [packed({"a": b"x"}), two.getvalue(), packed(honest | {"byteorder": b"big"}), twice.getvalue()]
    for i, content in enumerate(evil):
        with pytest.raises(CheckpointError, match="cannot be read"):
            pickled.read(written(tmp_path / f"{i}.pt", content))


@FORMATS
def test_any_damaged_byte_ends_in_a_value_or_one_line(tmp_path, new):
    """Of 300 files with one byte changed, each is read or refused: no other error, no crash."""
    path = saved(tmp_path / "x.pt", {"a": torch.arange(6.0).reshape(2, 3).t(), "b": {"c": torch.ones(2).half()}}, new)
    content, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(content)
        changed[generator.integers(len(content))] = generator.integers(256)
        try:
            with watched():
                pickled.state_dicts(written(path, bytes(changed)))
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_a_file_that_is_none(tmp_path):
    """A folder and a name without a file are CheckpointErrors."""
    for path in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError, match="no regular file"):
            pickled.read(path)
