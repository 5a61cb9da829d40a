"""Files are whole or not there; pictures are exact."""

import errno
import io
import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import tree
from nearzero.errors import CheckpointError, DiskError
from nearzero.files import (
    PIECE,
    clean,
    contact_sheet,
    digest,
    digest_file,
    grid_png,
    new_folder,
    png,
    read_json,
    remove_folder,
    to_bytes,
    write_bytes,
    write_json,
    write_parts,
)

full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
kills = pytest.mark.parametrize("error", [full, KeyboardInterrupt()], ids=["disk full", "interrupt"])


def survive(faults, folder, kind, error, write, allowed):
    """Fails `write` at its first call of a kind, its second, ... until it succeeds; returns how many calls it makes."""
    for at in range(1, 30):
        faults.arm(kind, at, error)
        try:
            write()
        except (DiskError, KeyboardInterrupt):
            assert tree(folder) in allowed, f"{kind}, call {at}"
        else:
            assert tree(folder) == allowed[-1]
            return at - 1
        finally:
            faults.disarm()
    raise AssertionError("the write never succeeds")


@kills
@pytest.mark.parametrize("kind", ["write", "fsync", "chmod", "replace"])
@pytest.mark.parametrize("old", [None, b"old content"], ids=["new file", "old file"])
def test_a_killed_write_leaves_the_old_file_or_the_new(tmp_path, faults, kind, error, old):
    """At whichever write, fsync, chmod or replace write_bytes fails, the file is the old or the new one, and no temporary file stays."""
    before = {} if old is None else {"file": old}
    if old is not None:
        (tmp_path / "file").write_bytes(old)
    after = {"file": b"new content" * 1000}
    assert (
        survive(faults, tmp_path, kind, error, lambda: write_bytes(tmp_path / "file", after["file"]), [before, after])
        >= 1
    )


@kills
@pytest.mark.parametrize("kind", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("old", [None, b"old content"], ids=["new folder", "old folder"])
def test_a_killed_folder_is_the_old_or_the_new(tmp_path, faults, kind, error, old):
    """At whichever fsync, chmod or replace new_folder fails, the folder is the old or the new one, and nothing else stays."""
    before = {} if old is None else {"folder": None, "folder/a": old, "folder/c": b"gone later"}
    if old is not None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/a").write_bytes(old)
        (tmp_path / "folder/c").write_bytes(b"gone later")
    after = {"folder": None, "folder/a": b"new" * 1000, "folder/b": None, "folder/b/c": b"x"}

    def write():
        with new_folder(tmp_path / "folder") as aside:
            (aside / "a").write_bytes(after["folder/a"])
            (aside / "b").mkdir()
            (aside / "b/c").write_bytes(b"x")

    assert survive(faults, tmp_path, kind, error, write, [before, after]) >= 1


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """new_folder syncs each file and folder, itself included, then renames, then syncs the parent."""
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(os, "replace", lambda a, b: [seen.append("rename"), replace(a, b)])
    with new_folder(tmp_path / "folder") as aside:
        (aside / "b").mkdir()
        (aside / "b/c").write_bytes(b"x")
    assert seen[-2:] == ["rename", str(tmp_path)]
    assert sorted(seen[:-2]) == [str(aside), str(aside / "b"), str(aside / "b/c")]


def test_cleaning_gives_back_what_was_not_replaced(tmp_path):
    """A folder that was renamed to make place comes back where no new one has the name, and goes where one does."""
    for name in (".old-a-x1", ".old-b-x2", "b", ".tmp-a-x3", ".tmp-c-gone", ".old", ".tmp-c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "was").write_text(name)
    (tmp_path / ".tmp-file-x").write_text("mine")
    assert clean(tmp_path) == [".old-a-x1", ".old-b-x2", ".tmp-a-x3", ".tmp-c-gone"]
    kept = {name: (tmp_path / name / "was").read_text() for name in ("a", "b", ".old", ".tmp-c")}
    assert kept == {"a": ".old-a-x1", "b": "b", ".old": ".old", ".tmp-c": ".tmp-c"}
    assert len(tree(tmp_path)) == 2 * len(kept) + 1 and clean(tmp_path) == [] == clean(tmp_path / "nowhere")


def test_removing_is_whole_or_not(tmp_path, faults):
    """A folder that the system will not rename stays whole, with DiskError; otherwise nothing of it is left."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("x")
    before = tree(tmp_path)
    faults.arm("replace", 1, OSError(errno.EACCES, "no"))
    with pytest.raises(DiskError, match="cannot write .*a: no"):
        remove_folder(tmp_path / "a")
    faults.disarm()
    assert tree(tmp_path) == before
    remove_folder(tmp_path / "a")
    assert tree(tmp_path) == {}


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_parts_are_written_whole(tmp_path_factory, parts):
    """write_parts writes the parts one after the other; bytes and hash are those of the file; an existing file is refused."""
    path = tmp_path_factory.getbasetemp() / "parts"
    path.unlink(missing_ok=True)
    assert (
        write_parts(path, parts) == (len(b"".join(parts)), digest(*parts)) == (path.stat().st_size, digest_file(path))
    )
    assert path.read_bytes() == b"".join(parts)
    with pytest.raises(DiskError, match="File exists"):
        write_parts(path, [b""])


def test_large_parts_are_cut_into_pieces(tmp_path):
    """`check` is called before each piece of at most 16 MiB, and what it raises ends the writing."""
    calls = []
    part = np.arange(2 * PIECE + 5, dtype=np.uint8)
    size, told = write_parts(tmp_path / "a", [part], lambda: calls.append(0))
    assert (size, len(calls), told) == (len(part), 3, digest(part.tobytes())) and told == digest_file(tmp_path / "a")

    def stop():
        raise InterruptedError("enough")

    with pytest.raises(DiskError, match="enough"):
        write_parts(tmp_path / "b", [part], stop)
    assert (tmp_path / "b").stat().st_size == 0


def test_an_error_in_the_block_leaves_the_folder_alone(tmp_path):
    """An error inside new_folder's block comes out unchanged, and the old folder stays."""
    write_bytes(tmp_path / "folder/a", b"old")
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "folder") as aside:
        (aside / "a").write_bytes(b"new")
        _ = 1 // 0
    assert tree(tmp_path) == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_follow_umask(tmp_path, mask):
    """A file is 666 and a folder 777 without the umask's bits, not mkstemp's 600 and 700; the umask stays."""
    former = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        left = os.umask(former)
    assert left == mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("below", ["file/x", "file/x/y"])
def test_a_path_below_a_file_is_a_disk_error(tmp_path, below):
    """Writing below a regular file raises DiskError that names the path and the remedy, and the file stays."""
    (tmp_path / "file").write_bytes(b"mine")
    for write in (lambda path: write_bytes(path, b""), lambda path: new_folder(path).__enter__()):
        with pytest.raises(
            DiskError, match=f"cannot write .*{below}: .*; choose a folder that you can write to"
        ) as caught:
            write(tmp_path / below)
        assert "\n" not in str(caught.value)
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a folder"), (errno.EACCES, "choose a folder")],
)
def test_a_disk_error_names_path_cause_and_remedy(tmp_path, faults, number, remedy):
    """A full disk asks for space, a read-only or forbidden one for another folder; both name the path and the cause."""
    faults.arm("fsync", 1, OSError(number, os.strerror(number)))
    with pytest.raises(DiskError) as caught:
        write_bytes(tmp_path / "file", b"content")
    for part in (str(tmp_path / "file"), os.strerror(number), remedy):
        assert part in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
)


@given(json_values)
def test_json_comes_back(tmp_path_factory, value):
    """read_json(write_json(value)) == value for every JSON value, any alphabet included."""
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_holds_no_nan(tmp_path):
    """write_json refuses NaN, which is no JSON, and leaves the old file."""
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": math.nan})
    assert tree(tmp_path) == {"x.json": b"1\n"}


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b'{"a": 1}]', b"\xff\xfe", b"[" * 100_000],
    ids=["missing", "empty", "cut", "more", "not utf-8", "deep"],
)
def test_damaged_json_is_a_checkpoint_error(tmp_path, content):
    """JSON that is missing, cut short, not UTF-8 or too deep raises CheckpointError, one line with the path and the remedy."""
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read .*run.json: .*; restore the file or train again") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_digest_is_that_of_the_whole():
    """digest(a, b) is 32 hexadecimal digits of BLAKE2b over a then b, and one bit changes it."""
    assert digest() == "cae66941d9efbd404e4d88758ea67670"  # BLAKE2b-128 of nothing, as b2sum -l 128 prints it
    assert digest(b"abc", b"def") == digest(b"abcdef") != digest(b"abcdeg")


@given(st.integers(0, 255), st.floats(-0.49, 0.49), st.floats(0.5, 1e30))
def test_to_bytes_rounds_and_cuts(k, off, far):
    """k + delta with |delta| < 1/2 becomes k; what lies outside [0, 255] becomes 0 or 255."""
    assert to_bytes(torch.tensor([k + off, -far, 255 + far], dtype=torch.float64)).tolist() == [k, 0, 255]


def noise(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.uint8)


def opened(content):
    array = np.asarray(Image.open(io.BytesIO(content)))
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_png_is_exact(channels, scale):
    """Pillow reads back from png every pixel, `scale` x `scale` times, grey as grey and RGB as RGB."""
    image = noise(channels, 5, 7)
    back = opened(png(image, scale))
    assert back.shape == (channels, 5 * scale, 7 * scale)
    for i in range(scale):
        for j in range(scale):
            assert torch.equal(back[:, i::scale, j::scale], image)


@given(st.integers(1, 12), st.none() | st.integers(1, 15), st.integers(0, 3), st.sampled_from([1, 3]))
def test_a_contact_sheet_puts_each_image_in_its_place(count, columns, gap, channels):
    """Image i lies in line i // columns, column i % columns, gap pixels apart, and everything else is white."""
    images = noise(count, channels, 2, 3)
    sheet = contact_sheet(images, columns, gap)
    wide = min(count, columns or math.ceil(math.sqrt(count)))
    assert sheet.shape == (channels, -(-count // wide) * (2 + gap) + gap, wide * (3 + gap) + gap)
    for i, image in enumerate(images):
        top, left = gap + i // wide * (2 + gap), gap + i % wide * (3 + gap)
        place = sheet[:, top : top + 2, left : left + 3]
        assert torch.equal(place, image)
        place.fill_(255)
    assert bool((sheet == 255).all())


@pytest.mark.parametrize(("size", "count", "scale"), [(8, 16, 17), (28, 64, 2), (256, 9, 1)])
def test_a_grid_is_a_sheet_enlarged(size, count, scale):
    """grid_png is the contact sheet with each pixel drawn the whole number of times that fits in 640 pixels."""
    images = noise(count, 1, size, size)
    sheet = contact_sheet(images)
    back = opened(grid_png(images))
    assert back.shape[-1] // sheet.shape[-1] == scale
    assert torch.equal(back[:, ::scale, ::scale], sheet)


def test_write_json_is_for_people(tmp_path):
    """The file is indented, keeps its alphabet and ends with a newline."""
    write_json(tmp_path / "x.json", {"name": "Zürich"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Zürich"\n}\n' and json.loads(text) == {"name": "Zürich"}
