"""Twenty training steps here and in PyTorch, on the same data and from the same weights, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import convkern as ck
from convkern import nn, optim

STEPS = 20
RELATIVE = 1e-8


def assert_near(got: Any, want: Any, what: str) -> None:
    """Within 1e-8 of the array's largest magnitude."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, what
    scale = np.abs(want).max(initial=0.0)
    np.testing.assert_allclose(got, want, rtol=RELATIVE, atol=RELATIVE * scale, err_msg=what)


def assert_same_state(mine: nn.Module, theirs: Any, what: str) -> None:
    state, other = mine.state_dict(), theirs.state_dict()
    assert sorted(state) == sorted(other)
    for name, value in other.items():
        assert_near(state[name], value.numpy(), f"{what}: {name}")


def train_both(
    mine: nn.Module,
    theirs: Any,
    batch: Callable[[int], tuple[Any, Any]],
    our_loss: Callable[[Any, Any], Any],
    their_loss: Callable[[Any, Any], Any],
    lr: float = 0.05,
    before: Callable[[int], None] = lambda step: None,
) -> None:
    """Train both by plain gradient descent, comparing result, loss, input gradient and state at every step."""
    import torch

    mine.to(np.float64)
    theirs.double()
    if theirs.state_dict():
        mine.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    trained = list(mine.parameters())
    ours = optim.SGD(trained, lr=lr) if trained else None
    other = torch.optim.SGD(theirs.parameters(), lr=lr) if trained else None
    start = [p.data.copy() for p in trained]
    for step in range(STEPS):
        before(step)
        x, target = batch(step)
        a, b = ck.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = mine(a), theirs(b)
        assert_near(y.data, z.detach().numpy(), f"result at step {step}")
        loss, their = our_loss(y, target), their_loss(z, torch.tensor(target))
        assert_near(loss.data, their.detach().numpy(), f"loss at step {step}")
        mine.zero_grad()
        theirs.zero_grad()
        loss.sum().backward()
        their.sum().backward()
        assert_near(a.grad.data, b.grad.numpy(), f"gradient at step {step}")
        if ours is not None:
            ours.step()
            other.step()
        assert_same_state(mine, theirs, f"step {step}")
    assert all((p.data != was).any() for p, was in zip(trained, start, strict=True))
