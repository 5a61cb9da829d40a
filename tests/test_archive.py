"""Archives and arrays of images: equal to the folder that they hold, and refused in one line where they could hurt."""

import io
import itertools
import os
import shutil
import stat
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import nearzero as nz
from conftest import tree
from nearzero.data import archive, arrays, folder, read_archive, read_arrays, read_folder, read_images
from nearzero.errors import ArgumentError, DataError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def entry(name, content=None, mode=None, method=zipfile.ZIP_STORED):
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    if mode is not None:
        info.create_system, info.external_attr = 3, mode << 16
    return info, png(noise(8, 8)) if content is None else content


def pack(path, *entries):
    """A .zip of entries; a name stands for an image."""
    with zipfile.ZipFile(path, "w") as file:
        for each in entries:
            info, content = entry(each) if isinstance(each, str) else each
            file.writestr(info, content)
    return path


def patched(path, field, value, signature=b"PK\x01\x02", form="<I"):
    """Overwrites a field of the first record of a kind."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(signature) + field, value)
    path.write_bytes(content)
    return path


def same(a, b):
    """Equal pixels, labels, classes, and so fingerprints."""
    assert a.fingerprint() == b.fingerprint() and a.classes == b.classes
    assert np.array_equal(a.pixels.numpy(), b.pixels.numpy())
    assert (a.labels is None) == (b.labels is None) and (a.labels is None or a.labels.tolist() == b.labels.tolist())


def refused(path, *words, reader=read_images, **options):
    """Raises DataError of one line with the words in it, and creates nothing beside the file."""
    before = set(path.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        reader(path, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.isprintable() and len(message) < 2000 and set(path.parent.rglob("*")) == before


# ---- equal to the folder


NAMES = st.text(st.sampled_from("ab.-Z é\n猫"), min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))


@settings(max_examples=40)
@given(st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=6), st.booleans())
def test_a_folder_and_its_archive_are_the_same_images(tmp_path_factory, paths, deflate):
    """Any tree of files, hidden ones, odd names and several depths included, gives the same images, order and classes as its .zip."""
    root = tmp_path_factory.mktemp("tree")
    for i, parts in enumerate(sorted(paths)):
        path = root / "pictures" / "/".join(parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(noise(4, 4, seed=i)))
        except OSError:  # a file and a folder of one name
            continue
    with zipfile.ZipFile(root / "pictures.zip", "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as file:
        for path in (root / "pictures").rglob("*"):
            file.write(path, path.relative_to(root / "pictures").as_posix())
    try:
        expected = read_folder(root / "pictures")
    except DataError:
        with pytest.raises(DataError, match="holds no images"):
            read_images(root / "pictures.zip")
        return
    found = read_images(root / "pictures.zip")
    same(found, expected)
    assert found.name == expected.name == "pictures"


def labelled(root):
    for i, name in enumerate(["dog/b.png", "dog/a.png", "cat/deep/x.png", "Bird/z.png", "cat/.hidden.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(noise(9, 12, 3, seed=i)))
    return root


@pytest.mark.parametrize("options", [{"size": 8}, {"size": 8, "channels": 1}, {"size": 20, "channels": 3}], ids=str)
def test_options_mean_the_same_everywhere(tmp_path, options):
    """Size and channels give the same pixels from a folder, a .zip, a .npz and a .npy, and progress counts to the end."""
    plain = labelled(tmp_path / "pictures")
    shutil.make_archive(str(plain), "zip", plain)
    expected = read_folder(plain, **options)
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(plain.rglob("[!.]*.png"))])
    np.savez(tmp_path / "pictures.npz", images=pixels, labels=[0, 1, 2, 2], classes=["Bird", "cat", "dog"])
    np.save(tmp_path / "pictures.npy", pixels)
    for suffix in ("", ".zip", ".npz", ".npy"):
        seen = []
        found = read_images(f"{plain}{suffix}", progress=lambda done, of, seen=seen: seen.append((done, of)), **options)
        assert seen[-1] == (4, 4) and found.name == "pictures"
        if suffix != ".npy":
            same(found, expected)
        assert np.array_equal(found.pixels.numpy(), expected.pixels.numpy())


@pytest.mark.parametrize("suffix", ["", ".zip", ".npz", ".npy"])
def test_options_are_checked_everywhere(tmp_path, suffix):
    """A size, a number of channels or a policy outside its law is an ArgumentError, whatever the images lie in."""
    for options in ({"size": 0}, {"size": True}, {"size": "8"}, {"channels": 2}, {"channels": "3"}, {"bad": "ignore"}):
        with pytest.raises(ArgumentError, match="--(size|channels|bad-images)"):
            read_images(tmp_path / f"x{suffix}", **options)


def test_the_folder_around_everything_is_the_archive(tmp_path):
    """`zip -r pictures.zip pictures` is read like the folder; a folder of another name, or one of several, stays a class."""
    plain = labelled(tmp_path / "pictures")
    shutil.make_archive(str(plain), "zip", tmp_path, "pictures")
    same(read_images(tmp_path / "pictures.zip", size=8), read_folder(plain, size=8))
    os.rename(tmp_path / "pictures.zip", tmp_path / "other.zip")
    assert read_images(tmp_path / "other.zip", size=8).classes == ("pictures",)
    pack(tmp_path / "a.zip", "a/x.png", "b/x.png")
    assert read_images(tmp_path / "a.zip").classes == ("a", "b")
    pack(tmp_path / "c.zip", "c/x.png", "__MACOSX/c/._x.png", "c/.DS_Store", "c/k/y.png")
    assert read_images(tmp_path / "c.zip").classes == () and len(read_images(tmp_path / "c.zip")) == 2


def test_dots_and_doubled_slashes_are_no_folders(tmp_path):
    """ "./cat//a.png" lies in cat, as tar and 7z write it."""
    images = read_images(pack(tmp_path / "x.zip", "./cat//a.png", "dog/./b.png"))
    assert images.classes == ("cat", "dog")


def test_reading_writes_nothing(tmp_path):
    """Reading an archive leaves the folder as it is: nothing is unpacked."""
    plain = labelled(tmp_path / "pictures")
    shutil.make_archive(str(plain), "zip", plain)
    before = tree(tmp_path)
    read_images(tmp_path / "pictures.zip", size=8)
    assert tree(tmp_path) == before


def test_an_archive_is_read_whatever_it_is_called(tmp_path):
    """Endings count in any case; a folder whose name ends in .zip is a folder; read_archive asks for no ending."""
    pack(tmp_path / "A.ZIP", "x.png")
    (tmp_path / "b.zip").mkdir()
    (tmp_path / "b.zip/x.png").write_bytes(png(noise(8, 8)))
    shutil.copy(tmp_path / "A.ZIP", tmp_path / "c.cbz")
    same(read_images(tmp_path / "A.ZIP"), read_images(tmp_path / "b.zip"))
    same(read_archive(tmp_path / "c.cbz"), read_images(tmp_path / "b.zip"))


def test_bad_images_in_an_archive_follow_the_policy(tmp_path):
    """error names the entry and how to go on; skip leaves it out; replace puts the next one there."""
    path = pack(tmp_path / "x.zip", *(f"{i}.png" for i in range(5)), entry("2x.png", b"no image"))
    refused(path, "x.zip/2x.png is no PNG, JPEG or WebP image; move it out of the archive")
    told = []
    assert len(read_images(path, bad="skip", on_bad=lambda *what: told.append(what))) == 5
    assert told == [(f"{path}/2x.png", "is no PNG, JPEG or WebP image; left out")]
    replaced = read_images(path, bad="replace", on_bad=lambda *what: None)
    assert len(replaced) == 6 and np.array_equal(replaced.pixels[3], replaced.pixels[4])


# ---- what could hurt


@pytest.mark.parametrize(
    ("evil", "words"),
    [
        (entry("../out.png"), ("leads out of it by ..",)),
        (entry("cat/../../out.png"), ("leads out of it by ..",)),
        (entry("/tmp/out.png"), ("absolute path",)),
        (entry("//host/share/out.png"), ("absolute path",)),
        (entry("C:/out.png"), ("absolute path",)),
        (entry("c:out.png"), ("absolute path",)),
        (entry("..\\out.png"), ("backslash",)),
        (entry("\\\\host\\out.png"), ("backslash",)),
        (entry("a.png", b"/etc/passwd", stat.S_IFLNK | 0o777), ("is a link",)),
        (entry("a/", b"/etc", stat.S_IFLNK | 0o777), ("is a link",)),
        (entry("a.png", b"", stat.S_IFCHR | 0o666), ("is a device or a pipe",)),
        (entry("a.png", b"", stat.S_IFBLK | 0o666), ("is a device or a pipe",)),
        (entry("a.png", b"", stat.S_IFIFO | 0o666), ("is a device or a pipe",)),
        (entry("a.png", b"", stat.S_IFSOCK | 0o666), ("is a device or a pipe",)),
        (entry("a.png", method=zipfile.ZIP_LZMA), ("packed by method 14",)),
        (entry("a.png", method=zipfile.ZIP_BZIP2), ("packed by method 12",)),
        (entry(".cache/../../out"), ("leads out of it by ..",)),
        *((entry(f"deep/inner.{ending}"), ("is an archive in an archive", "unpack it")) for ending in
          ("zip", "ZIP", "npz", "tar", "tar.gz", "tgz", "7z", "rar", "xz", "bz2", "zst")),
        (entry("bomb.png", bytes(10**7), method=zipfile.ZIP_DEFLATED), ("unpacks to 1,0", "more than 100")),
        (entry("\x1b[31m\n<b>.png", b""), ("\\x1b[31m\\n<b>.png",)),
        (entry("x" * 60_000 + ".png", b""), ("...",)),
    ],
    ids=lambda value: str(value[0].filename)[:30] if isinstance(value, tuple) and hasattr(value[0], "filename") else "",
)  # fmt: skip
def test_an_evil_entry_is_refused(tmp_path, evil, words):
    """One entry that leads out, is a link, a device, a bomb or an archive refuses the whole archive, among good ones, under every policy."""
    inside = tmp_path / "inside"
    inside.mkdir()
    path = pack(inside / "x.zip", "good.png", evil, "good2.png")
    assert len(evil[1]) < 10**8
    refused(path, "x.zip", *words)
    if evil[1]:
        refused(path, "x.zip", *words, bad="skip", on_bad=lambda *what: None)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inside", "x.zip"]


@pytest.mark.parametrize("bit", [0x1, 0x41, 0x2000])
def test_an_encrypted_entry_is_refused(tmp_path, bit):
    """Each kind of encryption is refused with what to do; no password is ever asked for."""
    path = patched(pack(tmp_path / "x.zip", "a.png"), 8, bit, form="<H")
    refused(path, "x.zip/a.png is encrypted", "without a password")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.png", "a.png"), ("cat/a.png", "cat//a.png"), ("a.png", "./a.png"), ("a/", "a")])
def test_a_name_stands_once(tmp_path, names):
    """Two entries of one path are refused, also where only dots and slashes differ: nobody may see another image than we do."""
    refused(pack(tmp_path / "x.zip", *names), "stands twice in it")


def test_a_zero_byte_in_a_name_is_refused(tmp_path):
    """A name that goes on behind a zero byte is refused, and so cannot pass for a shorter one."""
    path = pack(tmp_path / "x.zip", "a.png_x.exe")
    path.write_bytes(path.read_bytes().replace(b"a.png_x.exe", b"a.png\0x.exe"))
    refused(path, "a backslash or a zero byte")


def test_limits_hold_to_the_last_entry_and_byte(tmp_path, monkeypatch):
    """Each limit passes what is exactly as large and refuses one more."""
    names = [f"{i}.png" for i in range(4)]
    path = pack(tmp_path / "x.zip", *names)
    size = len(png(noise(8, 8)))
    for module, name, exact, words in (
        (archive, "MAX_ENTRIES", 4, "4 entries, more than 3"),
        (archive, "MAX_ENTRY_BYTES", size, f"unpacks to {size} bytes"),
        (archive, "MAX_TOTAL_BYTES", 4 * size, f"unpacks to {4 * size} bytes"),
        (folder, "MAX_PIXELS", 64, "has 8 x 8 pixels, more than 63"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, exact)
            assert len(read_images(path)) == 4
            patch.setattr(module, name, exact - 1)
            refused(path, words)


@pytest.mark.parametrize("ratio", [98, 103])
def test_the_ratio_is_a_hundred(tmp_path, ratio):
    """Above a million bytes an entry may unpack to a hundred times its size, not to more; below, to any."""
    rows = np.random.default_rng(0).integers(0, 256, 2_000_000 // ratio - 1_900, np.uint8).tobytes()
    content = rows + bytes(2_000_000 - len(rows))
    path = pack(tmp_path / "x.zip", entry("a.png", content, method=zipfile.ZIP_DEFLATED))
    packed = zipfile.ZipFile(path).infolist()[0].compress_size
    refused(path, "no PNG" if 2_000_000 <= 100 * packed else "times its size")
    assert (2_000_000 > 100 * packed) == (ratio > 100)
    small = entry("a.png", bytes(999_000), method=zipfile.ZIP_DEFLATED)
    refused(pack(tmp_path / "y.zip", small, *(f"{i}.png" for i in range(99))), "y.zip/a.png is no PNG")


def test_many_small_bombs_are_one(tmp_path):
    """Entries that are each below the free million are refused together where the archive unpacks to more than a hundred times its size."""
    bombs = [entry(f"{i}.png", bytes(900_000), method=zipfile.ZIP_DEFLATED) for i in range(20)]
    refused(pack(tmp_path / "x.zip", *bombs), "x.zip unpacks to", "times its size, more than 100")


def test_a_list_of_a_million_entries_is_refused_unread(tmp_path):
    """An end record that states a list of 46 MB is refused before the list is parsed, in a file that really has it."""
    path = tmp_path / "x.zip"
    record = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *[0] * 6, *[0] * 3, *[0] * 5, 0, 0)
    assert len(record) == 46
    directory = record * 1_000_000
    with path.open("wb") as file:
        file.write(directory)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0))
    refused(path, "lists its entries in 46,000,000 bytes", "unpack it and name the folder")


@pytest.mark.parametrize("claim", [1, 300, 10**6, 2**32 - 2])
def test_a_size_that_lies_yields_no_more_than_it_says(tmp_path, claim, monkeypatch):
    """An entry that states another size than it has is damaged or refused, and never more bytes than stated are unpacked."""
    path = pack(tmp_path / "x.zip", entry("a.png", png(noise(64, 64)) + bytes(10**6), method=zipfile.ZIP_DEFLATED))
    patched(path, 24, claim)
    sizes = []
    read = archive._read
    monkeypatch.setattr(archive, "_read", lambda *a: (lambda content: sizes.append(len(content)) or content)(read(*a)))
    refused(path, "x.zip")
    assert all(size <= claim for size in sizes)


def test_entries_that_share_bytes_are_refused(tmp_path):
    """Packed sizes that add up to more than the file has, as in a bomb of overlapping entries, are refused."""
    path = patched(pack(tmp_path / "x.zip", "a.png", "b.png"), 20, 10**5)
    refused(path, "x.zip has entries of", "in a file of")


@settings(max_examples=150)
@given(st.data())
def test_any_damage_is_an_error_of_one_line(tmp_path_factory, data):
    """Whatever bytes of an archive are changed, cut or added, reading it gives images or DataError of one line."""
    root = tmp_path_factory.mktemp("damage")
    path = pack(root / "x.zip", "cat/a.png", entry("dog/b.png", method=zipfile.ZIP_DEFLATED))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]))
    try:
        read_images(path)
    except DataError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"no archive", b"PK\x05\x06" + bytes(18), bytes(10**5)])
@pytest.mark.parametrize("suffix", ["zip", "npz"])
def test_what_is_no_archive_is_refused(tmp_path, content, suffix):
    """An empty file, a cut record, an archive of nothing and anything else are one line with the path."""
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    refused(path, f"x.{suffix}")


@pytest.mark.parametrize("suffix", ["zip", "npz", "npy"])
def test_a_pipe_or_a_device_is_not_opened(tmp_path, suffix):
    """A pipe that nobody writes to, a link to an endless device and a link in a circle are refused at once."""
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"loop.{suffix}").symlink_to(tmp_path / f"loop.{suffix}")
    refused(tmp_path / f"pipe.{suffix}", "is no regular file")
    refused(tmp_path / f"zero.{suffix}", "is no regular file")
    refused(tmp_path / f"loop.{suffix}", f"loop.{suffix}")
    refused(tmp_path / f"none.{suffix}", "does not exist", "--data takes a folder of PNG")


# ---- arrays


SHAPES = [(5, 8, 8), (5, 8, 8, 1), (5, 8, 8, 3), (5, 1, 8, 8), (5, 3, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_form(tmp_path, shape, order):
    """(N, H, W), channels last and channels first, in either memory order, give the pixels (N, C, H, W), from .npy and both kinds of .npz."""
    array = np.asarray(noise(*shape), order=order)
    expected = array[:, None] if array.ndim == 3 else array if shape[1] < 8 else array.transpose(0, 3, 1, 2)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", images=array)
    np.savez_compressed(tmp_path / "c.npz", array)
    for path in sorted(tmp_path.iterdir()):
        images = read_images(path)
        assert np.array_equal(images.pixels.numpy(), expected) and (images.labels, images.classes) == (None, ())
        assert images.pixels.is_contiguous() and images.name == path.stem


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i4", ">i8", "u8"])
def test_labels_of_every_integer(tmp_path, dtype):
    """Whole numbers of any width and order of bytes are labels; classes are their numbers, or the names beside them, unused ones too."""
    labels = [2, 0, 0, 2, 1]
    np.savez(tmp_path / "a.npz", images=noise(5, 8, 8), labels=np.array(labels, dtype))
    np.savez(tmp_path / "b.npz", noise(5, 8, 8), labels=np.array(labels, dtype), classes=["x", "猫", "y", "z"])
    a, b = read_images(tmp_path / "a.npz"), read_images(tmp_path / "b.npz")
    assert a.labels.tolist() == b.labels.tolist() == labels and a.labels.dtype == b.labels.dtype
    assert (a.classes, b.classes) == (("0", "1", "2"), ("x", "猫", "y", "z"))


IMAGES = noise(5, 8, 8)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"images": np.array([{}] * 5, dtype=object)}, ("Python objects (object)", "never read")),
        ({"images": IMAGES, "labels": np.array(["a", 1, None, 2, 3], dtype=object)}, ("Python objects",)),
        ({"images": IMAGES, "labels": np.zeros(5, [("a", "O")])}, ("x.npz/labels.npy holds Python objects",)),
        ({"images": IMAGES, "labels": np.zeros(5, "V8")}, ("Python objects",)),
        ({"images": IMAGES.astype(np.float32)}, ("images of float32", "uint8")),
        ({"images": IMAGES.astype(np.int8)}, ("images of int8",)),
        ({"images": IMAGES.astype(str)}, ("images of <U3",)),
        ({"images": noise(8, 8)}, ("shape (8, 8)",)),
        ({"images": noise(5, 8, 8, 4)}, ("shape (5, 8, 8, 4)",)),
        ({"images": noise(5, 3, 8, 3)}, ("shape (5, 3, 8, 3)", "plainly one")),
        ({"images": noise(5, 1, 1, 1)}, ("shape (5, 1, 1, 1)",)),
        ({"images": noise(0, 8, 8)}, ("holds no images",)),
        ({"images": noise(5, 0, 0)}, ("holds no images",)),
        ({"images": noise(5, 8, 12)}, ("12 x 8 pixels, not square",)),
        ({"labels": np.zeros(5, int)}, ("must hold images",)),
        ({"x": IMAGES, "y": np.zeros(5, int)}, ("must hold images", "'x', 'y'")),
        ({"images": IMAGES, "label": np.zeros(5, int)}, ("found 'images', 'label'",)),
        ({"images": IMAGES, "labels": np.zeros(4, int)}, ("labels int64 (4,)", "5 whole numbers")),
        ({"images": IMAGES, "labels": np.zeros((5, 10), int)}, ("labels int64 (5, 10)",)),
        ({"images": IMAGES, "labels": np.zeros(5)}, ("labels float64",)),
        ({"images": IMAGES, "labels": np.array(list("abcde"))}, ("labels <U1",)),
        ({"images": IMAGES, "labels": np.array([0, -1, 2, 3, 4])}, ("labels from -1 to 4",)),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, 3, 2**63], "u8")}, (f"labels from 0 to {2**63}",)),
        ({"images": IMAGES, "classes": np.array(["a"])}, ("classes and no labels",)),
        ({"images": IMAGES, "labels": np.arange(5), "classes": np.array(["a"])}, ("at least 5 names",)),
        ({"images": IMAGES, "labels": np.arange(5), "classes": np.arange(5)}, ("classes int64",)),
        ({f"x{i}": IMAGES for i in range(17)}, ("17 arrays, more than 16",)),
    ],
    ids=itertools.count().__next__ and (lambda value: "".join(value)[:40] if isinstance(value, tuple) else ""),
)  # fmt: skip
def test_what_an_array_may_not_be(tmp_path, held, words):
    """Objects, other numbers, shapes that may be read two ways, labels that do not fit: refused in one line that says what it must be."""
    np.savez(tmp_path / "x.npz", **held)
    refused(tmp_path / "x.npz", "x.npz", *words)


def header(text, version=b"\x01\x00", length=None):
    text = text.encode("latin1")
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text


PLAIN = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header(PLAIN.format("(1, 8, 8)")),
        header(PLAIN.format("(1, 8, 8)")) + bytes(63),
        header(PLAIN.format("(1, 8, 8)")) + bytes(65),
        header(PLAIN.format(f"({2**62}, 8, 8)")) + bytes(64),
        header(PLAIN.format("(-1, -8, 8)")) + bytes(64),
        header(PLAIN.format("(True, 8, 8)")) + bytes(64),
        header(PLAIN.format("'8'")) + bytes(64),
        header(PLAIN.format("(1, 8, 8)"), length=60_000) + bytes(64),
        header(PLAIN.format("(1, 8, 8)"), b"\x02\x00", 2**32 - 1) + bytes(64),
        header(PLAIN.format("(1, 8, 8)"), b"\x03\x00") + bytes(64),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (), }") + b"cos\nsystem\n(S'true'\ntR.",
        header("__import__('os').system('true')") + bytes(64),
        header("(" * 9_000) + bytes(64),
        header(PLAIN.format("(1, 8, 8)").replace("|u1", "|u1,|O")) + bytes(64),
        header(PLAIN.format("(1, 8, 8)").replace("'|u1'", "[('a', '|u1', (2147483647, 2147483647))]")) + bytes(64),
        header("x" * 50_000) + bytes(64),
    ],
    ids=range(18),
)
def test_a_header_that_lies_is_refused(tmp_path, content):
    """A header that is cut, names objects or code, or promises more or fewer bytes than there are: one line, alone or in an .npz."""
    (tmp_path / "x.npy").write_bytes(content)
    refused(tmp_path / "x.npy", "x.npy")
    pack(tmp_path / "x.npz", entry("images.npy", content))
    refused(tmp_path / "x.npz", "x.npz/images.npy")


def test_an_array_is_limited(tmp_path, monkeypatch):
    """An array of exactly the limit is read, a byte more is refused; so are more pixels an image than any image may have."""
    np.save(tmp_path / "x.npy", IMAGES)
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 320)
    assert len(read_arrays(tmp_path / "x.npy")) == 5
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 319)
    refused(tmp_path / "x.npy", "320 bytes, more than 319")
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 320)
    monkeypatch.setattr(arrays, "MAX_PIXELS", 63)
    refused(tmp_path / "x.npy", "8 x 8 pixels, more than 63")


def test_an_npz_is_an_archive(tmp_path):
    """What refuses a .zip refuses an .npz: a way out, a bomb, and anything that is no array."""
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((3000, 64, 64), np.uint8))
    refused(tmp_path / "bomb.npz", "times its size", "store it unpacked")
    refused(pack(tmp_path / "way.npz", entry("../images.npy")), "leads out of it by ..")
    refused(pack(tmp_path / "pictures.npz", "a.png"), "for images use a .zip")
    np.savez(tmp_path / "same.npz", images=np.zeros((3000, 64, 64), np.uint8))
    assert len(read_images(tmp_path / "same.npz")) == 3000


@settings(max_examples=150)
@given(st.data())
def test_any_damage_to_an_array_is_an_error_of_one_line(tmp_path_factory, data):
    """Whatever bytes of an .npz or .npy are changed or cut, reading gives images or DataError of one line."""
    root = tmp_path_factory.mktemp("damage")
    suffix = data.draw(st.sampled_from(["npz", "npy"]))
    path = root / f"x.{suffix}"
    if suffix == "npz":
        np.savez(path, images=IMAGES, labels=np.arange(5), classes=list("abcde"))
    else:
        np.save(path, IMAGES)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]))
    try:
        read_images(path)
    except DataError as error:
        assert str(error).isprintable()


def test_the_public_doors():
    """nearzero.data offers one reader for each kind, and read_images for all."""
    assert nz.read_folder is read_folder
    assert {"read_images", "read_archive", "read_arrays"} <= set(nz.data.__all__)
