"""Several GPUs: work follows the arrays, whichever device is current."""

from __future__ import annotations

import numpy as np
import pytest

import convkern as ck
from convkern import nn, optim, random

from . import fake_cupy
from .gpu import needs_compiler

pytestmark = needs_compiler


def network() -> nn.Module:
    random.seed_noise(3)
    nn.init.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(12, 3),
    )  # fmt: skip


def trained(cupy, number: int) -> tuple[nn.Module, list[np.ndarray], object]:
    """A network on a GPU after two steps while GPU 0 is the current one before each of them."""
    with cupy.cuda.Device(number):
        model = network().to("cuda")
        images = cupy.asarray(np.random.default_rng(0).standard_normal((4, 2, 4, 4), dtype=np.float32))
        labels = cupy.asarray(np.array([0, 2, 1, 1]))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    model.train()
    model[4].p = 0.0  # its mask is drawn all the same, where the images are
    for _ in range(2):
        optimizer.zero_grad()
        cupy.cuda.Device(0).use()
        loss = nn.functional.cross_entropy(model(images), labels)
        cupy.cuda.Device(0).use()
        loss.backward()
        cupy.cuda.Device(0).use()
        optimizer.step()
    return model, [p.data.get() for p in model.parameters()], loss


def test_a_step_runs_where_the_arrays_are():
    with fake_cupy.installed() as cupy:
        _, want, _ = trained(cupy, 0)
        model, got, loss = trained(cupy, 1)
        assert loss.data.data.device_id == 1
        for p in model.parameters():
            assert p.data.data.device_id == p.grad.data.data.device_id == 1
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_arrays_on_two_gpus_are_refused_by_name():
    with fake_cupy.installed() as cupy:
        x = cupy.asarray(np.ones((1, 1, 4, 4), np.float32))
        with cupy.cuda.Device(1):
            w = cupy.asarray(np.ones((1, 1, 3, 3), np.float32))
        with pytest.raises(ValueError, match="conv2d: arrays must live on one GPU, got x on GPU 0, w on GPU 1"):
            ck.conv2d(x, w)
