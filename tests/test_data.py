"""Folders of images: every kind of file becomes the pixels that a viewer shows, and what is wrong is named."""

import hashlib
import re

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
