"""Batches made ahead of time by threads: the same ones, in order, really meanwhile, and no thread is left behind."""

import _thread
import gc
import sys
import threading
import time

import numpy as np
import pytest

from convkern import data
from convkern.data import transforms as T
from convkern.data.background import Ahead, Waiting


def small_dataset(n=23, channels=3, side=8):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    return data.Dataset(images, draw.integers(0, 3, n), ("a", "b", "c"))


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("convkern-data")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert workers() == []


class Each(T.Transform):
    """Calls a function for every image, in the thread that makes the batch."""

    draws = 1

    def __init__(self, function):
        self.function = function

    def apply(self, x, u):
        for image in x:
            self.function(image)
        return x


AUGMENT = T.Compose([T.RandomCrop(8, padding=2), T.RandomHorizontalFlip(), T.ColorJitter(0.4, 0.4, 0.4, 0.1)])


def collect(loader, start=0):
    xs, labels = zip(*loader.batches(start), strict=True)
    return np.concatenate(xs), np.concatenate(labels)


@pytest.mark.parametrize("more", [{"num_workers": 1}, {"num_workers": 3}, {"num_workers": 2, "prefetch_factor": 9}])
@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_threads_change_no_bit(more, batch_size):
    options = {"shuffle": True, "seed": 7, "transform": AUGMENT, "mean": [0.5, 0.4, 0.3]}
    plain = data.DataLoader(small_dataset(), 23, **options)
    ahead = data.DataLoader(small_dataset(), batch_size, **options, **more)
    seen = set()
    for epoch in (0, 1, 4):
        plain.set_epoch(epoch)
        ahead.set_epoch(epoch)
        wanted, got = collect(plain), collect(ahead)
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_array_equal(got[1], wanted[1])
        seen.add(got[0].tobytes())
    assert len(seen) == 3
    if batch_size == 5:
        np.testing.assert_array_equal(collect(ahead, start=3)[0], wanted[0][15:])


def test_the_transform_has_the_keys_of_the_image():
    loader = data.DataLoader(small_dataset(), 5, shuffle=True, seed=9, transform=AUGMENT)
    loader.set_epoch(2)
    order = loader.order()
    wanted = AUGMENT(loader.dataset.images[order], seed=9, epoch=2, samples=order)
    np.testing.assert_array_equal(collect(loader)[0], (wanted / 255).astype(np.float32))


def test_a_later_epoch_leaves_running_threads_alone():
    loader = data.DataLoader(small_dataset(), 5, shuffle=True, transform=AUGMENT, num_workers=1, prefetch_factor=1)
    wanted = collect(loader)[0]
    with loader.batches() as running:
        first = next(running)[0]
        loader.set_epoch(3)
        np.testing.assert_array_equal(np.concatenate([first, *(x for x, _ in running)]), wanted)


def test_transforms_that_give_floats_are_taken_as_they_are():
    standardise = T.Compose([T.Normalize([0.5] * 3, [0.25] * 3), T.Cutout(3)])
    dataset = small_dataset()
    x, _ = collect(data.DataLoader(dataset, 23, transform=standardise))
    np.testing.assert_array_equal(x, standardise(dataset.images))
    x, _ = collect(data.DataLoader(dataset, 23, transform=standardise, dtype=np.float64))
    assert x.dtype == np.float64


def test_the_next_batch_is_made_while_the_user_has_this_one():
    second = threading.Event()
    count = [0]

    def note(image):
        count[0] += 1
        if count[0] > 1 + 5:  # the constructor tries one blank image
            second.set()

    loader = data.DataLoader(small_dataset(10), 5, transform=Each(note), num_workers=1)
    with loader.batches() as batches:
        next(batches)
        assert second.wait(30), "the second batch was not begun before it was asked for"
    count[0], second = 1, threading.Event()
    loader.num_workers = 0
    with loader.batches() as batches:
        next(batches)
        assert count[0] == 6
        assert not second.is_set()


def turns_while(work):
    """How often this thread gets its turn while another one works, though the interpreter forces nobody to let go."""
    begun, ended, turns = threading.Event(), threading.Event(), 0

    def run():
        begun.set()
        work()
        ended.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        begun.wait()
        while not ended.is_set():
            turns += 1
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(before)
    return turns


def lets_go(work):
    """Whether another thread had a turn in the middle of some work; on a busy machine it takes several tries."""
    deadline = time.monotonic() + 60
    while not (turns := turns_while(work)) and time.monotonic() < deadline:
        pass
    return turns > 0


def test_threads_let_go_of_the_interpreter_while_they_compute():
    """Why threads suffice: kernels run, and the next ones are begun, while a batch is being made."""
    assert [turns_while(lambda: sum(range(500_000))) for _ in range(5)] == [0] * 5  # what never lets go is told apart
    x = np.random.default_rng(0).integers(0, 256, (256, 3, 32, 32), dtype=np.uint8)
    floats = (x / 255).astype(np.float32)
    for transform, images in (
        (AUGMENT.transforms[2], x),
        (T.RandomHorizontalFlip(), x),
        (T.RandomCrop(32, padding=4), x),
        (T.Cutout(8), floats),
        (T.Normalize([0.5] * 3, [0.25] * 3), x),
    ):
        assert lets_go(lambda t=transform, a=images: t(a)), type(transform).__name__


def test_pillow_lets_go_of_the_interpreter_while_it_decodes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(8):
        (tmp_path / "a").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / "a" / f"{i}.jpg")
    folder = data.ImageFolder(tmp_path, 64)
    folder.pixels(np.arange(1))  # Pillow loads its formats
    assert lets_go(lambda: folder.pixels(np.arange(8)))


def test_no_more_is_made_ahead_than_asked_for():
    made = []
    loader = data.DataLoader(small_dataset(20), 1, transform=Each(made.append), num_workers=2, prefetch_factor=3)
    made.clear()
    with loader.batches() as batches:
        next(batches)
        deadline = time.monotonic() + 30
        while len(made) < 1 + 6 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)  # for one that should not be there
        assert len(made) == 1 + 6


def test_idle_share():
    def slow(image):
        time.sleep(0.02)

    loader = data.DataLoader(small_dataset(12), 1, transform=Each(slow))
    assert np.isnan(loader.waiting.idle_share)
    shares = []
    for threads in (0, 1):
        loader.num_workers = threads
        for _ in loader:
            time.sleep(0.06)
        waiting = loader.waiting
        assert waiting.idle_share == waiting.waited / waiting.seconds
        assert waiting.seconds > 12 * 0.06
        shares.append(waiting.idle_share)
    assert shares[0] >= 0.15  # a quarter of the time on a quiet machine
    assert shares[1] < 0.6 * shares[0]  # only the first batch is waited for


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_come_with_their_batch_and_its_images(threads):
    dataset = small_dataset(20)

    def check(image):
        if (image == dataset.images[11]).all():
            raise ValueError("cannot be used")

    loader = data.DataLoader(dataset, 4, transform=Each(check), num_workers=threads)
    loader.set_epoch(6)
    got = []
    with pytest.raises(ValueError, match="cannot be used") as caught:
        got.extend(x for x, _ in loader)  # what came before the error is kept
    assert len(got) == 2
    assert caught.value.__notes__ == ["in batch 2 of epoch 6, of the images [8, 9, 10, 11]"]
    assert workers() == []


def test_leaving_the_loop_ends_the_threads():
    loader = data.DataLoader(small_dataset(), 1, num_workers=3)
    for _ in loader:
        assert len(workers()) >= 1
        break
    assert workers() == []
    batches = loader.batches()
    next(batches)
    batches.close()
    batches.close()
    assert workers() == []
    with pytest.raises(StopIteration):
        next(batches)
    for _ in loader:
        pass
    assert workers() == []


@pytest.mark.parametrize("pause", [0, 0.2], ids=["while waiting", "in the loop"])
def test_an_interrupt_ends_the_threads(pause):
    def interrupt(image):
        if threading.current_thread() is not threading.main_thread():
            _thread.interrupt_main()
            time.sleep(0.05)

    def walk():
        for _ in data.DataLoader(small_dataset(), 1, transform=Each(interrupt), num_workers=1):
            time.sleep(pause)

    with pytest.raises(KeyboardInterrupt):
        walk()
    gc.collect()
    for thread in workers():
        thread.join(30)  # another interrupt may have met the wait for its last image
    assert len(workers()) == 0


def test_tasks_not_begun_are_dropped():
    release, begun = threading.Event(), []

    def make(task):
        begun.append(task)
        release.wait(30)
        return task

    ahead = Ahead(make, range(10), 1, 5, Waiting())
    threading.Timer(0.1, release.set).start()
    ahead.close()
    assert begun == [0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_workers": -1}, ValueError, "num_workers must be at least 0, got -1"),
        ({"num_workers": 1.0}, TypeError, "num_workers must be an integer, got float 1.0"),
        ({"prefetch_factor": 0}, ValueError, "prefetch_factor must be at least 1, got 0"),
        ({"transform": len}, TypeError, "transform must be a Transform, got builtin_function_or_method"),
        ({"transform": T.RandomCrop(9)}, ValueError, "size must be at most the image's with its padding, 8x8, got 9x9"),
        (
            {"transform": T.Normalize([0] * 3, [1] * 3), "mean": [0, 0, 0]},
            ValueError,
            "mean and std must be left out where the transform gives floating images itself",
        ),
    ],
)
def test_loader_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        data.DataLoader(small_dataset(), **arguments)
