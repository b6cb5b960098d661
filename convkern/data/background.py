"""Making batches ahead of time on threads, in order, and counting how long their user waits."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass
class Waiting:
    """How long the user of an iteration waited for it.

    Parameters
    ----------
    waited : float
        Seconds inside ``next``.
    seconds : float
        From the first ``next`` to the end of the latest.
    """

    waited: float = 0.0
    seconds: float = 0.0

    @property
    def idle_share(self) -> float:
        """Share of the time spent waiting, 0 to 1; NaN before the first ``next``."""
        return self.waited / self.seconds if self.seconds > 0 else float("nan")


class Ahead(Generic[Task, Made], Iterator[Made]):
    """What a function makes of each task, in the order of the tasks.

    With threads the next results are made while the user works on this one. It ends its threads at the end of the tasks,
    when a task fails, when the user is interrupted while waiting, on `close`, and when nobody holds it any more, as after
    ``break``.

    Parameters
    ----------
    make : callable
        Of a task; with threads it must not depend on what others make meanwhile.
    tasks : sequence
    threads : int
        0 makes each result when it is asked for.
    ahead : int
        Results under way or waiting at most, at least 1.
    waiting : Waiting
        Counts the time spent inside ``next``.
    """

    def __init__(
        self, make: Callable[[Task], Made], tasks: Sequence[Task], threads: int, ahead: int, waiting: Waiting
    ) -> None:
        self._make = make
        self._tasks = iter(tasks)
        self._pending: collections.deque[Future[Made]] = collections.deque()
        self._waiting = waiting
        self._began = 0.0
        self._executor: ThreadPoolExecutor | None = None
        if threads:
            self._executor = ThreadPoolExecutor(threads, thread_name_prefix="convkern-data")
            for _ in range(ahead):
                self._submit()

    def __iter__(self) -> Ahead[Task, Made]:
        return self

    def __next__(self) -> Made:
        asked = time.perf_counter()
        self._began = self._began or asked
        try:
            return self._next()
        except BaseException:  # also StopIteration and KeyboardInterrupt: no thread outlives the iteration
            self.close()
            raise
        finally:
            now = time.perf_counter()
            self._waiting.waited += now - asked
            self._waiting.seconds = now - self._began

    def _next(self) -> Made:
        if self._executor is None:
            return self._make(next(self._tasks))
        if not self._pending:
            raise StopIteration
        made = self._pending.popleft().result()
        self._submit()
        return made

    def _submit(self) -> None:
        """Have a thread begin the next task, if there is one."""
        assert self._executor is not None
        for task in self._tasks:
            self._pending.append(self._executor.submit(self._make, task))
            return

    def close(self) -> None:
        """End the iteration: begin no other task and wait for the threads, which are at most at one task each."""
        self._tasks = iter(())
        self._pending.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Ahead[Task, Made]:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_executor", None) is not None:
            self.close()
