"""Draw overview.png, the picture of the README: what a kernel does forward, backward, and in a trained LeNet.

Run ``python notebooks/make_overview.py [PNG]``; it trains a LeNet for three epochs and needs ``convkern[train]``.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

import convkern as ck
from convkern.files import write_atomic

WIDTH, HEIGHT = 1600, 700  # pixels
BLUE, GREY = "#1f4e79", "#555555"
SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
EPOCHS, LR = 3, 0.005


def photograph() -> np.ndarray:
    """Grace Hopper (US Navy, 1984, public domain; comes with matplotlib) in grey, 0 to 255, (256, 256)."""
    colour = plt.imread(get_sample_data("grace_hopper.jpg", asfileobj=False))[:512, :512]
    grey = colour @ [0.299, 0.587, 0.114]  # (H, W)
    return ck.avg_pool2d(grey[None], 2)[0]


def trained_lenet(train: Any, mean: Any, std: Any) -> Any:
    """A LeNet-5 after a few epochs, its learning rate falling to 0 along half a cosine."""
    net = ck.models.lenet5(seed=0)
    optimizer = ck.optim.Adam(net.parameters(), lr=LR)
    loader = ck.data.DataLoader(train, batch_size=32, shuffle=True, seed=0, mean=mean, std=std)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for step, (x, labels) in enumerate(loader):
            done = (epoch + step / len(loader)) / EPOCHS
            optimizer.param_groups[0]["lr"] = LR * (1 + np.cos(np.pi * done)) / 2
            optimizer.zero_grad()
            ck.nn.functional.cross_entropy(net(x), labels).backward()
            optimizer.step()
    return net


def place(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Axes without a frame, given in pixels from the upper left corner."""
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.axis("off")
    return axes


def write(figure: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Text with its middle at a pixel."""
    options = {"ha": "center", "va": "center", "fontsize": 15, "color": GREY} | options
    figure.text(x / WIDTH, 1 - y / HEIGHT, text, **options)


def head(figure: Any, x: float, title: str, code: str) -> None:
    """Title of a column and the call that it shows."""
    write(figure, x, 32, title, fontsize=18, color=BLUE, weight="bold")
    write(figure, x, 66, code, family="monospace", fontsize=14)


def arrow(figure: Any, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    """An arrow from pixel to pixel."""
    ends = [(x / WIDTH, 1 - y / HEIGHT) for x, y in (start, end)]
    figure.add_artist(
        FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=26, lw=2.5, color=BLUE, shrinkA=0, shrinkB=0,
                        connectionstyle=f"arc3,rad={bend}", transform=figure.transFigure)
    )  # fmt: skip


def draw_kernel(axes: Any, numbers: np.ndarray, colours: np.ndarray, fontsize: float) -> None:
    """Squares with their numbers; colours (R, S, 3 or 4)."""
    rows, columns = numbers.shape
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    for (i, j), number in np.ndenumerate(numbers):
        colour = colours[i, j]
        ink = "black" if colour[:3] @ [0.3, 0.6, 0.1] > 0.5 else "white"
        axes.add_patch(Rectangle((j, i), 1, 1, fc=colour, ec="white", lw=2))
        axes.text(j + 0.5, i + 0.53, f"{number}", ha="center", va="center", color=ink, fontsize=fontsize, weight="bold")


def draw_edges(figure: Any) -> None:
    """Left: photograph, kernel, edges."""
    photo = photograph()[:240, 8:248]  # one pixel of the photograph is one of the picture
    edges = ck.conv2d(photo[None], SOBEL[None, None].astype(float), padding=1)[0]
    head(figure, 175, "A kernel finds edges", "y = conv2d(x, w)")
    place(figure, 55, 94, 240, 240).imshow(photo, cmap="gray", vmin=0, vmax=255)
    few = plt.get_cmap("RdBu_r", 25)
    place(figure, 55, 446, 240, 240).imshow(edges, cmap=few, vmin=-500, vmax=500, interpolation="nearest")
    colours = plt.get_cmap("RdBu_r")(SOBEL / 5 + 0.5)
    draw_kernel(place(figure, 165, 340, 100, 100), SOBEL, colours, 14)
    arrow(figure, (110, 344), (110, 438))


def draw_turn(figure: Any) -> None:
    """Middle: the kernel and how the gradient meets it."""
    taps = np.arange(1, 10).reshape(3, 3)
    colours = plt.get_cmap("turbo")(np.linspace(0.1, 0.9, 9)).reshape(3, 3, 4)
    x = 528
    head(figure, x, "Backward it turns by 180°", "conv2d_input_grad(gy, w, …)")
    draw_kernel(place(figure, x - 105, 110, 210, 210), taps, colours, 22)
    draw_kernel(place(figure, x - 105, 456, 210, 210), taps[::-1, ::-1], colours[::-1, ::-1], 22)
    write(figure, x, 340, "w, as the windows use it")
    write(figure, x, 684, "w, as one pixel meets it")
    arrow(figure, (x + 30, 364), (x + 30, 446), bend=-0.75)
    write(figure, x - 25, 404, "180°", fontsize=21, color=BLUE, weight="bold")


def draw_lenet(figure: Any) -> None:
    """Right: an image on its way through the convolutions of a trained LeNet."""
    train, test = ck.data.load("sample", "train"), ck.data.load("sample", "test")
    mean, std = ck.data.channel_stats(train)
    net = trained_lenet(train, mean, std)
    conv1, conv2 = (layer for layer in net.modules() if isinstance(layer, ck.nn.Conv2d))
    index = int(np.flatnonzero(test.labels == test.classes.index("Ankle boot"))[1])
    one = test.subset(slice(index, index + 1))
    x, _ = next(iter(ck.data.DataLoader(one, mean=mean, std=std)))
    with ck.no_grad():
        maps1 = ck.nn.functional.relu(conv1(x))  # (1, 6, 28, 28)
        maps2 = ck.nn.functional.relu(conv2(ck.avg_pool2d(maps1, 2)))  # (1, 16, 10, 10)
        scores = ck.nn.functional.softmax(net(x), 1).numpy()[0]
    likely = int(scores.argmax())

    left = 740
    head(figure, 1160, "LeNet-5 learns kernels of its own", "models.lenet5()")
    place(figure, left, 96, 170, 170).imshow(one.images[0, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    write(figure, left + 195, 125, "one picture of Fashion-MNIST", ha="left")
    write(figure, left + 195, 160, f"taken for: {test.classes[likely]}", ha="left", color=BLUE, weight="bold")
    write(figure, left + 195, 195, f"after {EPOCHS} epochs on {len(train):,} pictures", ha="left")
    arrow(figure, (left + 85, 272), (left + 85, 306))
    write(figure, left + 120, 289, "after the first convolution: 6 maps of 28×28", ha="left")
    for k, feature_map in enumerate(maps1.numpy()[0]):
        axes = place(figure, left + 140 * k, 310, 132, 132)
        axes.imshow(feature_map, cmap="magma", vmin=0, interpolation="nearest")
    arrow(figure, (left + 85, 446), (left + 85, 478))
    write(figure, left + 120, 461, "after the second: 16 maps of 10×10", ha="left")
    for k, feature_map in enumerate(maps2.numpy()[0]):
        axes = place(figure, left + 105 * (k % 8), 482 + 104 * (k // 8), 97, 97)
        axes.imshow(feature_map, cmap="magma", vmin=0, interpolation="nearest")


def main(path: Path) -> None:
    """Draw the picture into a PNG file."""
    with plt.style.context("default"):  # the same picture whatever the user's settings are
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
        FigureCanvasAgg(figure)
        draw_edges(figure)
        draw_turn(figure)
        draw_lenet(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    write_atomic(path, buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("overview.png"))
