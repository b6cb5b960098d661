"""What all optimizers share: parameter groups, state and its saving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..device import cpu_copy, is_cupy, kernel_array, library, memory_error, moved, of, one, refuse_capture
from ..tensor import Tensor

Row = tuple[np.ndarray | None, ...]
Work = tuple[list[Row], np.ndarray, list[tuple[Tensor, np.ndarray]]]  # rows, their numbers, parameters and their arrays
# What schedules keep in a group beside the optimizer's own options.
SCHEDULE_OPTIONS = {"initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum"}


def check_range(name: str, value: Any, low: float, high: float = np.inf, open_high: bool = False) -> float:
    """A finite number in the range; ``name`` is named in the message."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    below = value < high if open_high else value <= high
    if not (np.isfinite(value) and low <= value and below):
        upper = "" if high == np.inf else f" and {'below' if open_high else 'at most'} {high:g}"
        raise ValueError(f"{name} must be at least {low:g}{upper}, got {value!r}")
    return float(value)


def state_array(state: dict[str, Any], key: str, like: np.ndarray, first: float = 0.0) -> np.ndarray:
    """An array of a parameter's state as kernels take it, filled with ``first`` at first."""
    found = state.get(key)
    if found is None:
        found = state[key] = library(like).full(like.shape, first, like.dtype)
    elif found.dtype != like.dtype or of(found) != of(like) or kernel_array(found) is not found:
        found = state[key] = moved(np.array(moved(found, "cpu"), like.dtype, order="C"), of(like))
    return found


def counter(state: dict[str, Any], like: np.ndarray, made: int = 0) -> np.ndarray:
    """Where a GPU counts a parameter's steps, a float32 without axes; ``made`` so far if the state does not tell."""
    found = state.get("step", made)
    if not is_cupy(found):
        found = state["step"] = library(like).full((), found, np.float32)
    return found


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state on the CPU; steps that a GPU counted are an int."""
    copied = {k: cpu_copy(v) if is_cupy(v) else copy.deepcopy(v) for k, v in values.items()}
    if is_cupy(values.get("step")):
        copied["step"] = int(copied["step"])
    return copied


def update_kernels(array: np.ndarray) -> Any:
    """The module with the kernels for arrays on this one's device."""
    if is_cupy(array):
        from ..kernels.update import cuda_chunks

        return cuda_chunks
    from ..kernels.update import cpu_chunks

    return cpu_chunks


class Optimizer:
    """Base of all optimizers: a subclass checks its options and says what its kernel needs to know of each parameter.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        The parameters; dicts are groups with ``"params"`` and options of their own.
    defaults : dict
        Options of groups that do not set them.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        name = type(self).__name__
        if isinstance(params, Tensor):
            raise TypeError(f"{name}: params must be an iterable of Tensors or of dicts, got a Tensor")
        groups = list(params)
        if not groups:
            raise ValueError(f"{name}: params must not be empty")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, dict[str, Any]] = {}  # by the parameter's position over all groups
        for given in groups:
            self.add_param_group(given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters, with options of their own.

        Parameters
        ----------
        param_group : dict
            ``"params"``, and the options that differ from the optimizer's.
        """
        name = type(self).__name__
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"{name}: a parameter group must be a dict with 'params', got {param_group!r}")
        unknown = set(param_group) - {"params", *self.defaults} - SCHEDULE_OPTIONS
        if unknown:
            raise ValueError(f"{name}: a parameter group has unknown options {sorted(unknown)}")
        seen = {id(p) for group in self.param_groups for p in group["params"]}
        given = param_group["params"]
        members = [given] if isinstance(given, Tensor) else list(given)
        for p in members:
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}: params must be Tensors, got {type(p).__name__}")
            if p.grad_fn is not None:
                raise ValueError(f"{name}: params must be leaves, got the result of {p.grad_fn.name}")
            if id(p) in seen:
                raise ValueError(f"{name}: params holds the same Tensor twice, shape {p.shape}")
            seen.add(id(p))
        group = {**self.defaults, **param_group, "params": members}
        self.check(group)
        self.param_groups.append(group)

    def check(self, group: dict[str, Any]) -> None:
        """Raise if an option of a group is out of range."""
        raise NotImplementedError

    def kernel(self, rows: list[Row], numbers: np.ndarray) -> None:
        """Update all rows (parameter, gradient, state arrays…) of one dtype in place."""
        raise NotImplementedError

    def row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        """Bring the state of parameter w to the next step; give its arrays and the numbers that the kernel takes."""
        raise NotImplementedError

    def kernel_unless(self, rows: list[Row], numbers: Any, found: Any) -> None:
        """:meth:`kernel` on a GPU with rows of :meth:`counted_row`; nothing where found[0] is not 0."""
        raise NotImplementedError

    def counted_row(self, w: np.ndarray, state: dict[str, Any], group: dict[str, Any]) -> tuple[Row, tuple[float, ...]]:
        """What :meth:`row` gives, for steps that a GPU counts: the state stays, and no number depends on the step."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Called first; computes the gradients and gives the loss.

        Returns
        -------
        What the closure gave, or None.
        """
        refuse_capture(
            f"{type(self).__name__}.step", "its numbers change from step to step, and replays would keep the first"
        )
        loss = None if closure is None else closure()
        self._step(None)
        return loss

    def step_unless(self, found: Any) -> None:
        """:meth:`step` where found holds 0, float32 (1,) on the parameters' GPU; otherwise nothing. The host does not wait.

        Only where :meth:`may_skip` says so.
        """
        refuse_capture(f"{type(self).__name__}.step_unless", "its rate changes from step to step")
        self._step(found)

    def may_skip(self) -> bool:
        """Whether :meth:`step_unless` makes the steps of :meth:`step`: all on a GPU, by kernels that look at a flag."""

        def owner(name: str) -> type:
            return next(kind for kind in type(self).__mro__ if name in vars(kind))

        pairs = (("kernel", "kernel_unless"), ("row", "counted_row"))
        whole = owner("step") is Optimizer and all(owner(a) is owner(b) for a, b in pairs)
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        return whole and all(of(p.data) == "cuda" for p in trained)

    def _step(self, found: Any) -> None:
        before = {position: dict(values) for position, values in self.state.items()}
        changed = False
        try:
            for rows, numbers, written in self.prepared(found is not None):  # GPUs come first: there memory may run out
                there = moved(numbers, of(rows[0][0]))
                if found is None:
                    self.kernel(rows, there)
                else:
                    self.kernel_unless(rows, there, found)
                changed = True
                for p, w in written:
                    if w is not p.data:
                        p.data[...] = w
                    p.mark_changed()
        except BaseException as error:
            if not changed:
                self.state = before
            told = memory_error(error) if isinstance(error, MemoryError) else error
            if told is error:
                raise
            raise told from error

    def prepared(self, counted: bool = False) -> list[Work]:
        """Bring the state to the next step, and give what the kernels take: :meth:`step` without the kernels.

        ``counted`` for :meth:`step_unless`: the kernels themselves bring the state on.
        """
        found: dict[
            tuple[str, np.dtype], tuple[list[Row], list[tuple[float, ...]], list[tuple[Tensor, np.ndarray]]]
        ] = {}
        position = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    w = kernel_array(p.data)
                    if of(p.grad.data) != of(w):
                        one(type(self).__name__, ("a parameter", "its gradient"), (w, p.grad.data))
                    if is_cupy(w) and w.dtype != np.float32:
                        raise NotImplementedError(
                            f"{type(self).__name__}: parameters on a GPU must be float32, got {w.dtype}"
                        )
                    row = self.counted_row if counted else self.row
                    arrays, numbers = row(w, self.state.setdefault(position, {}), group)
                    rows, all_numbers, written = found.setdefault((of(w), w.dtype), ([], [], []))
                    rows.append((w, kernel_array(p.grad.data), *arrays))
                    all_numbers.append(numbers)
                    written.append((p, w))  # w is a copy where p has another order of memory than kernels take
                position += 1
        groups = sorted(found.items(), key=lambda item: item[0][0] != "cuda")
        return [(rows, np.array(numbers, dtype), written) for (_, dtype), (rows, numbers, written) in groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad = Tensor(library(p.grad.data).zeros_like(p.grad.data))

    def state_dict(self) -> dict[str, Any]:
        """Copies of all options and of each parameter's state, with parameters as numbers; arrays are NumPy's."""
        groups, position = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            options = {k: v for k, v in group.items() if k != "params"}
            groups.append({**options, "params": list(range(position, position + count))})
            position += count
        state = {i: _copied(values) for i, values in self.state.items()}
        state = {i: values for i, values in state.items() if values.get("step") != 0}  # all of whose steps were skipped
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up options and state again.

        Raises
        ------
        ValueError
            If the groups, the options or the shapes of the state do not fit; nothing is changed then.
        """
        name = type(self).__name__
        missing = {"state", "param_groups"} - set(state_dict)
        if missing:
            raise ValueError(f"{name}: the state lacks {', '.join(sorted(missing))}, it has {sorted(state_dict)}")
        groups = state_dict["param_groups"]
        mine = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in groups]
        if mine != theirs:
            raise ValueError(f"{name}: the state has parameter groups of {theirs} parameters, expected {mine}")
        loaded = []
        for group, given in zip(self.param_groups, groups, strict=True):
            if set(group) - SCHEDULE_OPTIONS != set(given) - SCHEDULE_OPTIONS:
                raise ValueError(f"{name}: the state has options {sorted(given)}, expected {sorted(group)}")
            loaded.append({**group, **given, "params": group["params"]})
            self.check(loaded[-1])
        flat = [p for group in self.param_groups for p in group["params"]]
        state = {int(i): _copied(values) for i, values in state_dict["state"].items()}
        for i, values in state.items():
            if not 0 <= i < len(flat):
                raise ValueError(f"{name}: the state is for parameter {i}, there are {len(flat)}")
            for key, value in values.items():
                if isinstance(value, np.ndarray) and value.ndim and value.shape != flat[i].shape:
                    raise ValueError(
                        f"{name}: {key} of parameter {i} has shape {value.shape}, expected {flat[i].shape}"
                    )
        self.param_groups, self.state = loaded, state
