"""The networks as PyTorch's users write them; parameters come in the order of ours."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class Branches(nn.Module):
    """Modules side by side, their channels put together."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def alexnet(num_classes, variant):
    a, b, c, d, e = {"2012": (96, 256, 384, 384, 256), "2014": (64, 192, 384, 256, 256)}[variant]
    norm = (lambda: [nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)]) if variant == "2012" else list
    return nn.Sequential(
        nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), *norm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, 1, 2), nn.ReLU(), *norm(), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, 1, 1), nn.ReLU(), nn.Conv2d(c, d, 3, 1, 1), nn.ReLU(), nn.Conv2d(d, e, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, num_classes),
    )  # fmt: skip


def vgg(num_classes, widths, side, norm=False):
    layers, channels = [], 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        channels = width
    head = (
        nn.Linear(512 * side * side, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, num_classes),
    )
    return nn.Sequential(*layers, nn.Flatten(), *head)


def nin(num_classes):
    def block(channels, width, *options):
        return nn.Sequential(
            nn.Conv2d(channels, width, *options), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(),
            nn.Conv2d(width, width, 1), nn.ReLU(),
        )  # fmt: skip

    return nn.Sequential(
        block(3, 96, 11, 4), nn.MaxPool2d(3, 2), block(96, 256, 5, 1, 2), nn.MaxPool2d(3, 2), block(256, 384, 3, 1, 1),
        nn.MaxPool2d(3, 2), block(384, num_classes, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def googlenet(num_classes):
    def conv(*options):
        return [nn.Conv2d(*options), nn.ReLU()]

    def inception(channels, one, three, five, pooled):
        return Branches(
            nn.Sequential(*conv(channels, one, 1)),
            nn.Sequential(*conv(channels, three[0], 1), *conv(*three, 3, 1, 1)),
            nn.Sequential(*conv(channels, five[0], 1), *conv(*five, 5, 1, 2)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(channels, pooled, 1)),
        )

    def norm():
        return nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)

    return nn.Sequential(
        *conv(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1), norm(), *conv(64, 64, 1), *conv(64, 192, 3, 1, 1), norm(),
        nn.MaxPool2d(3, 2, 1), inception(192, 64, (96, 128), (16, 32), 32), inception(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool2d(3, 2, 1), inception(480, 192, (96, 208), (16, 48), 64), inception(512, 160, (112, 224), (24, 64), 64),
        inception(512, 128, (128, 256), (24, 64), 64), inception(512, 112, (144, 288), (32, 64), 64),
        inception(528, 256, (160, 320), (32, 128), 128), nn.MaxPool2d(3, 2, 1),
        inception(832, 256, (160, 320), (32, 128), 128), inception(832, 384, (192, 384), (48, 128), 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, num_classes),
    )  # fmt: skip


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def _norm_conv(*options, **named):
    convolution = nn.Conv2d(*options, bias=False, **named)
    return [convolution, nn.BatchNorm2d(convolution.out_channels)]


def _shortcut(channels, wide, stride):
    if stride == 1 and channels == wide:
        return nn.Identity()
    return nn.Sequential(*_norm_conv(channels, wide, 1, stride))


def basic(channels, width, stride):
    body = [*_norm_conv(channels, width, 3, stride, 1), nn.ReLU(), *_norm_conv(width, width, 3, 1, 1)]
    return Residual(nn.Sequential(*body), _shortcut(channels, width, stride))


def bottleneck(channels, width, stride, groups=1, group_width=64):
    inner, wide = width * group_width // 64 * groups, 4 * width
    body = [
        *_norm_conv(channels, inner, 1), nn.ReLU(), *_norm_conv(inner, inner, 3, stride, 1, groups=groups), nn.ReLU(),
        *_norm_conv(inner, wide, 1),
    ]  # fmt: skip
    return Residual(nn.Sequential(*body), _shortcut(channels, wide, stride))


class _Thin(nn.Module):
    """Every second pixel, and zeros for new channels."""

    def __init__(self, stride, new):
        super().__init__()
        self.stride, self.new = stride, new

    def forward(self, x):
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


def plain(channels, width, stride):
    block = basic(channels, width, stride)
    block.shortcut = _Thin(stride, width - channels)
    return block


def _stages(block, counts, width, expansion):
    stages, channels = [], width
    for stage, count in enumerate(counts):
        for i in range(count):
            stages.append(block(channels, width << stage, 2 if stage and i == 0 else 1))
            channels = expansion * width << stage
    return stages


def resnet(num_classes, block, counts, expansion):
    return nn.Sequential(
        *_norm_conv(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *_stages(block, counts, 64, expansion),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512 * expansion, num_classes),
    )  # fmt: skip


def mlp(*sizes):
    layers = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_resnet(num_classes, count):
    return nn.Sequential(
        *_norm_conv(3, 16, 3, 1, 1), nn.ReLU(), *_stages(plain, (count,) * 3, 16, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


def densenet(num_classes, counts=(6, 12, 24, 16), growth=32):
    channels = 2 * growth
    layers = [*_norm_conv(3, channels, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for block, count in enumerate(counts):
        if block:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2, 2))
            channels //= 2
        for _ in range(count):
            new = nn.Sequential(
                nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
                nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )  # fmt: skip
            layers.append(Branches(nn.Identity(), new))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, num_classes))


class UNet(nn.Module):
    def __init__(self, num_classes, width, depth):
        super().__init__()

        def double(channels, wide):
            first = [*_norm_conv(channels, wide, 3, 1, 1), nn.ReLU()]
            return nn.Sequential(*first, *_norm_conv(wide, wide, 3, 1, 1), nn.ReLU())

        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList([double(a, b) for a, b in zip([3, *widths], widths, strict=False)])
        back = list(reversed(widths[:-1]))
        self.widen = nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, 2) for w in back])
        self.up = nn.ModuleList([double(2 * w, w) for w in back])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        kept = [self.down[0](x)]
        for convolve in self.down[1:]:
            kept.append(convolve(nn.functional.max_pool2d(kept[-1], 2)))
        y = kept.pop()
        for widen, convolve in zip(self.widen, self.up, strict=True):
            y = convolve(torch.cat([kept.pop(), widen(y)], 1))
        return self.head(y)
