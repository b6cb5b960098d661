"""The one way to run a parallel CPU loop.

A kernel is a function of one job: ``body(job, worker, *args)``, as a CUDA kernel is a function of one block. ``parallel``
compiles it to a C entry point that takes some jobs at a time from a shared counter until none is left, and every thread
that helps runs that entry point. Which thread computes a job never changes what the job computes.

The helpers are ordinary Python threads that live in compiled code without the GIL. They watch a mailbox for a fraction of
a millisecond after their last work and then go to sleep on a lock, so a training step pays under a microsecond for a
parallel loop and an idle process pays nothing. Numba's own threading layers are not used: one of them aborts the process
on concurrent calls, another kills forked children, and ``parallel=True`` multiplies the compile time.
A call that finds the helpers busy (another Python thread is in a kernel) does all its jobs itself.
Inside the loop every thread flushes denormal numbers, unless that was turned off (see denormals.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import threading
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import compiler, denormals
from .denormals import KEPT_BITS, float_mode, set_float_mode

SPINS = 8000  # pauses before a helper sleeps: 0.2 ms on Zen 5
BLOCK_BYTES = 4096  # room for a kernel's packed arguments

# Byte offsets in a mailbox; counters that different threads write stand on cache lines of their own.
NEXT, JOBS, CHUNK, OPEN, USERS, LIMIT, ENTRY, BLOCK, FLUSH = (np.uintp(64 * i) for i in range(9))
MAILBOX_BYTES = 64 * 9
TURNS = 8  # times that each thread takes some jobs: few enough that taking them costs nothing, enough to even out

_I64 = ir.IntType(64)
_ENTRY_SIGNATURE = types.void(types.uintp, types.int64, types.uintp)


def _cell(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def fetch_add(typingctx, address, increment):
    """Add atomically to the int64 at ``address`` and give what was there before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _cell(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.uintp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(_cell(builder, args[0]), "seq_cst", 8)

    return types.int64(types.uintp), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], _cell(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.uintp, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the core that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        triple = binding.get_process_triple()
        if triple.startswith(("x86_64", "i686")):
            hint = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.x86.sse2.pause"), [])
        elif triple.startswith(("aarch64", "arm64")):
            hint = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            yield_ = ir.Constant(ir.IntType(32), 1)
            builder.call(cgutils.get_or_insert_function(builder.module, hint, "llvm.aarch64.hint"), [yield_])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_entry(typingctx, entry, mailbox, worker, block):
    """Call the C entry point at an address."""

    def codegen(context, builder, signature, args):
        function = ir.FunctionType(ir.VoidType(), [_I64] * 3).as_pointer()
        builder.call(builder.inttoptr(args[0], function), args[1:])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.int64, types.uintp), codegen


@intrinsic
def put_arguments(typingctx, block, arguments):
    """Store a tuple of kernel arguments at an address; the caller keeps the arrays alive."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(types.uintp, arguments), codegen


def _argument_reader(tuple_type: Any) -> Any:
    """An intrinsic that loads a tuple of this type from an address.

    Its arrays are borrowed: without the record that Numba counts references in, which ends when _post returns, while a
    late helper may still be reading. The Python caller keeps the memory itself alive until no helper works.
    """

    @intrinsic
    def arguments_at(typingctx, block):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], context.get_value_type(tuple_type).as_pointer())
            value = builder.load(pointer, align=8)
            for i, kind in enumerate(tuple_type.types):
                if isinstance(kind, types.Array):
                    array = context.make_array(kind)(context, builder, builder.extract_value(value, i))
                    array.meminfo = ir.Constant(array.meminfo.type, None)
                    array.parent = ir.Constant(array.parent.type, None)
                    value = builder.insert_value(value, array._getvalue(), i)
            return value

        return tuple_type(types.uintp), codegen

    return arguments_at


def _post(mailbox, jobs, chunk, limit, flush, entry, block, *arguments):
    """Open the loop to the helpers if ``limit`` > 1, work until no job is left, close it; False: a helper still works."""
    put_arguments(block, arguments)
    atomic_store(mailbox + NEXT, 0)
    atomic_store(mailbox + JOBS, jobs)
    atomic_store(mailbox + CHUNK, chunk)
    atomic_store(mailbox + FLUSH, flush)
    if limit == 1:
        call_entry(entry, mailbox, 0, block)
        return True
    atomic_store(mailbox + LIMIT, limit)
    atomic_store(mailbox + ENTRY, np.int64(entry))
    atomic_store(mailbox + BLOCK, np.int64(block))
    atomic_store(mailbox + OPEN, 1)
    call_entry(entry, mailbox, 0, block)
    atomic_store(mailbox + OPEN, 0)
    return _finished(mailbox)


@compiler.helper
def _finished(mailbox):
    for _ in range(4 * SPINS):
        if atomic_load(mailbox + USERS) == 0:
            return True
        pause()
    return False


def _wait(mailbox):
    """Wait a while for helpers that still work; False: one works on."""
    return _finished(mailbox)


def _serve(mailbox, worker):
    """Help with every loop that opens, until none has opened for SPINS pauses."""
    idle = 0
    while idle < SPINS:
        if atomic_load(mailbox + OPEN) == 1:
            # Announce first, look again after: the poster closes, then waits for the announced ones.
            fetch_add(mailbox + USERS, 1)
            if (
                atomic_load(mailbox + OPEN) == 1
                and worker < atomic_load(mailbox + LIMIT)
                and atomic_load(mailbox + NEXT) < atomic_load(mailbox + JOBS)
            ):
                entry = np.uintp(atomic_load(mailbox + ENTRY))
                call_entry(entry, mailbox, worker, np.uintp(atomic_load(mailbox + BLOCK)))
                idle = 0
            fetch_add(mailbox + USERS, -1)
        pause()
        idle += 1


# The loop around every kernel body. It is compiled under a name of its own for each kernel and argument types, because
# Numba's cache knows functions by name, not by what they call; so body and arguments_at are globals of each copy.
_ENTRY_SOURCE = """
def entry(mailbox, worker, block):
    arguments = arguments_at(block)
    mode = float_mode()
    set_float_mode(mode & KEPT_BITS | atomic_load(mailbox + FLUSH))
    jobs, chunk = atomic_load(mailbox + JOBS), atomic_load(mailbox + CHUNK)
    while True:
        first = fetch_add(mailbox + NEXT, chunk)
        if first >= jobs:
            break
        for job in range(first, min(first + chunk, jobs)):
            body(job, worker, *arguments)
    set_float_mode(mode)
"""


class _Mailbox:
    """Aligned memory for the counters and the packed arguments of one parallel loop."""

    def __init__(self) -> None:
        self._memory = np.zeros(MAILBOX_BYTES + BLOCK_BYTES + 64, np.uint8)
        self.address = (self._memory.ctypes.data + 63) // 64 * 64
        self.block = self.address + MAILBOX_BYTES


class _Helpers:
    """The helper threads, and the mailbox that they watch."""

    def __init__(self) -> None:
        self.mailbox = _Mailbox()
        self.busy = threading.Lock()
        self.asleep: list[bool] = []
        self.alarms: list[threading.Lock] = []
        self.ids: list[int] = []
        self._serve = compiler.cached_njit(_serve, (types.uintp, types.int64))
        self.wait = compiler.cached_njit(_wait, (types.uintp,))

    def wake(self, threads: int) -> None:
        """Have helpers 1 … threads-1 awake (worker 0 is the caller); needs ``busy``."""
        for worker in range(1, threads):
            if worker > len(self.alarms):
                self._start(worker)
            elif self.asleep[worker - 1]:
                self.asleep[worker - 1] = False
                _keep_off_this_core(self.ids[worker - 1])
                self.alarms[worker - 1].release()

    def _start(self, worker: int) -> None:
        alarm = threading.Lock()
        alarm.acquire()
        self.alarms.append(alarm)
        self.asleep.append(False)
        self.ids.append(0)
        thread = threading.Thread(target=self._live, args=(worker, alarm), name=f"convkern-{worker}", daemon=True)
        thread.start()

    def _live(self, worker: int, alarm: threading.Lock) -> None:
        self.ids[worker - 1] = threading.get_native_id()  # before it first sleeps
        while True:
            self._serve(self.mailbox.address, worker)
            self.asleep[worker - 1] = True
            # A poster that came while this thread waited for the GIL saw it awake: look once more, or its loop runs alone.
            self._serve(self.mailbox.address, worker)
            alarm.acquire()


_libc_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


def _keep_off_this_core(thread: int) -> None:
    """Have a thread that is about to wake run on any core but the caller's.

    Linux may put it behind its waker, which computes on, while another core idles: for several milliseconds the loop then
    takes longer than on one thread (measured on Linux 6.18 in every second wake after a pause).
    """
    if _libc_getcpu is None:
        return
    cores = os.sched_getaffinity(0)
    cores.discard(_libc_getcpu())
    if cores:
        with contextlib.suppress(OSError):  # the machine took a core away meanwhile
            os.sched_setaffinity(thread, cores)


def _default_threads() -> int:
    for variable in ("CONVKERN_NUM_THREADS", "NUMBA_NUM_THREADS"):
        if text := os.environ.get(variable):
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(f"{variable} must be a positive integer, got {text!r}")
            return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_threads = _default_threads()
_helpers: _Helpers | None = None
_local = threading.local()
_compile_lock = threading.RLock()
_posts: dict[Any, Any] = {}
_names: set[str] = set()


def _forget_helpers() -> None:
    """In a forked child only the forking thread lives on: start over with new helpers and free locks."""
    global _helpers, _local, _compile_lock
    _helpers = None
    _local = threading.local()
    _compile_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def num_threads() -> int:
    """Number of threads that a kernel may use."""
    return _threads


def set_num_threads(threads: int) -> None:
    """Set the number of threads that a kernel may use; the results do not depend on it.

    Parameters
    ----------
    threads : int
        At least 1. More than the machine has cores is allowed, and slow.
    """
    global _threads
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"set_num_threads: threads must be an int, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"set_num_threads: threads must be at least 1, got {threads}")
    _threads = threads


class _Entry:
    """A kernel compiled for one tuple of argument types."""

    def __init__(self, body: Any, name: str, arguments: tuple[Any, ...]) -> None:
        tuple_type = types.Tuple(tuple(_argument_type(name, value) for value in arguments))
        tag = hashlib.sha256(str(tuple_type).encode()).hexdigest()[:12]
        scope: dict[str, Any] = {
            "__name__": body.__module__,
            "arguments_at": _argument_reader(tuple_type),
            "body": body,
            "fetch_add": fetch_add,
            "atomic_load": atomic_load,
            "NEXT": NEXT,
            "JOBS": JOBS,
            "CHUNK": CHUNK,
            "FLUSH": FLUSH,
            "KEPT_BITS": KEPT_BITS,
            "float_mode": float_mode,
            "set_float_mode": set_float_mode,
        }
        exec(compile(_ENTRY_SOURCE, __file__, "exec"), scope)
        function = scope["entry"]
        function.__qualname__ = f"{name}[{tag}]"
        self._compiled = compiler.entry_point(function, _ENTRY_SIGNATURE)
        self.address = self._compiled.address
        if tuple_type not in _posts:
            signature = (types.uintp, *[types.int64] * 4, types.uintp, types.uintp, tuple_type)
            post = FunctionType(_post.__code__, _post.__globals__, _post.__name__)
            post.__module__ = body.__module__  # kept with its kernel, whose module defines the types
            _posts[tuple_type] = compiler.cached_njit(post, signature)
        self.post = _posts[tuple_type]


def _argument_type(kernel: str, value: Any) -> Any:
    kind = typeof(value)
    if isinstance(kind, types.Array) and not (kind.layout == "C" and kind.aligned and kind.mutable):
        raise TypeError(f"{kernel}: kernels take C-contiguous, aligned, writeable arrays, got {kind}")
    return kind


class ParallelKernel:
    """A compiled kernel: ``kernel(jobs, *args)`` runs ``body(job, worker, *args)`` for every job in range(jobs)."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.__doc__ = body.__doc__
        self.__wrapped__ = body
        self.name = f"{body.__module__.removeprefix('convkern.kernels.')}.{body.__name__}"
        # Numba names machine code by this, and links code from the disk cache by that name: it must be unique.
        if self.name in _names:
            raise ValueError(f"there is a kernel {self.name} already")
        _names.add(self.name)
        body.__qualname__ = self.name
        self._body = compiler.helper(body)
        self._entries: dict[str, _Entry] = {}

    def __call__(self, jobs: int, *args: Any, limit: int | None = None) -> None:
        """Run all jobs, on ``limit`` threads at most."""
        # The argument types of one kernel differ by the floating dtype alone; post() checks each of them again.
        entry = self._entries.get(args[-1].dtype.char) or self._compile(args)
        if jobs <= 0:
            return
        helpers = _helpers or _start_helpers()
        flush = denormals.flush_bits()
        threads = min(_threads, jobs) if limit is None else min(_threads, jobs, limit)
        if threads > 1 and helpers.busy.acquire(blocking=False):
            try:
                helpers.wake(threads)
                mailbox = helpers.mailbox
                chunk = max(1, jobs // (TURNS * threads))
                done = entry.post(mailbox.address, jobs, chunk, threads, flush, entry.address, mailbox.block, *args)
                while not done:
                    time.sleep(0)  # more threads than cores: let the last helper run
                    done = helpers.wait(mailbox.address)
            finally:
                helpers.busy.release()
        else:
            own = getattr(_local, "mailbox", None)
            if own is None:
                own = _local.mailbox = _Mailbox()
            entry.post(own.address, jobs, jobs, 1, flush, entry.address, own.block, *args)

    def _compile(self, args: tuple[Any, ...]) -> _Entry:
        with _compile_lock:
            key = args[-1].dtype.char
            if key not in self._entries:
                self._entries[key] = _Entry(self._body, self.name, args)
            return self._entries[key]


def _start_helpers() -> _Helpers:
    global _helpers
    with _compile_lock:
        if _helpers is None:
            _helpers = _Helpers()
        return _helpers


parallel = ParallelKernel


def thread_rows(room: np.ndarray, elements: int) -> np.ndarray:
    """Cut ``room`` into rows of ``elements``, one for each thread; there may be fewer rows than threads by now.

    A kernel that indexes the rows by worker is called with ``limit=rows.shape[0]``: another Python thread can raise the
    number of threads after the room was measured.
    """
    rows = min(num_threads(), room.size // elements)
    return room[: rows * elements].reshape(rows, elements)


def workspace(nbytes: int) -> np.ndarray:
    """At least ``nbytes`` of uninitialised scratch, 64-byte aligned, kept by the calling Python thread for reuse."""
    nbytes = -(-nbytes // 64) * 64  # whole elements of every dtype, whoever reuses it
    held = getattr(_local, "scratch", None)
    if held is None or held.nbytes < nbytes:
        raw = np.empty(nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        held = _local.scratch = raw[start : start + nbytes]
    return held
