"""Codecs: exact affine maps between pixel values and the model's space."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from conftest import tiny_recipe
from nearzero import recipes
from nearzero.codec import fitted
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.registry import decode, encode

law = settings(deadline=None, derandomize=True, max_examples=60)
SHAPES = [(1, 4, 4), (3, 5, 2), (3, 1, 1), (2, 6)]


def images(count, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def ramp(count):
    """`count` different means in (-1, 1)."""
    return tuple(((i + 1) * 0.37) % 1.9 - 0.95 for i in range(count))


def centred(shape, channels):
    return nz.Centred(ramp(shape[0] if channels else math.prod(shape)))


shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
forms = pytest.mark.parametrize("channels", [False, True], ids=["image", "channels"])


@law
@given(value=st.integers(0, 255), mean=st.floats(-1, 1))
def test_pixels_and_centred_are_affine(value, mean):
    """Pixels is p / 127.5 - 1, and Centred that minus the mean, float32; decoding undoes both to a thousandth."""
    pixel = torch.full((1, 1, 1, 1), value, dtype=torch.uint8)
    for codec, shift in ((nz.Pixels(), 0.0), (nz.Centred((mean,)), mean)):
        x = codec.encode(pixel)
        assert x.dtype == torch.float32
        assert x.item() == pytest.approx(value / 127.5 - 1 - shift, abs=3e-7)
        assert codec.decode(x).item() == pytest.approx(value, abs=1e-3)


@shapes
@forms
def test_each_number_has_its_own_mean(shape, channels):
    """An image mean is subtracted number by number in their order, a channel mean over its channel: a plain loop."""
    codec, pixels = centred(shape, channels), images(3, *shape)
    mean = codec.mean if not channels else [m for m in codec.mean for _ in range(math.prod(shape[1:]))]
    for image, x in zip(pixels, codec.encode(pixels), strict=True):
        expected = [value / 127.5 - 1 - m for value, m in zip(image.flatten().tolist(), mean, strict=True)]
        assert x.flatten().tolist() == pytest.approx(expected, abs=3e-7)


@shapes
@forms
def test_decoding_undoes_encoding(shape, channels):
    """decode(encode(image)) rounds to the image for all pixel values, and encode's shape and dtype are x's."""
    codec, pixels = centred(shape, channels), images(20, *shape)
    x = codec.encode(pixels)
    assert (x.shape, x.dtype) == (pixels.shape, torch.float32)
    assert torch.equal(codec.decode(x).round().to(torch.uint8), pixels)


@shapes
@forms
def test_decoding_is_neither_rounded_nor_cut_off(shape, channels):
    """decode is 127.5 (x + mean + 1) far outside the pixels' range too, in float64 for float64."""
    codec = centred(shape, channels)
    x = torch.linspace(-9, 9, 2 * math.prod(shape), dtype=torch.float64).reshape(2, *shape)
    mean = torch.tensor(codec.mean, dtype=torch.float64)
    if channels:
        mean = mean.repeat_interleave(math.prod(shape[1:]))
    torch.testing.assert_close(codec.decode(x), 127.5 * (x + mean.reshape(shape) + 1), rtol=1e-14, atol=1e-12)


@shapes
def test_centred_data_have_mean_zero(shape):
    """Centred.of(images) subtracts their mean image: each number of the encoded images has mean 0, to rounding."""
    pixels = images(50, *shape, seed=4)
    codec = nz.Centred.of(pixels)
    x = codec.encode(pixels).double()
    assert x.mean(0).abs().max().item() < 1e-7
    assert nz.Pixels().encode(pixels).double().mean(0).abs().max().item() > 1e-2
    assert codec.mean == pytest.approx((pixels.double().mean(0) / 127.5 - 1).flatten().tolist(), abs=1e-15)


def test_a_single_image_is_its_own_mean():
    """One image centred at itself is 0 everywhere, to float32's rounding."""
    pixels = images(1, 3, 4, 4)
    assert nz.Centred.of(pixels).encode(pixels).abs().max().item() < 1e-7


@law
@given(dim=st.integers(1, 10000), mean=st.floats(-1, 1))
def test_a_shift_changes_no_volume(dim, mean):
    """log |d encode / d image| is -dim log 127.5 for both."""
    expected = dim * math.log(2 / 255)
    assert nz.Pixels().log_determinant(dim) == pytest.approx(expected, rel=1e-14)
    assert nz.Centred((mean,)).log_determinant(dim) == nz.Pixels().log_determinant(dim)


@forms
def test_the_log_determinant_is_the_jacobians(channels):
    """The determinant of encode's matrix, inverse to decode's by autograd in float64, has the stated logarithm."""
    shape = (2, 3)
    codec, x = centred(shape, channels), torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(codec.decode, x).reshape(6, 6)
    assert -torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(codec.log_determinant(6), rel=1e-14)


@pytest.mark.parametrize("count", [2, 5, 15, 17, 48])
def test_a_mean_of_another_size_is_refused(count):
    """Neither one number for each number of the image nor one for each channel: refused with both sizes."""
    codec = nz.Centred(ramp(count))
    with pytest.raises(ArgumentError, match=rf"mean of {count} numbers for images of \(1, 4, 4\)"):
        codec.encode(images(2, 1, 4, 4))
    with pytest.raises(ArgumentError, match=rf"mean of {count} numbers for images of \(1, 4, 4\)"):
        codec.decode(torch.zeros(2, 1, 4, 4))


def test_numbers_without_a_shape_are_refused():
    """A batch of single numbers has no channels for a mean of two: refused like any other size."""
    with pytest.raises(ArgumentError, match="mean of 2 numbers"):
        nz.Centred((0.1, 0.2)).encode(torch.tensor([0, 255], dtype=torch.uint8))


@pytest.mark.parametrize("mean", [(math.nan,), (0.1, math.inf), (-math.inf, 0.0)], ids=str)
def test_a_mean_that_is_not_finite_is_refused(mean):
    """NaN and infinities are refused."""
    with pytest.raises(ArgumentError, match="mean image of finite numbers"):
        nz.Centred(mean)


def test_no_images_have_no_mean():
    """Centred.of without an image is refused: its mean is NaN."""
    with pytest.raises(ArgumentError, match="mean image of finite numbers"):
        nz.Centred.of(torch.zeros(0, 1, 2, 2, dtype=torch.uint8))


@law
@given(mean=st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_centred_survives_the_registry(mean):
    """What encode writes decode reads back, equal to the last bit and through JSON's lists."""
    codec = nz.Centred(tuple(mean))
    written = encode(codec)
    assert written == {"class": "Centred", "mean": mean}
    assert decode(written) == codec
    assert hash(decode(written)) == hash(codec)


@pytest.mark.parametrize("mean", [None, 0.5, "x", ["x"], [[0.1]], [math.nan], {"class": "Pixels"}], ids=repr)
def test_a_bad_mean_in_a_recipe_is_refused(mean):
    """A saved mean that is no list of finite numbers is a damaged recipe."""
    with pytest.raises(CheckpointError, match="bad Centred"):
        decode({"class": "Centred", "mean": mean})


# ---- fitted to the images


def test_a_mean_that_is_not_known_yet():
    """Centred() can neither encode nor decode before training: refused with the remedy; its volume is that of every Centred."""
    codec = nz.Centred()
    for ask, x in ((codec.encode, images(1, 1, 2, 2)), (codec.decode, torch.zeros(1, 1, 2, 2))):
        with pytest.raises(ArgumentError, match=r"Centred\(\) knows no mean yet; take Centred.of"):
            ask(x)
    assert codec.log_determinant(4) == nz.Pixels().log_determinant(4)
    assert decode(encode(codec)) == codec


def test_only_a_codec_without_a_mean_is_fitted():
    """fitted() gives Centred() the mean of the images, or of them and their mirror images, and leaves any other codec as it is."""
    pixels = images(9, 3, 4, 5, seed=1)
    assert fitted(nz.Centred(), pixels) == nz.Centred.of(pixels)
    both = torch.cat([pixels, pixels.flip(-1)])
    assert fitted(nz.Centred(), pixels, mirrored=True) == nz.Centred.of(both) != nz.Centred.of(pixels)
    for codec in (nz.Pixels(), nz.Centred((0.1, 0.2, 0.3)), nz.Centred.of(both)):
        for mirrored in (False, True):
            assert fitted(codec, pixels, mirrored=mirrored) is codec


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2500])
def test_the_mean_of_many_images_is_exact(count):
    """Summed in parts as integers, the mean is the rounded quotient of the exact sum, whatever the number of images and their order."""
    pixels = images(count, 1, 2, 3, seed=count)
    mean = [sum(column) / count / 127.5 - 1 for column in pixels.flatten(1).T.tolist()]
    assert list(nz.Centred.of(pixels).mean) == mean
    assert nz.Centred.of(pixels.flip(0)) == nz.Centred.of(pixels)


@pytest.mark.parametrize("flip", [False, True])
def test_a_recipe_is_centred_on_what_training_sees(flip):
    """recipes.centred is what training makes of Centred(): the mean of the images, or of them and their mirror images."""
    pixels = images(7, 1, 8, 8, seed=3)
    recipe = recipes.centred(tiny_recipe(flip=flip), pixels)
    assert recipe.codec == fitted(nz.Centred(), pixels, mirrored=flip)
    assert (recipe.codec == nz.Centred.of(pixels)) is not flip
