"""A training step recorded into CUDA graphs and replayed: its launches cost Python and the driver their time once.

A graph keeps the launches with the addresses and numbers that they were recorded with. So a batch is copied to where the
first one was, and what changes from step to step is in the device's memory: the optimizer's numbers (learning rate, Adam's
corrections) are copied there, and noise is drawn there, before each replay. What cannot be so is refused in recording.

    with capture.own_stream():
        ...                                          # a step as ever: it makes the optimizer's state, and loads kernels
        step = capture.CapturedStep(model, forward, optimizer, images, labels)
        for images, labels in loader:
            loss = step.forward(images, labels)
            step.backward()
            step.update()

With ``scaler=amp.GradScaler()`` the backward pass begins at the scaled loss, divides the gradients by the scale and finds out
whether one overflowed; ``update`` then makes the step or skips it, and ``scaler.update()`` follows as in eager steps. All of
this is decided on the device: the host reads nothing back.
Averages of the weights (``optim.swa_utils``) are taken after ``update``, outside the graphs.

Untried on a GPU so far: there was none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from . import device, random
from .amp import GradScaler
from .blas import own_products
from .kernels.cuda import launch
from .optim.optimizer import Optimizer, update_kernels
from .scale import Division
from .tensor import Tensor


@contextmanager
def own_stream() -> Iterator[None]:
    """Inside the block this thread's work goes to a stream that can be captured, and matrix products to our own kernels.

    CuPy captures neither on the default stream nor cuBLAS; eager steps in the block so have the same bits as captured ones.
    """
    import cupy

    cupy.cuda.Device().synchronize()  # what other streams do comes before
    with cupy.cuda.Stream(non_blocking=True) as stream, own_products():
        try:
            yield
        finally:
            stream.synchronize()


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays, or None, begin at the same address."""
    return a is b or (device.is_cupy(a) and device.is_cupy(b) and a.data.ptr == b.data.ptr)


def _room(array: Any) -> Any:
    """A new array of this one's shape, dtype and layout."""
    if device.is_channels_last(array):
        return device.from_last(_room(device.to_last(array)))
    return device.empty(array.shape, array.dtype)


class CapturedStep:
    """A training step over batches of one shape, in three graphs: the forward pass, the backward pass and the update.

    Between them the host may look at results and change them in place, as eager code does.

    Parameters
    ----------
    model : convkern.nn.Module
    forward : callable
        ``forward(images, labels)`` gives the loss, a Tensor, or a tuple that begins with it.
    optimizer : convkern.optim.Optimizer
        Of the model's parameters; it has made a step, which made its state.
    images, labels : cupy.ndarray
        A batch, for its shapes, dtypes and layout alone.
    scaler : convkern.amp.GradScaler, optional
        Scales the loss that ``forward`` gives; ``forward`` itself does not.

    Raises
    ------
    TypeError
        If the scaler is none.
    RuntimeError
        If the step cannot be captured; the message names what stands against it.

    Notes
    -----
    Nothing is computed while the step is recorded. The gradients and what ``forward`` gave are overwritten by each replay.
    """

    def __init__(
        self, model: Any, forward: Callable[[Any, Any], Any], optimizer: Optimizer, images: Any, labels: Any,
        scaler: GradScaler | None = None,
    ) -> None:  # fmt: skip
        cupy = sys.modules["cupy"]
        if scaler is not None and not isinstance(scaler, GradScaler):
            raise TypeError(f"scaler must be a GradScaler or None, got {type(scaler).__name__}")
        if type(optimizer).step is not Optimizer.step:
            raise RuntimeError(f"{type(optimizer).__name__} cannot be captured: it has a step() of its own")
        self._model, self._optimizer = model, optimizer
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._stream, self._pool = cupy.cuda.get_current_stream(), cupy.cuda.MemoryPool()
        self._draws: list[random.Draw] = []
        with cupy.cuda.using_allocator(self._pool.malloc):
            self._inputs = [_room(array) for array in (images, labels)]
        counters = [(b, b.copy()) for b in model.buffers() if device.of(b) == "cpu"]  # such as batches met so far
        optimizer.zero_grad()
        if self._scaler is not None and not optimizer.may_skip():
            raise RuntimeError(
                f"{type(optimizer).__name__} cannot be captured with a scaler: its kernels look at no flag"
            )
        self._forward, self.result = self._recorded(lambda: forward(*self._inputs))
        loss = self.result[0] if isinstance(self.result, tuple) else self.result
        self._backward, _ = self._recorded(lambda: self._differentiated(loss))
        self._division = self._recorded_division()
        self._update = self._recorded_update()
        self._counts = [(buffer, buffer - before) for buffer, before in counters if (buffer != before).any()]
        for buffer, before in counters:
            buffer[...] = before
        self._gradients = [(p, p.grad) for p in model.parameters()]
        self._places = self._arrays()

    def _recorded(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        """The graph of what a function launches, and what it gives; its arrays' memory is the graph's for good."""
        cupy = sys.modules["cupy"]
        self._stream.begin_capture()
        try:
            with cupy.cuda.using_allocator(self._pool.malloc), device.captured(), random.drawn_into(self._draws):
                result = function()
        except Exception as error:
            with suppress(Exception):  # CUDA gives the broken capture back as another error
                self._stream.end_capture()
            raise RuntimeError(f"this training step cannot be captured into a CUDA graph: {error}") from error
        return self._stream.end_capture(), result

    def _differentiated(self, loss: Any) -> None:
        if self._scaler is None:
            loss.backward()
        else:
            loss.backward(Tensor(self._scaler.on_device().factor))

    def _recorded_division(self) -> Any:
        """The graph that divides gradients by the scale and finds out whether one overflowed; None without a scaler."""
        if self._scaler is None:
            return None
        cupy, scale = sys.modules["cupy"], self._scaler.on_device()
        trained = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        with cupy.cuda.using_allocator(self._pool.malloc):
            self._divided = Division([p.grad.data for p in trained])
        scale.divide(self._divided)  # loads its kernel, which a capture is no place for
        graph, _ = self._recorded(lambda: scale.divide(self._divided))
        for p, gradient in zip(trained, self._divided.divided, strict=True):
            p.grad = Tensor(gradient)
        return graph

    def _recorded_update(self) -> Any:
        optimizer, cupy = self._optimizer, sys.modules["cupy"]
        if any(device.of(p.data) != "cuda" for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError("only steps whose parameters all live on a GPU can be captured")
        before = {position: dict(values) for position, values in optimizer.state.items()}
        work = optimizer.prepared(self._scaler is not None)
        new = {n: set(values) - set(before.get(n, ())) - {"step"} for n, values in optimizer.state.items()}
        if self._scaler is None or any(new.values()):  # otherwise the device has the count, where it is from now on
            optimizer.state = before
        if any(new.values()):
            raise RuntimeError("the optimizer's state is not there yet: make a step before the captured one")
        ((rows, numbers, written),) = work
        kernels: Any = update_kernels(written[0][1])
        for number, ((p, w), row) in enumerate(zip(written, rows, strict=True)):
            if w is not p.data or p.grad is None or row[1] is not p.grad.data:
                raise RuntimeError(f"parameter {number} or its gradient is not contiguous, which cannot be captured")
        with cupy.cuda.using_allocator(self._pool.malloc):
            self._rows, self._numbers = kernels.Uploaded(rows), cupy.asarray(numbers)
        if self._scaler is None:
            return self._recorded(lambda: optimizer.kernel(self._rows, self._numbers))[0]
        found = self._divided.found
        found.fill(1)
        optimizer.kernel_unless(self._rows, self._numbers, found)  # loads its kernels, and changes nothing
        return self._recorded(lambda: optimizer.kernel_unless(self._rows, self._numbers, found))[0]

    def _arrays(self) -> list[Any]:
        """What the graphs know the addresses of and do not own."""
        return [*(p.data for p in self._model.parameters()), *self._model.buffers()]

    def _replay(self, graph: Any, part: str) -> None:
        """Launch a graph on the current stream; with CONVKERN_DEBUG=1 wait for it, so that its errors are this call's."""
        graph.launch()
        if launch.DEBUG:
            cuda = sys.modules["cupy"].cuda
            try:
                cuda.get_current_stream().synchronize()
            except cuda.runtime.CUDARuntimeError as error:
                raise RuntimeError(f"the captured {part} failed: {error}") from error

    def forward(self, images: Any, labels: Any) -> Any:
        """Copy a batch in, draw the step's noise, and replay the forward pass.

        Returns
        -------
        What ``forward`` gave when it was recorded, with new values.

        Raises
        ------
        ValueError
            If the batch has another shape or dtype than that of the capture.
        RuntimeError
            If parameters or buffers have moved since.
        """
        for name, mine, given in zip(("images", "labels"), self._inputs, (images, labels), strict=True):
            if given.shape != mine.shape or given.dtype != mine.dtype:
                raise ValueError(
                    f"{name} must be of shape {mine.shape} and {mine.dtype}, as captured, got {given.shape}, {given.dtype}"
                )
        if not all(map(_same, self._arrays(), self._places)):
            raise RuntimeError("the model's parameters or buffers have moved since the step was captured")
        for mine, given in zip(self._inputs, (images, labels), strict=True):
            mine[...] = given
        for draw in self._draws:
            draw.again()
        for buffer, count in self._counts:
            buffer[...] += count
        self._replay(self._forward, "forward pass")
        return self.result

    def backward(self) -> None:
        """Replay the backward pass: every parameter's gradient is that of the batch, divided by a scaler's scale again."""
        self._replay(self._backward, "backward pass")
        if self._scaler is not None:
            self._replay(self._division, "division by the scale")
        for p, gradient in self._gradients:
            p.grad = gradient

    def update(self) -> None:
        """Copy the numbers of the optimizer's next step to the device, and replay its kernel.

        With a scaler nothing happens where a gradient overflowed: neither parameters nor the optimizer's state change, nor do
        Adam's corrections count the step. The host does not wait to know.

        Raises
        ------
        RuntimeError
            If gradients or the optimizer's state have moved, or :meth:`GradScaler.update` was not called since the last
            step; nothing is changed then.
        """
        if self._scaler is not None:
            self._scaler.check_free(self._optimizer)
        self._make_step()
        if self._scaler is not None:
            self._scaler.stepped(self._optimizer, self._divided.found)

    def _make_step(self) -> None:
        before = {position: dict(values) for position, values in self._optimizer.state.items()}
        ((rows, numbers, written),) = self._optimizer.prepared(self._scaler is not None)
        same = len(rows) == len(self._rows) and all(map(_same, chain(*rows), chain(*self._rows)))
        if not same:
            self._optimizer.state = before
            raise RuntimeError("gradients or the optimizer's state have moved since the step was captured")
        self._numbers.set(numbers)
        self._replay(self._update, "update")
        for p, _ in written:
            p.mark_changed()
