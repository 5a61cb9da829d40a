"""Folders of images: every kind of file becomes the pixels that a viewer shows, and what is wrong is named."""

import hashlib
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import nearzero as nz
from conftest import pictures, write_folder
from nearzero.data import folder as folder_module
from nearzero.data.images import resize
from nearzero.errors import ArgumentError, DataError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(folder, image, name="a.png", **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def read_one(folder, **options):
    """The pixels (H, W) or (H, W, 3) of the only image of a folder, as integers."""
    pixels = nz.read_folder(folder, **options).pixels
    assert len(pixels) == 1
    array = pixels[0].permute(1, 2, 0).numpy().astype(int)
    return array[..., 0] if array.shape[2] == 1 else array


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("A.PNG", {}), ("a.webp", {"lossless": True, "exact": True})]
)
def test_lossless_files_come_back_exactly(tmp_path, shape, name, options):
    """What Pillow writes as PNG or lossless WebP is read bit for bit; WebP has no grey, so grey comes back as three equal channels."""
    image = noise(*shape)
    save(tmp_path, image, name, **options)
    expected = np.repeat(image[..., None], 3, 2) if "webp" in name and image.ndim == 2 else image
    assert np.array_equal(read_one(tmp_path), expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)], ids=["grey", "colour"])
def test_lossy_files_come_back_nearly(tmp_path, name, shape):
    """A smooth image survives JPEG and WebP at quality 95 within 16 grey levels, which an exchange of channels or axes would not."""
    ramp = np.linspace(20, 230, 16)
    image = np.tile(ramp, (16, 1))
    image = image if len(shape) == 2 else np.stack([image, image.T, np.full((16, 16), 60)], -1)
    save(
        tmp_path,
        image.astype(np.uint8),
        name,
        quality=95,
        **({} if "webp" in name or len(shape) == 2 else {"subsampling": 0}),
    )
    back = read_one(tmp_path)
    expected = np.repeat(image[..., None], 3, 2) if back.ndim > image.ndim else image
    assert np.abs(back - expected.astype(int)).max() <= 16


def on_white(colour, alpha):
    """A colour laid on white: c a + 255 (1 - a)."""
    a = alpha[..., None] / 255 if colour.ndim == 3 else alpha / 255
    return colour * a + 255 * (1 - a)


@pytest.mark.parametrize(("shape", "mode"), [((8, 8, 4), "RGBA"), ((8, 8, 2), "LA")])
def test_transparency_is_laid_on_white(tmp_path, shape, mode):
    """RGBA and LA become c alpha + white (1 - alpha), to the rounding; grey stays grey, and a clear pixel is white."""
    image = noise(*shape)
    image[0, 0, -1], image[0, 1, -1] = 0, 255
    save(tmp_path, Image.fromarray(image, mode))
    back = read_one(tmp_path)
    colour = image[..., 0] if mode == "LA" else image[..., :3]
    assert back.shape == colour.shape
    assert np.abs(back - on_white(colour, image[..., -1])).max() <= 1
    assert (back[0, 0] == 255).all() and (back[0, 1] == colour[0, 1]).all()


def palette_picture():
    index = noise(8, 8) % 5
    image = Image.fromarray(index, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]])
    return image, index, table


def test_a_palette_is_looked_up(tmp_path):
    """A palette image becomes the colours of its palette."""
    image, index, table = palette_picture()
    save(tmp_path, image)
    assert np.array_equal(read_one(tmp_path), table[index])


@pytest.mark.parametrize("transparency", [3, bytes([255, 0, 128, 255, 64])], ids=["one colour", "a table"])
def test_a_transparent_palette_is_laid_on_white(tmp_path, transparency):
    """A palette's transparent entries, one or with an alpha each, are laid on white."""
    image, index, table = palette_picture()
    save(tmp_path, image, transparency=transparency)
    alpha = np.array(
        [0 if i == transparency else 255 for i in range(5)] if isinstance(transparency, int) else list(transparency)
    )
    assert np.abs(read_one(tmp_path) - on_white(table[index], alpha[index])).max() <= 1


def test_a_transparent_grey_level_is_white(tmp_path):
    """A grey PNG with a transparent level (tRNS) shows white there and stays grey."""
    image = noise(8, 8) // 64 * 64
    save(tmp_path, image, transparency=64)
    assert np.array_equal(read_one(tmp_path), np.where(image == 64, 255, image))


def test_one_bit_is_black_and_white(tmp_path):
    """A 1-bit PNG becomes grey with the values 0 and 255."""
    image = noise(8, 8) > 127
    save(tmp_path, Image.fromarray(image))
    assert np.array_equal(read_one(tmp_path), 255 * image)


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_cmyk_is_printed_colour(tmp_path, cmyk, rgb):
    """A CMYK JPEG becomes (1 - ink)(1 - black): no ink is white, cyan is no red."""
    save(tmp_path, Image.new("CMYK", (16, 16), cmyk), "a.jpg", quality=95)
    assert np.abs(read_one(tmp_path) - np.array(rgb)).max() <= 3


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    """A 16-bit grey PNG v becomes round(v / 257): 65535 is 255, 257 k is k, and so is 257 k + 128 - 1."""
    k = np.arange(256).reshape(16, 16)
    for name, deep in (("a", 257 * k), ("b", np.minimum(257 * k + 127, 65535)), ("c", np.maximum(257 * k - 128, 0))):
        save(tmp_path / name, deep.astype(np.uint16))
        assert np.array_equal(read_one(tmp_path / name), k)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    """Each of the eight EXIF orientations shows the same upright picture."""
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = 250, 170, 90
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path, np.ascontiguousarray(stored), "a.jpg", exif=exif, quality=95)
    assert np.abs(read_one(tmp_path) - upright).max() <= 8


def test_subfolders_are_classes_in_sorted_order(tmp_path):
    """Images in subfolders, however deep, are labelled by the first folder; classes are sorted, images follow their names."""
    values = {"dog/b.png": 1, "dog/a.png": 2, "cat/deep/x.png": 3, "Bird/z.png": 4}
    for name, value in values.items():
        save(tmp_path, np.full((4, 4), value, np.uint8), name)
    images = nz.read_folder(tmp_path)
    assert images.classes == ("Bird", "cat", "dog")
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert images.pixels[:, 0, 0, 0].tolist() == [4, 3, 2, 1]


def test_an_image_at_the_top_means_no_labels(tmp_path):
    """As soon as one image lies in the folder itself, there are no labels, and every image is still read."""
    for name in ("dog/a.png", "cat/b.png", "c.png"):
        save(tmp_path, noise(4, 4), name)
    images = nz.read_folder(tmp_path)
    assert (images.labels, images.classes, len(images)) == (None, (), 3)


def test_hidden_files_are_left_alone(tmp_path):
    """Hidden files and folders, and what file managers leave behind, are no images, whatever they hold."""
    save(tmp_path, noise(4, 4))
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", ".cache/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    assert len(nz.read_folder(tmp_path)) == 1


def test_progress_counts_every_image(tmp_path):
    """progress is called with (1, n), (2, n), ..., (n, n)."""
    write_folder(tmp_path, count=7)
    seen = []
    nz.read_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path):
    """The same files in two folders have one fingerprint; their names are their folders'."""
    one, two = (nz.read_folder(write_folder(tmp_path / name)) for name in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    assert (one.name, two.name) == ("one", "two")


# ---- size and channels


def test_a_checkerboard_shrinks_to_grey(tmp_path):
    """Resizing is antialiased: a checkerboard of single pixels, three to one, has nothing but grey levels near 127."""
    board = np.indices((48, 48)).sum(0) % 2 * 255
    save(tmp_path, board.astype(np.uint8))
    inner = read_one(tmp_path, size=12)
    assert np.abs(inner - 127.5).max() < 16 and abs(inner.mean() - 127.5) < 2


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (8, 25), (25, 8)])
def test_the_centre_is_cut_out(tmp_path, shape):
    """With the shorter side already right, nothing is resampled: the centre comes out bit for bit."""
    image = noise(*shape)
    save(tmp_path, image)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    assert np.array_equal(read_one(tmp_path, size=8), image[top : top + 8, left : left + 8])


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_any_size_becomes_any_size(height, width, size, value):
    """Every picture fits every size, larger or smaller, and a plain one stays plain: no border is invented."""
    out = np.asarray(resize(Image.fromarray(np.full((height, width), value, np.uint8)), size))
    assert out.shape == (size, size) and (out == value).all()


def test_enlarging_keeps_the_picture(tmp_path):
    """A smooth picture brought from 8 to 32 pixels and back differs by at most 2 grey levels."""
    image = (np.add.outer(np.arange(8), np.arange(8)) * 12 + 30).astype(np.uint8)
    save(tmp_path, image)
    big = Image.fromarray(read_one(tmp_path, size=32).astype(np.uint8))
    assert np.abs(np.asarray(resize(big, 8)).astype(int) - image).max() <= 2


def test_size_is_applied_before_images_are_compared(tmp_path):
    """With a size, landscape, portrait and square pictures of different sizes are read together."""
    for name, shape in (("a", (8, 12)), ("b", (20, 10)), ("c", (9, 9))):
        save(tmp_path, noise(*shape), f"{name}.png")
    assert nz.read_folder(tmp_path, size=8).pixels.shape == (3, 1, 8, 8)


def test_channels_make_one_kind(tmp_path):
    """channels=3 repeats grey, channels=1 takes ITU-R 601 luma, and mixed folders are read with either."""
    grey, colour = noise(4, 4), noise(4, 4, 3)
    save(tmp_path, grey, "a.png"), save(tmp_path, colour, "b.png")
    three, one = nz.read_folder(tmp_path, channels=3).pixels, nz.read_folder(tmp_path, channels=1).pixels
    assert np.array_equal(three[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(three[1].numpy(), colour.transpose(2, 0, 1))
    assert np.array_equal(one[0, 0].numpy(), grey)
    assert np.abs(one[1, 0].numpy() - colour @ [0.299, 0.587, 0.114]).max() <= 1


# ---- the embedded images


def test_the_embedded_images_are_fashion_mnist():
    """2,000 images, 200 of each class in order; their bytes are those of the first 200 training images of each class."""
    images = nz.embedded()
    assert images.pixels.shape == (2000, 1, 28, 28)
    assert images.labels.tolist() == [k for k in range(10) for _ in range(200)]
    assert images.classes == (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    # taken from train-images-idx3-ubyte.gz itself
    assert [int(images.pixels[200 * k].sum()) for k in range(10)] == [
        84598,
        52118,
        84165,
        46649,
        31795,
        19892,
        88005,
        32526,
        78179,
        76247,
    ]
    sums = [hashlib.sha256(part.numpy().tobytes()).hexdigest()[:16] for part in (images.pixels[0], images.pixels)]
    assert sums == ["9cf80d28fd40cb6b", "3f62479409a5a4b0"]


def test_embedded_images_are_resized_like_files(tmp_path):
    """embedded(16) is what a folder of the same images gives with size=16."""
    first = nz.embedded().pixels[0, 0].numpy()
    save(tmp_path, first)
    assert np.array_equal(nz.embedded(16).pixels[0, 0].numpy(), read_one(tmp_path, size=16))


# ---- Images


@given(st.integers(0, 10 * 64 - 1))
def test_the_fingerprint_changes_with_any_pixel(where):
    """One grey level in one pixel of one image changes the fingerprint, and putting it back restores it."""
    images = pictures()
    before = images.fingerprint()
    images.pixels.view(-1)[where] ^= 1
    assert images.fingerprint() != before
    images.pixels.view(-1)[where] ^= 1
    assert images.fingerprint() == before


def test_the_fingerprint_changes_with_labels_order_and_shape():
    """Another label, no labels, another order and another shape of the same bytes are other data."""
    pixels = pictures(4).pixels
    labels = torch.tensor([0, 1, 0, 1])
    kinds = [
        nz.Images(pixels),
        nz.Images(pixels, labels),
        nz.Images(pixels, 1 - labels),
        nz.Images(pixels.flip(0)),
        nz.Images(pixels.reshape(1, 1, 16, 16)),
    ]
    assert len({images.fingerprint() for images in kinds}) == len(kinds)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
    ],
)
def test_images_are_bytes_of_one_or_three_channels(pixels):
    """Floats, two channels, a missing channel axis and no images at all are refused with dtype and shape."""
    with pytest.raises(DataError, match=re.escape(f"{pixels.dtype} {tuple(pixels.shape)}")):
        nz.Images(pixels)


# ---- what is wrong is named


def wrong(setup, named, remedy, kind=DataError, **options):
    return pytest.param(
        setup,
        named,
        remedy,
        kind,
        options,
        id=setup.__name__ + "".join(f" {name}={value}" for name, value in options.items()),
    )


def missing(folder):
    pass


def a_file(folder):
    folder.write_bytes(b"")


def empty(folder):
    folder.mkdir()


def only_hidden(folder):
    save(folder, noise(8, 8), ".a.png")


def good(folder):
    write_folder(folder)


def text_as_png(folder):
    write_folder(folder)
    (folder / "bad.png").write_text("this is no image\n")


def notes(folder):
    write_folder(folder)
    (folder / "notes.txt").write_text("remember the milk\n")


def zero_bytes(folder):
    write_folder(folder)
    (folder / "bad.png").write_bytes(b"")


def other_format(folder):
    write_folder(folder)
    save(folder, noise(8, 8), "bad.png", format="GIF")


def cut(folder, name):
    write_folder(folder, size=64)
    path = save(folder, noise(64, 64), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_jpeg(folder):
    cut(folder, "bad.jpg")


def cut_png(folder):
    cut(folder, "bad.png")


def cut_webp(folder):
    cut(folder, "bad.webp")


def flipped_png(folder):
    write_folder(folder)
    path = save(folder, noise(8, 8), "bad.png")
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF  # inside IHDR, whose checksum no longer fits
    path.write_bytes(content)


def dangling_link(folder):
    write_folder(folder)
    (folder / "bad.png").symlink_to("nowhere.png")


def other_size(folder):
    write_folder(folder)
    save(folder, noise(8, 9), "bad.png")


def colour_among_grey(folder):
    write_folder(folder)
    save(folder, noise(8, 8, 3), "bad.png")


def oblong(folder):
    save(folder, noise(8, 12))


def huge(folder):
    save(folder, noise(101, 100), "bad.png")


@pytest.mark.parametrize(
    ("setup", "named", "remedy", "kind", "options"),
    [
        wrong(missing, "pictures does not exist", "--data takes a folder of PNG, JPEG or WebP files"),
        wrong(a_file, "pictures is a file", "--data takes a folder"),
        wrong(empty, "pictures holds no images", "--data takes a folder"),
        wrong(only_hidden, "pictures holds no images", "--data takes a folder"),
        wrong(text_as_png, "bad.png is no PNG, JPEG or WebP image", "move it out of the folder"),
        wrong(notes, "notes.txt is no PNG, JPEG or WebP image", "move it out of the folder"),
        wrong(zero_bytes, "bad.png", "move it out of the folder"),
        wrong(other_format, "bad.png is no PNG, JPEG or WebP image", "move it out of the folder"),
        wrong(cut_jpeg, "bad.jpg is damaged", "replace it"),
        wrong(cut_png, "bad.png is damaged", "replace it"),
        wrong(cut_webp, "bad.webp", "move it out of the folder"),
        wrong(flipped_png, "bad.png", "move it out of the folder"),
        wrong(dangling_link, "bad.png", "move it out of the folder"),
        wrong(other_size, "bad.png is 9 x 8 pixels while most images are 8 x 8", "--size"),
        wrong(colour_among_grey, "bad.png is colour while most images are grey", "--channels"),
        wrong(oblong, "12 x 8", "--size"),
        wrong(huge, "bad.png has 100 x 101 pixels, more than 10,000", "smaller"),
        wrong(good, "got 0", "--size", ArgumentError, size=0),
        wrong(good, "got -3", "--size", ArgumentError, size=-3),
        wrong(good, "got True", "--size", ArgumentError, size=True),
        wrong(good, "got 2", "--channels", ArgumentError, channels=2),
        wrong(good, "got 4", "--channels", ArgumentError, channels=4),
    ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, setup, named, remedy, kind, options):
    """Every folder that cannot be read raises one line that names the file or value and the remedy, and stays as it was."""
    monkeypatch.setattr(folder_module, "MAX_PIXELS", 10_000)
    folder = tmp_path / "pictures"
    setup(folder)
    with pytest.raises(kind) as caught:
        nz.read_folder(folder, **options)
    message = str(caught.value)
    assert named in message and remedy in message and "\n" not in message


def test_the_limit_counts_pixels_not_bytes(tmp_path, monkeypatch):
    """An image of exactly MAX_PIXELS is read, one line more is refused before it is decoded."""
    monkeypatch.setattr(folder_module, "MAX_PIXELS", 100)
    save(tmp_path / "fits", noise(10, 10))
    assert read_one(tmp_path / "fits").shape == (10, 10)
    path = save(tmp_path / "more", noise(11, 10))
    path.write_bytes(path.read_bytes()[:60])  # only the header is left: decoding would call it damaged
    with pytest.raises(DataError, match="10 x 11 pixels"):
        nz.read_folder(tmp_path / "more")


def test_a_thin_image_does_not_fill_the_memory(tmp_path, monkeypatch):
    """No picture on the way is larger than the image or the result: a line of 4,000 pixels is cut before it is enlarged."""
    save(tmp_path, noise(1, 4000))
    sizes = []
    original = Image.Image.resize

    def spy(self, size, *args, **kwargs):
        sizes.append(size[0] * size[1])
        return original(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", spy)
    nz.read_folder(tmp_path, size=64)
    assert max(sizes, default=0) <= max(4000, 64 * 64)


# ---- bad images


def damage(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def heard(folder, bad, **options):
    """The images of a folder, and what was said of the bad ones by file name."""
    told = {}
    images = nz.read_folder(folder, bad=bad, on_bad=lambda path, what: told.update({path: what}), **options)
    return images, {path.rsplit("/", 1)[-1]: what for path, what in told.items()}


@pytest.mark.parametrize("bad", [1, 2, 3, 4, 6])
def test_an_error_counts_all_and_names_the_first(tmp_path, bad):
    """By default every file is tried: one bad image is named with its remedy, several are counted and the first three named, in order, in one line."""
    names = [f"{i:03d}.png" for i in range(bad)]
    damage(write_folder(tmp_path), *names)
    with pytest.raises(DataError) as caught:
        nz.read_folder(tmp_path)
    message = str(caught.value)
    assert message.isprintable() and [name in message for name in names] == [i < 3 for i in range(bad)]
    assert (f"{bad} of 6 files are no readable images: " in message) == (bad > 1)
    assert ("000.png is damaged (" in message or "000.png is no PNG" in message) and "move" in message
    assert (f"and {bad - 3} more" in message) == (bad > 3)


def test_a_bad_image_is_left_out(tmp_path):
    """skip gives the folder without the bad image, in order, and says which file was left out and why."""
    damage(write_folder(tmp_path / "all"), "002.png")
    images, told = heard(tmp_path / "all", "skip")
    write_folder(tmp_path / "less")
    (tmp_path / "less/002.png").unlink()
    assert images.fingerprint() == nz.read_folder(tmp_path / "less").fingerprint()
    assert list(told) == ["002.png"] and told["002.png"].endswith("; left out")


@pytest.mark.parametrize(("which", "other"), [(0, 1), (2, 3), (5, 0)])
def test_the_next_image_stands_in_for_a_bad_one(tmp_path, which, other):
    """replace keeps the count, puts the next readable image in the place, the first after the last, and is the same every time."""
    whole = nz.read_folder(write_folder(tmp_path)).pixels.clone()
    damage(tmp_path, f"{which:03d}.png")
    images, told = heard(tmp_path, "replace")
    whole[which] = whole[other]
    assert torch.equal(images.pixels, whole)
    assert told[f"{which:03d}.png"].endswith(f"{other:03d}.png stands in for it")
    assert heard(tmp_path, "replace")[0].fingerprint() == images.fingerprint()


def test_a_bad_image_moves_no_label(tmp_path):
    """A class whose only image is bad keeps its number; a stand-in brings its own label; a bad file at the top hides no classes."""
    for name in ("a", "b", "c"):
        write_folder(tmp_path / name, count=1)
    damage(tmp_path, "b/000.png")
    images, _ = heard(tmp_path, "skip")
    assert (images.classes, images.labels.tolist()) == (("a", "b", "c"), [0, 2])
    assert heard(tmp_path, "replace")[0].labels.tolist() == [0, 2, 2]
    write_folder(tmp_path / "b", count=1)
    (tmp_path / "README.txt").write_text("three classes")
    assert heard(tmp_path, "skip")[0].labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", ["skip", "replace"])
@pytest.mark.parametrize(("total", "allowed"), [(2, 1), (999, 1), (1999, 1), (2000, 2)])
def test_a_thousandth_may_be_bad(tmp_path, monkeypatch, bad, total, allowed):
    """One bad image, or 0.1 % of many, is dropped; one more is refused with both numbers; a folder of nothing else always is."""
    good, evil = np.zeros((4, 4), np.uint8), folder_module._Unreadable("is damaged", "replace it")
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setattr(folder_module, "_list", lambda folder: [folder / f"{i:06d}.png" for i in range(total)])

    def read(count):
        monkeypatch.setattr(folder_module, "_decode_all", lambda *a: [evil] * count + [good] * (total - count))
        return heard(tmp_path, bad)

    images, told = read(allowed)
    assert len(told) == allowed and len(images) == total - (allowed if bad == "skip" else 0)
    with pytest.raises(
        DataError, match=f"{allowed + 1} of {total:,} files are .*--bad-images {bad} allows {allowed}: "
    ):
        read(allowed + 1)
    with pytest.raises(DataError, match="no readable images"):
        read(total)


def test_the_only_image_cannot_be_left_out(tmp_path):
    """With one image, and that bad, there is nothing to train on, whatever the policy."""
    damage(tmp_path, "a.png")
    for bad in ("error", "skip", "replace"):
        with pytest.raises(DataError, match="a.png"):
            heard(tmp_path, bad)


def test_nothing_is_left_out_in_silence(tmp_path):
    """Without on_bad a dropped image is a warning."""
    damage(write_folder(tmp_path), "002.png")
    with pytest.warns(UserWarning, match="002.png .*left out"):
        assert len(nz.read_folder(tmp_path, bad="skip")) == 5


@pytest.mark.parametrize("bad", ["skip", "replace"])
def test_images_that_do_not_fit_together_are_never_dropped(tmp_path, bad):
    """A readable image of another size or kind is no bad image: it stays an error that names the option."""
    save(write_folder(tmp_path), noise(8, 9), "x.png")
    with pytest.raises(DataError, match="x.png is 9 x 8 pixels .*--size"):
        heard(tmp_path, bad)


@pytest.mark.parametrize("policy", ["error", "skip", "replace"])
def test_a_file_that_vanishes_is_a_bad_image(tmp_path, monkeypatch, policy):
    """A file that is deleted between listing and reading falls under the policy; one deleted afterwards changes nothing, as pixels are in memory."""
    write_folder(tmp_path)
    found = folder_module._list(tmp_path)
    (tmp_path / "003.png").unlink()
    monkeypatch.setattr(folder_module, "_list", lambda folder: found)
    if policy == "error":
        with pytest.raises(DataError, match="003.png is no regular file"):
            heard(tmp_path, policy)
        return
    images, told = heard(tmp_path, policy)
    assert list(told) == ["003.png"] and len(images) == (5 if policy == "skip" else 6)
    before = images.fingerprint()
    damage(tmp_path, "000.png", "001.png")
    assert images.fingerprint() == before


def test_memory_that_is_short_is_no_bad_image(tmp_path, monkeypatch):
    """An image that does not fit into memory stops the reading: it is never skipped as damaged."""
    write_folder(tmp_path)

    def full(image):
        raise MemoryError

    monkeypatch.setattr(folder_module, "_plain", full)
    with pytest.raises(MemoryError):
        heard(tmp_path, "skip")


# ---- names and bombs


def test_odd_names_are_names(tmp_path):
    """Spaces, newlines, escapes, 255 bytes, no UTF-8: such files are read, and such folders are classes."""
    names = ["a b", "two\nlines", "\x1b[31mred", "x" * 250, "-rf", "$(id)", "猫", os.fsdecode(b"caf\xe9")]
    for i, name in enumerate(names):
        save(tmp_path, np.full((4, 4), i, np.uint8), f"{name}/{name}.png")
    images = nz.read_folder(tmp_path)
    assert sorted(images.classes) == sorted(names)
    assert {images.classes[k]: int(v) for k, v in zip(images.labels, images.pixels[:, 0, 0, 0], strict=True)} == {
        name: i for i, name in enumerate(names)
    }


@pytest.mark.parametrize(
    "name", ["two\nlines.png", "\x1b]0;owned\x07.png", os.fsdecode(b"caf\xe9.png"), "\u202egnp.png"]
)
def test_an_odd_name_in_an_error_is_one_printable_line(tmp_path, name):
    """Newlines, terminal escapes, reversed text and bytes that are no UTF-8 are shown escaped."""
    damage(write_folder(tmp_path), name)
    with pytest.raises(DataError) as caught:
        nz.read_folder(tmp_path)
    assert str(caught.value).isprintable() and str(caught.value).encode()


def test_links_in_a_circle_end(tmp_path):
    """Links to folders are not followed, so a folder that holds itself is read once; a link to a file is that file; one to itself is named."""
    write_folder(tmp_path / "pictures")
    (tmp_path / "pictures/again").symlink_to(tmp_path / "pictures", target_is_directory=True)
    (tmp_path / "pictures/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "pictures/link.png").symlink_to(tmp_path / "pictures/000.png")
    assert len(nz.read_folder(tmp_path / "pictures")) == 7
    (tmp_path / "pictures/self.png").symlink_to(tmp_path / "pictures/self.png")
    with pytest.raises(DataError, match="self.png"):
        nz.read_folder(tmp_path / "pictures")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """A subfolder without permission is an error, not a class that silently is not there."""
    write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot list .*/b: Permission denied"):
        nz.read_folder(tmp_path)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width, height, *more):
    """A PNG of a few bytes that states any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (bomb(10_000, 10_000), "10000 x 10000 pixels, more than 64,000,000"),
        (bomb(2**31 - 1, 2**31 - 1), "more than 64,000,000"),
        (bomb(64_000_001, 1), "64000001 x 1 pixels"),
        (bomb(0, 5), "bad.png"),
        (bomb(8, 8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))] * 3), "is damaged"),
        (bomb(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24)))), "is damaged"),
    ],
    ids=["100 MP", "2^62 pixels", "a line", "no width", "text", "profile"],
)
def test_a_bomb_is_refused(tmp_path, content, named):
    """A PNG that states 100 million pixels or hides megabytes in a text or a colour profile is refused from its header, in one line."""
    write_folder(tmp_path)
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        nz.read_folder(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "format", ["BMP", "GIF", "TIFF", "ICO", "PPM", "PCX", "TGA", "SGI", "DDS", "EPS", "PDF", "JPEG2000"]
)
def test_other_formats_are_refused_whatever_their_name(tmp_path, format):
    """Only three decoders are ever tried: any other format renamed to .png is no image."""
    save(tmp_path, noise(8, 8, 3), "bad.png", format=format)
    with pytest.raises(DataError, match="bad.png is no PNG, JPEG or WebP image"):
        nz.read_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"8BPS\0\1" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"II*\0" + bytes(60),
        b"\x76\x2f\x31\x01" + bytes(60),
        b"\0\0\0 ftypavif" + bytes(60),
    ],
    ids=["PSD", "SVG", "EPS", "TIFF", "EXR", "AVIF"],
)
def test_the_openings_of_other_formats_are_refused(tmp_path, content):
    """What begins like a PSD, SVG, EPS, TIFF, EXR or AVIF is no image here, whatever its ending."""
    for name in ("bad.png", "bad.jpg", "bad.webp"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is no PNG, JPEG or WebP image"):
            nz.read_folder(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a", "a.txt"])
def test_the_content_counts_not_the_ending(tmp_path, name):
    """A PNG is read as what it is under any name."""
    image = noise(8, 8)
    Image.fromarray(image).save(tmp_path / name, format="PNG")
    assert np.array_equal(read_one(tmp_path), image)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_is_its_first_picture(tmp_path, format):
    """Of an animated file the first frame is read."""
    frames = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(tmp_path / "a.png", format=format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert np.array_equal(read_one(tmp_path), np.asarray(frames[0]))


@pytest.mark.parametrize(
    "make", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"]
)
def test_a_pipe_among_images_is_not_opened(tmp_path, make):
    """A pipe that nobody writes to and a link to an endless device are refused at once."""
    write_folder(tmp_path)
    make(tmp_path / "bad.png")
    with pytest.raises(DataError, match="bad.png is no regular file"):
        nz.read_folder(tmp_path)
