"""The Dataset type, keyed randomness and the DataLoader."""

import numpy as np
import pytest

from convkern import data
from convkern import random as keyed


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def small_dataset(n=23, channels=2, seed=0):
    labels = np.random.default_rng(seed).integers(0, 3, n)
    return data.Dataset(random_bytes(n, channels, 5, 4, seed=seed), labels, ("a", "b", "c"))


# --- Dataset -----------------------------------------------------------------------------------------------------


def test_dataset_basics():
    dataset = small_dataset()
    assert len(dataset) == 23
    assert dataset.shape == (2, 5, 4)
    with pytest.raises(AttributeError):
        dataset.images = None


@pytest.mark.parametrize(
    "indices", [[3, 0, 3], np.array([5]), slice(2, 9, 3), [], np.arange(23) % 2 == 0, np.array([-1], dtype=np.int8)]
)
def test_dataset_subset(indices):
    dataset = small_dataset()
    part = dataset.subset(indices)
    where = np.arange(23)[
        indices if isinstance(indices, slice) else np.asarray(indices, dtype=None if len(indices) else int)
    ]
    np.testing.assert_array_equal(part.images, np.stack([*dataset.images])[where])
    np.testing.assert_array_equal(part.labels, dataset.labels[where])
    assert part.classes == dataset.classes


def test_dataset_subset_refuses():
    with pytest.raises(
        TypeError, match=r"indices must be a slice or 1-dimensional integers .*, got float64 of shape \(1,\)"
    ):
        small_dataset().subset([0.5])
    with pytest.raises(TypeError, match=r"got int64 of shape \(1, 1\)"):
        small_dataset().subset([[1]])
    with pytest.raises(IndexError, match="23 is out of bounds"):
        small_dataset().subset([23])


PIXELS = np.zeros((2, 1, 3, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"images": PIXELS.astype(np.float32)}, TypeError, "images must be a NumPy array of uint8, got float32"),
        ({"images": [1, 2]}, TypeError, "images must be a NumPy array of uint8, got list"),
        ({"images": PIXELS[0]}, ValueError, r"images must have shape \(N, C, H, W\).*, got \(1, 3, 3\)"),
        ({"images": PIXELS[:, :0]}, ValueError, r"images must have shape \(N, C, H, W\).*, got \(2, 0, 3, 3\)"),
        ({"labels": np.zeros(2, dtype=np.uint8)}, TypeError, "labels must be a NumPy array of int64, got uint8"),
        (
            {"labels": np.zeros(3, dtype=np.int64)},
            ValueError,
            r"labels must have shape \(2,\), one per image, got \(3,\)",
        ),
        ({"labels": np.array([0, 2])}, ValueError, "labels must be 0 to 1, one of 2 classes, got 0 to 2"),
        ({"labels": np.array([-1, 0])}, ValueError, "labels must be 0 to 1, one of 2 classes, got -1 to 0"),
        ({"classes": ["a", "b"]}, TypeError, "classes must be a tuple of str, got"),
        ({"classes": (1, 2)}, TypeError, "classes must be a tuple of str, got"),
    ],
)
def test_dataset_refuses(fields, error, message):
    good = {"images": PIXELS, "labels": np.array([0, 1]), "classes": ("a", "b")}
    assert len(data.Dataset(**good)) == 2
    with pytest.raises(error, match=message):
        data.Dataset(**{**good, **fields})


def test_channel_stats():
    dataset = small_dataset(n=5000)  # more than one block
    mean, std = data.channel_stats(dataset)
    scaled = dataset.images / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)
    assert all(type(value) is float for value in (*mean, *std))
    with pytest.raises(ValueError, match="dataset must hold at least one image, got 0"):
        data.channel_stats(dataset.subset([]))


# --- rng ---------------------------------------------------------------------------------------------------------


def test_rng_depends_on_all_its_arguments_and_nothing_else():
    arguments = [
        (0,),
        (1,),
        (0, 0),
        (0, 1),
        (0, 0, 0),
        (0, 0, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0, 0, 0, 1),
        (2**64 - 1, 5),
    ]
    streams = {a: data.rng(*a).integers(0, 2**63, 8).tobytes() for a in arguments}
    assert len(set(streams.values())) == len(arguments)
    for a in reversed(arguments):
        assert data.rng(*a).integers(0, 2**63, 8).tobytes() == streams[a]
    assert data.rng(np.int64(0), np.int32(1)).random() == data.rng(0, 1).random()


def test_rng_is_the_same_on_every_machine():
    # Philox4x64-10 of key (7, 2) at counter (1, 3, 4, 0), NumPy's first block: a change here would break old runs.
    block = [16798414772548216575, 8784439437100774155, 10709448225575093542, 2259979186859679362]
    assert data.rng(7, 3, 4).bit_generator.random_raw(4).tolist() == block


def test_rng_refuses():
    with pytest.raises(ValueError, match=r"keys must be at most 3 integers \(purpose, epoch, sample\), got 4"):
        data.rng(0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"seed must be between 0 and 2\*\*64 - 1, got -1"):
        data.rng(-1)
    with pytest.raises(ValueError, match=r"keys\[1\] must be between 0 and 2\*\*64 - 1, got 18446744073709551616"):
        data.rng(0, 0, 2**64)
    with pytest.raises(TypeError, match=r"keys\[0\] must be an integer, got float 1.5"):
        data.rng(0, 1.5)


# --- DataLoader --------------------------------------------------------------------------------------------------


def collect(iterator):
    batches = list(iterator)
    return [x for x, _ in batches], [labels for _, labels in batches]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loader_normalises_by_the_plain_formula(dtype):
    dataset = small_dataset()
    mean, std = (0.25, 0.6), (0.5, 0.125)
    xs, labels = collect(data.DataLoader(dataset, batch_size=7, mean=mean, std=std, dtype=dtype))
    x = np.concatenate(xs)
    expected = (dataset.images / 255.0 - np.reshape(mean, (1, 2, 1, 1))) / np.reshape(std, (1, 2, 1, 1))
    assert x.dtype == dtype
    np.testing.assert_array_equal(x, expected.astype(dtype))  # rounded once, so equal and not only close
    np.testing.assert_array_equal(np.concatenate(labels), dataset.labels)
    assert labels[0].dtype == np.int64
    assert [len(x) for x in xs] == [7, 7, 7, 2]
    assert all(x.flags.c_contiguous and x.flags.writeable and x.flags.owndata for x in xs)


def test_loader_without_mean_and_std_scales_to_one():
    dataset = small_dataset()
    x, _ = next(iter(data.DataLoader(dataset, batch_size=23)))
    np.testing.assert_array_equal(x, (dataset.images / 255).astype(np.float32))
    x, _ = next(iter(data.DataLoader(dataset, batch_size=23, mean=[0.5, 0.25])))
    np.testing.assert_array_equal(x, (dataset.images / 255 - np.reshape([0.5, 0.25], (1, 2, 1, 1))).astype(np.float32))


def test_loader_order_depends_on_seed_and_epoch_only():
    dataset = small_dataset(n=50)

    def order(seed, epoch, batch_size=8, **more):
        loader = data.DataLoader(dataset, batch_size, shuffle=True, seed=seed, **more)
        loader.set_epoch(epoch)
        xs, labels = collect(loader)
        assert sorted(x.tobytes() for x in np.concatenate(xs)) == sorted(x.tobytes() for x in plain)
        return np.concatenate(xs).tobytes() + np.concatenate(labels).tobytes()

    plain, _ = next(iter(data.DataLoader(dataset, 50)))
    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    for (seed, epoch), wanted in reversed(orders.items()):
        assert order(seed, epoch, batch_size=5) == wanted
    loader = data.DataLoader(dataset, 8, shuffle=True, seed=1)
    first, again = collect(loader), collect(loader)
    np.testing.assert_array_equal(np.concatenate(first[1]), np.concatenate(again[1]))
    np.testing.assert_array_equal(loader.order(), data.rng(1, keyed.SHUFFLE, 0).permutation(50))


def test_loader_labels_stay_with_their_images():
    images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), dtype=np.uint8)
    dataset = data.Dataset(images, np.arange(200) % 10, tuple("0123456789"))
    for x, labels in data.DataLoader(dataset, 16, shuffle=True, seed=3):
        np.testing.assert_array_equal(np.rint(x[:, 0, 0, 0] * 255).astype(int) % 10, labels)


@pytest.mark.parametrize(
    ("batch_size", "drop_last"), [(1, False), (1, True), (6, False), (6, True), (23, False), (23, True), (40, False)]
)
def test_loader_batches_from_start_are_the_tail(batch_size, drop_last):
    loader = data.DataLoader(small_dataset(), batch_size, shuffle=True, seed=5, drop_last=drop_last)
    loader.set_epoch(2)
    xs, labels = collect(loader)
    assert len(xs) == len(loader) == (23 // batch_size if drop_last else -(-23 // batch_size))
    for start in range(len(loader) + 1):
        tail_xs, tail_labels = collect(loader.batches(start=start))
        assert len(tail_xs) == len(loader) - start
        for a, b in zip(xs[start:] + labels[start:], tail_xs + tail_labels, strict=True):
            np.testing.assert_array_equal(a, b)


def test_loader_set_epoch_leaves_a_running_iteration_alone():
    loader = data.DataLoader(small_dataset(), 6, shuffle=True)
    wanted = collect(loader)[1]
    running = iter(loader)
    got = [next(running)[1]]
    loader.set_epoch(1)
    got += [labels for _, labels in running]
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(wanted))


def test_loader_gives_batches_of_their_own():
    dataset = small_dataset()
    before = dataset.images.copy(), dataset.labels.copy()
    for x, labels in data.DataLoader(dataset, 23):
        x[:] = 0
        labels[:] = 0
    np.testing.assert_array_equal(dataset.images, before[0])
    np.testing.assert_array_equal(dataset.labels, before[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": small_dataset().subset([])}, ValueError, "dataset must hold at least one image, got 0"),
        ({"dataset": [1]}, TypeError, "dataset must be a Dataset, got list"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, ValueError, "batch_size must be at least 1, got -3"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got float 2.0"),
        ({"batch_size": 24, "drop_last": True}, ValueError, "batch_size must be at most 23, .* with drop_last, got 24"),
        ({"mean": [0.1]}, ValueError, r"mean must hold 2 numbers, one per channel, got shape \(1,\)"),
        ({"mean": 0.1}, ValueError, r"mean must hold 2 numbers, one per channel, got shape \(\)"),
        ({"mean": [0.1, np.nan]}, ValueError, r"mean must be finite, got \[0.1, nan\]"),
        ({"std": [1, 1, 1]}, ValueError, r"std must hold 2 numbers, one per channel, got shape \(3,\)"),
        ({"std": [1, 0]}, ValueError, r"std must be above 0, got \[1.0, 0.0\]"),
        ({"std": [1, -1]}, ValueError, r"std must be above 0, got \[1.0, -1.0\]"),
        ({"dtype": np.float16}, ValueError, "dtype must be float32 or float64, got float16"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
    ],
)
def test_loader_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        data.DataLoader(**{"dataset": small_dataset(), **arguments})


def test_loader_refuses_positions():
    loader = data.DataLoader(small_dataset(), 6)
    with pytest.raises(ValueError, match="start must be 0 to 4, the number of batches, got 5"):
        loader.batches(start=5)
    with pytest.raises(ValueError, match="start must be 0 to 4, the number of batches, got -1"):
        loader.batches(start=-1)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        loader.set_epoch(-1)
    with pytest.raises(TypeError, match=r"epoch must be an integer, got float 0\.5"):
        loader.set_epoch(0.5)
