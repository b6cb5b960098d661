"""Transforms against their definitions in plain loops, image by image, and against the random numbers of each image."""

import colorsys
import itertools
import math

import numpy as np
import pytest

from convkern import data
from convkern.data import transforms as T
from convkern.data.transforms import ColorJitter, base, color
from convkern.random import AUGMENT, uniforms

SEED, EPOCH = 3, 5


def some_images(n=7, channels=3, height=9, width=11, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


def numbers(transform, samples):
    """The uniform numbers of each image, as the definition says: its own stream, from the start."""
    return [data.rng(SEED, AUGMENT, EPOCH, int(i)).random(transform.draws) for i in samples]


def check(transform, x, one, samples=None, **close):
    """Compare a transform with ``one(image, u)`` for every image; exactly, or to the tolerance given."""
    before = x.copy()
    samples = np.arange(len(x)) if samples is None else samples
    got = transform(x, seed=SEED, epoch=EPOCH, samples=samples)
    wanted = np.stack([one(image, u) for image, u in zip(x, numbers(transform, samples), strict=True)])
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, **{"rtol": 0, "atol": 0, **close})
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(got, x)
    return got


# --- random numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 23])
def test_uniforms_are_those_of_every_samples_own_stream(count):
    samples = np.array([0, 1, 77, 2**40, 2**63 - 1])
    for seed, epoch in ((0, 0), (2**64 - 1, 3), (12345, 2**33)):
        got = uniforms(seed, AUGMENT, epoch, samples, count)
        wanted = [data.rng(seed, AUGMENT, epoch, int(i)).random(count) for i in samples]
        assert got.shape == (5, count)
        np.testing.assert_array_equal(got, np.reshape(wanted, (5, count)))


def test_uniforms_refuse():
    with pytest.raises(TypeError, match=r"samples must be integers of shape \(B,\), got float64 of shape \(1,\)"):
        uniforms(0, AUGMENT, 0, [0.5], 1)
    with pytest.raises(ValueError, match="samples must be at least 0, got -1"):
        uniforms(0, AUGMENT, 0, [0, -1], 1)
    with pytest.raises(ValueError, match="epoch must be between 0"):
        uniforms(0, AUGMENT, -1, [0], 1)
    with pytest.raises(ValueError, match="count must be at least 0, got -2"):
        uniforms(0, AUGMENT, 0, [0], -2)


ALL = [
    T.RandomCrop((5, 6)),
    T.RandomCrop(9, padding=2, fill=7),
    T.RandomHorizontalFlip(),
    T.Cutout(4, n_holes=2, fill=9),
    T.RandomErasing(0.7, value=3),
    T.Normalize([0.1, 0.2, 0.3], [0.5, 0.25, 2.0]),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
]
ALL.append(T.Compose([ALL[1], ALL[2], ALL[6], ALL[5], T.Cutout(3)]))


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_an_image_fares_alike_in_every_batch(transform, monkeypatch):
    x = some_images(n=40)
    samples = np.random.default_rng(1).permutation(1000)[:40]
    whole = transform(x, seed=SEED, epoch=EPOCH, samples=samples)
    for i in range(0, 40, 3):
        alone = transform(x[i : i + 1], seed=SEED, epoch=EPOCH, samples=samples[i : i + 1])
        np.testing.assert_array_equal(alone[0], whole[i])
    monkeypatch.setattr(base, "_PIECE", 3 * 9 * 11 * 7)  # seven images at a time, the last piece partial
    np.testing.assert_array_equal(transform(x, seed=SEED, epoch=EPOCH, samples=samples), whole)
    if transform.draws:
        for other in ({"seed": 4}, {"epoch": 6}, {"samples": samples + 1}):
            keys = {"seed": SEED, "epoch": EPOCH, "samples": samples, **other}
            assert not np.array_equal(transform(x, **keys), whole), other
    assert transform(x[:0]).shape == (0, *whole.shape[1:])


def test_compose_gives_each_transform_numbers_of_its_own():
    x = some_images()
    flip = T.RandomHorizontalFlip()
    twice = T.Compose([flip, flip])
    assert twice.draws == 2
    flips = [(u < 0.5).sum() % 2 for u in numbers(twice, range(7))]
    assert 0 < sum(flips) < 7
    wanted = [image[..., ::-1] if flipped else image for image, flipped in zip(x, flips, strict=True)]
    np.testing.assert_array_equal(twice(x, seed=SEED, epoch=EPOCH), wanted)


# --- definitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize(
    ("size", "padding"), [((4, 3), None), (9, 2), ((10, 12), (1, 2)), ((9, 11), (1, 0, 3, 2)), ((9, 11), None)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_random_crop(size, padding, mode, dtype):
    sides = [padding] if isinstance(padding, int) else list(padding or [0])
    left, top, right, bottom = sides if len(sides) == 4 else (sides * 4)[:4]
    h, w = (size, size) if isinstance(size, int) else size

    def pixel(image, channel, row, column):
        inside = []
        for at, length in ((row, image.shape[1]), (column, image.shape[2])):
            if not 0 <= at < length:
                if mode == "constant":
                    return 6
                at = {
                    "edge": min(max(at, 0), length - 1),
                    "reflect": -at if at < 0 else 2 * length - 2 - at,
                    "symmetric": -1 - at if at < 0 else 2 * length - 1 - at,
                }[mode]
            inside.append(at)
        return image[channel, inside[0], inside[1]]

    def one(image, u):
        i = math.floor(u[0] * (9 + top + bottom - h + 1)) - top
        j = math.floor(u[1] * (11 + left + right - w + 1)) - left
        out = np.empty((3, h, w), dtype)
        for c, y, x in itertools.product(range(3), range(h), range(w)):
            out[c, y, x] = pixel(image, c, i + y, j + x)
        return out

    check(T.RandomCrop(size, padding, fill=6, padding_mode=mode), some_images().astype(dtype), one)


def test_random_crop_reaches_every_place_equally():
    rows = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4).repeat(12000, axis=0)
    first = T.RandomCrop((2, 2))(rows)[:, 0, 0, 0]
    counts = np.bincount(first, minlength=12)
    assert set(np.flatnonzero(counts)) == {0, 1, 2, 4, 5, 6}
    expected = 2000
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees: one in a thousand


@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_random_horizontal_flip(p):
    check(T.RandomHorizontalFlip(p), some_images(n=50), lambda image, u: image[:, :, ::-1] if u[0] < p else image)
    flips = T.RandomHorizontalFlip(p)(np.tile(np.uint8([0, 1]), (5000, 1, 1, 1)))[:, 0, 0, 0].mean()
    assert abs(flips - p) < 4 * math.sqrt(0.25 / 5000)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
def test_cutout(size):
    def one(image, u):
        mask = np.ones((9, 11), np.float32)  # as in the authors' cutout.py, for even sizes
        y, x = math.floor(u[0] * 9), math.floor(u[1] * 11)
        y1, y2 = np.clip(y - size // 2, 0, 9), np.clip(y - size // 2 + size, 0, 9)
        x1, x2 = np.clip(x - size // 2, 0, 11), np.clip(x - size // 2 + size, 0, 11)
        mask[y1:y2, x1:x2] = 0.0
        return image * mask

    out = check(T.Cutout(size), (some_images(n=50) + 1.0).astype(np.float32), one)
    assert ((out == 0).sum(axis=(1, 2, 3)) >= 3 * ((size + 1) // 2) ** 2).all()


def test_cutout_with_more_holes_and_another_fill():
    def one(image, u):
        image = image.copy()
        for y, x in u.reshape(3, 2):
            y, x = math.floor(y * 9), math.floor(x * 11)
            image[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 99
        return image

    check(T.Cutout(3, n_holes=3, fill=99), some_images(n=20), one)


@pytest.mark.parametrize("scale", [(0.02, 0.33), (0.9, 1.0)])
def test_random_erasing(scale):
    """torchvision's loop, with the numbers of the image in the place of PyTorch's."""
    whole = []

    def one(image, u):
        image = image.copy()
        if u[0] >= 0.8:
            return image
        for try_ in range(10):
            area = 9 * 11 * (scale[0] + u[3 + 2 * try_] * (scale[1] - scale[0]))
            ratio = math.exp(math.log(0.3) + u[4 + 2 * try_] * (math.log(3.3) - math.log(0.3)))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if not (h < 9 and w < 11):
                continue
            i, j = math.floor(u[1] * (9 - h + 1)), math.floor(u[2] * (11 - w + 1))
            image[:, i : i + h, j : j + w] = 77
            return image
        whole.append(image)
        return image

    check(T.RandomErasing(0.8, scale=scale, value=77), some_images(n=200), one)
    assert bool(whole) == (scale[0] == 0.9)  # the large rectangles fit at times not at all


def test_normalize():
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    x = some_images()
    scaled = (x / 255 - mean[:, None, None]) / std[:, None, None]
    for dtype in (np.float32, np.float64):
        got = T.Normalize(mean.tolist(), std.tolist(), dtype)(x)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, scaled.astype(dtype))  # rounded once
        got = T.Normalize(mean.tolist(), std.tolist())((x / 255).astype(dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, scaled, rtol=0, atol=40 * np.finfo(dtype).eps)


# --- colours -----------------------------------------------------------------------------------------------------


def plain_brightness(image, factor):
    return np.clip(image * factor, 0, 1)


def plain_grey(image):
    r, g, b = image if len(image) == 3 else (image[0], 0, 0)
    return 0.2989 * r + 0.587 * g + 0.114 * b if len(image) == 3 else r


def plain_contrast(image, factor):
    return np.clip(factor * image + (1 - factor) * plain_grey(image).mean(), 0, 1)


def plain_saturation(image, factor):
    return image if len(image) == 1 else np.clip(factor * image + (1 - factor) * plain_grey(image), 0, 1)


def plain_hue(image, factor):
    if len(image) == 1:
        return image
    out = np.empty_like(image)
    for y, x in itertools.product(*map(range, image.shape[1:])):
        h, s, v = colorsys.rgb_to_hsv(*image[:, y, x])
        out[:, y, x] = colorsys.hsv_to_rgb((h + factor) % 1, s, v)
    return out


PLAIN = [
    (color.adjust_brightness, plain_brightness, (0, 0.5, 1, 1.7)),
    (color.adjust_contrast, plain_contrast, (0, 0.5, 1, 1.7)),
    (color.adjust_saturation, plain_saturation, (0, 0.5, 1, 1.7)),
    (color.adjust_hue, plain_hue, (-0.5, -0.13, 0, 1 / 3, 0.5)),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("change", "plain", "factors"), PLAIN, ids=lambda v: getattr(v, "__name__", ""))
def test_each_change_of_colour(change, plain, factors, channels):
    x = some_images(n=len(factors), channels=channels) / 255
    x[:, :, 0, :4] = np.array([0, 1, 0.5, 0.25])  # grey pixels have no hue
    if channels == 3:  # the corners of the colour cube and its edges, where two channels are equal
        corners = np.array(list(itertools.product((0, 0.5, 1), repeat=3))).T
        x[:, :, 1:4, :9] = corners.reshape(3, 3, 9)
    wanted = np.stack([plain(image, factor) for image, factor in zip(x, factors, strict=True)])
    got = change(x, np.reshape(factors, (-1, 1, 1, 1)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-14)
    assert change(x.astype(np.float32), np.reshape(factors, (-1, 1, 1, 1)).astype(np.float32)).dtype == np.float32


def test_colour_jitter_in_the_order_and_by_the_factors_of_each_image():
    jitter = ColorJitter(0.4, (0.2, 1.5), 0.3, 0.25)
    orders = set()

    def one(image, u):
        factors = [0.6 + 0.8 * u[0], 0.2 + 1.3 * u[1], 0.7 + 0.6 * u[2], -0.25 + 0.5 * u[3]]
        orders.add(order := tuple(np.argsort(u[4:])))
        for which in order:
            image = PLAIN[which][1](image, factors[which])
        return image

    check(jitter, some_images(n=300, height=2, width=3) / 255, one, atol=1e-13)
    assert len(orders) == 24


def test_colour_jitter_leaves_out_what_is_not_asked_for():
    x = some_images() / 255
    assert ColorJitter().draws == 0
    np.testing.assert_array_equal(ColorJitter()(x), x)
    np.testing.assert_array_equal(ColorJitter()(some_images()), some_images())
    check(ColorJitter(saturation=0.5), x, lambda image, u: plain_saturation(image, 0.5 + u[0]), atol=1e-14)
    check(ColorJitter(hue=(0.2, 0.2)), x, lambda image, u: plain_hue(image, 0.2), atol=1e-14)
    ends = ColorJitter(brightness=3)
    assert ends.brightness == (0, 4)


def test_colour_jitter_of_bytes_rounds_once():
    x = some_images(n=30)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    got = jitter(x, seed=SEED)
    exact = jitter(x / 255, seed=SEED) * 255
    assert got.dtype == np.uint8
    assert np.abs(got - exact).max() < 0.5 + 1e-3
    for channels in (1, 3):
        x = some_images(channels=channels)
        np.testing.assert_array_equal(jitter(x, seed=1), np.rint(jitter(x / np.float32(255), seed=1) * 255))


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: T.RandomCrop(0), ValueError, "size must be at least 1, got 0"),
        (lambda: T.RandomCrop((3, 4, 5)), ValueError, r"size must be one integer or two, .* got \(3, 4, 5\)"),
        (lambda: T.RandomCrop(2.5), TypeError, "size must be an integer, got float 2.5"),
        (lambda: T.RandomCrop(3, (1, 2, 3)), ValueError, r"padding must be one, two or four .* got \(1, 2, 3\)"),
        (lambda: T.RandomCrop(3, -1), ValueError, "padding must be one, two or four integers of at least 0, got -1"),
        (lambda: T.RandomCrop(3, 1.5), TypeError, "padding must be an integer, got float 1.5"),
        (lambda: T.RandomCrop(3, fill="x"), TypeError, "fill must be a number, got 'x'"),
        (lambda: T.RandomCrop(3, padding_mode="wrap"), ValueError, "padding_mode must be one of .*, got 'wrap'"),
        (lambda: T.RandomHorizontalFlip(1.5), ValueError, "p must be a probability, 0 to 1, got 1.5"),
        (lambda: T.RandomHorizontalFlip(-0.1), ValueError, "p must be a probability, 0 to 1, got -0.1"),
        (lambda: T.RandomHorizontalFlip("no"), TypeError, "p must be a number, got 'no'"),
        (lambda: T.RandomHorizontalFlip(math.nan), ValueError, "p must be finite, got nan"),
        (lambda: T.Cutout(0), ValueError, "size must be at least 1, got 0"),
        (lambda: T.Cutout(3, n_holes=0), ValueError, "n_holes must be at least 1, got 0"),
        (lambda: T.RandomErasing(2), ValueError, "p must be a probability, 0 to 1, got 2"),
        (lambda: T.RandomErasing(scale=(0.5, 0.2)), ValueError, r"scale must be two numbers from 0 to 1, the smaller"),
        (lambda: T.RandomErasing(scale=(0.5, 1.2)), ValueError, r"scale must be two numbers from 0 to 1.*\(0.5, 1.2\)"),
        (lambda: T.RandomErasing(ratio=(0, 1)), ValueError, r"ratio must be above 0, got \(0, 1\)"),
        (lambda: T.RandomErasing(ratio=3), TypeError, "ratio must be a pair of numbers, got 3"),
        (lambda: T.Normalize([0.5], [0.0]), ValueError, r"std must be above 0, got \[0.0\]"),
        (lambda: T.Normalize([0.5], [1, 1]), ValueError, r"std must hold 1 numbers, one per channel, got shape \(2,\)"),
        (lambda: T.Normalize(0.5, 1), ValueError, r"mean must hold a number per channel, got shape \(\)"),
        (lambda: T.Normalize([], []), ValueError, r"mean must hold a number per channel, got shape \(0,\)"),
        (lambda: T.Normalize([0.5], [1], np.int32), ValueError, "dtype must be float32 or float64, got int32"),
        (lambda: ColorJitter(-0.1), ValueError, "brightness must be at least 0, got -0.1"),
        (
            lambda: ColorJitter(contrast=(1, 0.5)),
            ValueError,
            r"contrast must be two numbers of at least 0, the smaller",
        ),
        (lambda: ColorJitter(saturation="x"), TypeError, "saturation must be a number, got 'x'"),
        (lambda: ColorJitter(hue=0.6), ValueError, "hue must be 0 to 0.5, got 0.6"),
        (
            lambda: ColorJitter(hue=(-0.7, 0.1)),
            ValueError,
            r"hue must be two numbers from -0.5 to 0.5, .*\(-0.7, 0.1\)",
        ),
        (lambda: T.Compose([]), ValueError, "transforms must hold at least one Transform, got none"),
        (
            lambda: T.Compose([T.Cutout(1), len]),
            TypeError,
            r"transforms\[1\] must be a Transform, got builtin_function",
        ),
    ],
)
def test_arguments_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "x", "error", "message"),
    [
        (
            T.RandomCrop(10),
            some_images(),
            ValueError,
            "size must be at most the image's with its padding, 9x11, got 10x10",
        ),
        (
            T.RandomCrop(9, padding=9, padding_mode="reflect"),
            some_images(),
            ValueError,
            "padding must be below .* 9x11",
        ),
        (T.Cutout(10), some_images(), ValueError, "size must be at most the image's 9x11, got 10"),
        (T.Normalize([0.5], [1]), some_images(), ValueError, r"x must have 1 channels, .* got shape \(7, 3, 9, 11\)"),
        (
            ColorJitter(0.1),
            some_images(channels=2),
            ValueError,
            r"x must have 1 or 3 channels .* got shape \(7, 2, 9, 11\)",
        ),
        (ColorJitter(0.1), some_images() / 100, ValueError, "x must be from 0 to 1 .*: do it before Normalize"),
        (
            T.Cutout(1),
            some_images().tolist(),
            TypeError,
            "x must be a NumPy array of uint8, float32 or float64, got list",
        ),
        (T.Cutout(1), some_images().astype(int), TypeError, "x must be a NumPy array of uint8.*, got int64"),
        (T.Cutout(1), some_images()[0], ValueError, r"x must have shape \(B, C, H, W\).*, got \(3, 9, 11\)"),
        (T.Transform(), some_images(), NotImplementedError, r"Transform must define apply\(x, u\)"),
    ],
)
def test_images_refused(transform, x, error, message):
    with pytest.raises(error, match=message):
        transform(x)


def test_samples_refused():
    with pytest.raises(ValueError, match=r"samples must have shape \(7,\), one per image, got \(2,\)"):
        T.Cutout(1)(some_images(), samples=[0, 1])
