"""Image folders: classes and files in PyTorch's order, every kind of picture, and what cannot be used is named."""

import io
import os
import shutil

import numpy as np
import pytest

from convkern import data
from convkern.data.folder import read_scaled

Image = pytest.importorskip("PIL.Image")


def random_picture(height, width, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """Two classes, files in nested folders, and things that are no pictures."""
    for i, name in enumerate(["dog/b.png", "dog/a.PNG", "dog/deep/z.png", "cat/10.png", "cat/9.png", "Zebra/x.bmp"]):
        save(tmp_path / "pictures" / name, random_picture(8, 8, seed=i))
    (tmp_path / "pictures" / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "readme.png").write_text("beside the classes: not looked at")
    return tmp_path / "pictures"


def test_classes_and_files_in_the_order_of_torchvision(root):
    folder = data.ImageFolder(root, 8)
    assert folder.classes == ("Zebra", "cat", "dog")  # sorted(): capitals first
    # torchvision.datasets.folder.make_dataset: classes sorted, then sorted(os.walk), then sorted names.
    wanted = []
    for label, name in enumerate(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())):
        for place, _, files in sorted(os.walk(root / name, followlinks=True)):
            wanted += [(os.path.join(place, file), label) for file in sorted(files) if not file.endswith(".txt")]
    assert [str(path) for path in folder.paths] == [path for path, _ in wanted]
    assert [path.name for path in folder.paths] == ["x.bmp", "10.png", "9.png", "a.PNG", "b.png", "z.png"]
    assert folder.labels.tolist() == [label for _, label in wanted] == [0, 1, 1, 2, 2, 2]
    assert folder.labels.dtype == np.int64
    assert len(folder) == 6
    assert folder.shape == (3, 8, 8)


def test_order_does_not_depend_on_how_the_disk_lists_folders(root, monkeypatch):
    for name in ("dog/deeper/y.png", "dog/Deep/w.png"):
        save(root / name, random_picture(8, 8))
    listed = os.walk

    def backwards(place, **options):
        return [(where, folders, files[::-1]) for where, folders, files in reversed(list(listed(place, **options)))]

    monkeypatch.setattr(os, "walk", backwards)
    names = [path.relative_to(root).as_posix() for path in data.ImageFolder(root, 8).paths[3:]]
    assert names == ["dog/a.PNG", "dog/b.png", "dog/Deep/w.png", "dog/deep/z.png", "dog/deeper/y.png"]


def test_pixels_are_those_of_the_files(root):
    folder = data.ImageFolder(root, 8)
    got = folder.pixels(np.array([4, 0, 4]))
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    for image, seed in zip(got, (0, 5, 0), strict=True):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), random_picture(8, 8, seed=seed))


def test_pictures_are_decoded_when_asked_for(root):
    folder = data.ImageFolder(root, 8)
    folder.paths[3].write_bytes(b"not a picture any more")
    assert folder.pixels(np.array([0, 1, 2])).shape == (3, 3, 8, 8)
    with pytest.raises(ValueError, match=r"dog/a\.PNG cannot be read as a picture: it is not in a format that Pillow"):
        folder.pixels(np.array([3]))
    folder.paths[3].unlink()
    with pytest.raises(ValueError, match=r"dog/a\.PNG cannot be read as a picture: there is no such file"):
        folder.pixels(np.array([3]))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_file_is_named_by_the_loader(root, threads):
    whole = (root / "cat/10.png").read_bytes()
    (root / "cat/10.png").write_bytes(whole[: len(whole) // 2])
    loader = data.DataLoader(data.ImageFolder(root, 8), 2, num_workers=threads)
    with pytest.raises(ValueError, match=r"cat/10\.png cannot be read as a picture: .*truncated") as caught:
        list(loader)
    assert caught.value.__notes__ == ["in batch 0 of epoch 0, of the images [0, 1]"]


@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 60, 20), (60, 40, 20), (5, 7, 20), (40, 60, (30, 15)), (31, 20, (20, 20))]
)
def test_the_middle_is_scaled_and_cropped(tmp_path, height, width, size):
    """A smooth picture, where the place of every pixel tells what was cut and how it was scaled."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([3 * rows, 3 * columns, 0 * rows + 100], axis=2).astype(np.uint8)
    path = save(tmp_path / "a.png", pixels)
    h, w = (size, size) if isinstance(size, int) else size
    got = read_scaled(path, (3, h, w)).astype(float)
    assert got.shape == (3, h, w)
    scale = min(height / h, width / w)  # of the picture's pixels to one of ours
    row = (height - h * scale) / 2 + (np.arange(h) + 0.5) * scale - 0.5
    column = (width - w * scale) / 2 + (np.arange(w) + 0.5) * scale - 0.5
    inner = (slice(2, -2), slice(2, -2))  # at the border the filter sees fewer pixels
    np.testing.assert_allclose(got[0][inner], np.broadcast_to(3 * row[:, None], (h, w))[inner], atol=1.6)
    np.testing.assert_allclose(got[1][inner], np.broadcast_to(3 * column, (h, w))[inner], atol=1.6)
    np.testing.assert_array_equal(got[2], 100)


def test_every_kind_of_picture_becomes_colour_and_grey(tmp_path):
    colour, grey = random_picture(6, 6), random_picture(6, 6, 1)
    alpha = np.dstack([colour, np.repeat(np.uint8([[255] * 3 + [0] * 3]), 6, axis=0)])
    on_white = np.where(alpha[:, :, 3:] == 255, colour, 255)
    weights = np.array([299, 587, 114]) / 1000
    palette = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), mode=None).convert("P")
    palette.putpalette(colour.reshape(-1).tolist())
    pictures = {
        "rgb.png": (Image.fromarray(colour), colour),
        "rgba.png": (Image.fromarray(alpha), on_white),
        "grey.png": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "grey-alpha.png": (
            Image.merge("LA", (Image.fromarray(grey), Image.fromarray(np.ascontiguousarray(alpha[:, :, 3])))),
            np.where(alpha[:, :, 3:] == 255, grey[:, :, None], 255) * np.ones((1, 1, 3), int),
        ),
        "palette.png": (palette, colour),
        "sixteen.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.dstack([grey] * 3)),
        "one-bit.png": (Image.fromarray(grey > 99), np.dstack([(grey > 99) * 255] * 3)),
    }
    for name, (image, wanted) in pictures.items():
        image.save(tmp_path / name)
        got = read_scaled(tmp_path / name, (3, 6, 6)).transpose(1, 2, 0)
        np.testing.assert_array_equal(got, wanted, err_msg=name)
        got = read_scaled(tmp_path / name, (1, 6, 6))[0]
        np.testing.assert_allclose(got, np.asarray(wanted) @ weights, atol=1, err_msg=name)
    cmyk = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), 200, np.uint8)).convert("CMYK").save(cmyk, "JPEG", quality=95)
    (tmp_path / "cmyk.jpg").write_bytes(cmyk.getvalue())
    assert np.abs(read_scaled(tmp_path / "cmyk.jpg", (3, 6, 6)).astype(int) - 200).max() <= 3


def test_loader_and_statistics_read_folders(root):
    folder = data.ImageFolder(root, 8)
    in_memory = data.Dataset(folder.pixels(np.arange(6)), folder.labels, folder.classes)
    assert data.channel_stats(folder) == data.channel_stats(in_memory)
    part = in_memory.subset([0, 2, 4])
    assert data.channel_stats(folder, limit=3) == data.channel_stats(part)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        data.channel_stats(folder, limit=0)
    options = {"shuffle": True, "seed": 3, "transform": data.transforms.RandomCrop(8, padding=2)}
    batches = zip(
        data.DataLoader(folder, 4, num_workers=2, **options), data.DataLoader(in_memory, 4, **options), strict=True
    )
    for (x, labels), (wanted, wanted_labels) in batches:
        np.testing.assert_array_equal(x, wanted)
        np.testing.assert_array_equal(labels, wanted_labels)


def test_checksum_tells_other_files(root, tmp_path):
    before = data.ImageFolder(root, 8).checksum()
    shutil.copytree(root, tmp_path / "moved")
    assert data.ImageFolder(tmp_path / "moved", 8).checksum() == before
    (root / "dog/b.png").rename(root / "dog/c.png")
    renamed = data.ImageFolder(root, 8).checksum()
    save(root / "dog/c.png", random_picture(8, 9))
    assert len({before, renamed, data.ImageFolder(root, 8).checksum()}) == 3
    assert data.ImageFolder(root, 8).checksum(5) != data.ImageFolder(root, 8).checksum()


def test_load_folder(root, tmp_path):
    place = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(root, place / split)
    (place / "val/cat/9.png").unlink()
    assert len(data.load("folder", "train", place)) == 6
    test = data.load("folder", "test", place, image_size=8)
    assert (len(test), test.shape) == (5, (3, 8, 8))
    assert data.load("folder", "test", place).shape == (3, 224, 224)
    shutil.copytree(root, place / "test")
    assert len(data.load("folder", "test", place)) == 6  # test before val
    shutil.rmtree(place / "test/cat")
    with pytest.raises(ValueError, match=r"test: expected the subfolders of .*train, .* in one alone: \['cat'\]"):
        data.load("folder", "test", place)
    for split in ("test", "val"):
        shutil.rmtree(place / split)
    with pytest.raises(FileNotFoundError, match="data: expected a folder test or val beside train, there is none"):
        data.load("folder", "test", place)
    with pytest.raises(ValueError, match="data_dir must be given for 'folder'"):
        data.load("folder", "train")
    with pytest.raises(ValueError, match="image_size must be given for 'folder' alone, got 8 for 'sample'"):
        data.load("sample", "train", image_size=8)


def test_refused(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder with one subfolder a class, there is none"):
        data.ImageFolder(tmp_path / "nowhere", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: expected one subfolder a class, it has no subfolder"):
        data.ImageFolder(tmp_path / "empty", 8)
    (root / "ant").mkdir()
    (root / "bee").mkdir()
    with pytest.raises(FileNotFoundError, match=r"pictures \(.jpg, .*\) in every subfolder, none in ant, bee"):
        data.ImageFolder(root, 8)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        data.ImageFolder(root, 0)
    with pytest.raises(TypeError, match=r"size must be an integer, got float 8\.5"):
        data.ImageFolder(root, 8.5)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        data.ImageFolder(root, 8, channels=2)
