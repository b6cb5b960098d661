"""What the CUDA kernels that keep windows in registers share: lines of pixels, their products, ends, and sums of a block."""

from __future__ import annotations

from collections.abc import Callable

from ..cuda.language import anew, cuda, float32, inlined, int32, int64, uint32
from ..cuda.stored import reader_and_writer

THREADS = 128
LEVELS = 7  # of a tree over them
ROWS = 4  # of y that a thread computes from one window
LANES = 32  # of a warp: where channels lie side by side, each has one
WARPS = THREADS // LANES
PITCH = THREADS + 1  # between two taps' sums of a block: apart from each other in the banks


def finisher(stored: str) -> Callable:
    """The inlined function that adds the residual, goes through the ReLU and writes, for arrays of ``stored``."""
    read, write = reader_and_writer(stored)

    @inlined
    def finish(value, residual, y, at, work):
        if work.added:
            value += read(residual[at])
        if work.relu:
            value = float32(0) if value <= float32(0) else value
        y[at] = write(value)

    return finish


def over_window(rows: int, columns: int, step: int, stored: str, multiply: Callable) -> Callable:
    """The inlined function (x, at, h, v, valid, work, factors, line, acc) that goes over a thread's window line by line.

    The window of ROWS results, one below the other, begins at row h and column v of x, at x[at] unless that is padding. For
    each tap (r, s) of each of the first ``valid`` results j it calls multiply(acc, factors, j, r, s, pixel).
    """
    reach, (read, _) = (ROWS - 1) * step + rows, reader_and_writer(stored)

    def lines(first: int, last: int) -> Callable:
        """Some of the window's lines; one loop over all of them is more than the compiler unrolls."""

        @inlined
        def add(x, at, h, v, valid, work, factors, line, acc):
            for a in range(first, last):
                from_row, down = int64(int32(at + a * work.width)), int32(h + a)
                for s in range(columns):
                    inside = uint32(down) < uint32(work.height) and uint32(v + s) < uint32(work.width)
                    line[s] = read(x[from_row + s]) if inside else float32(0)
                for j in range(ROWS):
                    if 0 <= a - j * step < rows and j < valid:
                        for s in range(columns):
                            multiply(acc, factors, j, a - j * step, s, line[s])

        return add

    upper, lower = lines(0, reach // 2), lines(reach // 2, reach)

    @inlined
    def add(x, at, h, v, valid, work, factors, line, acc):
        upper(x, at, h, v, valid, work, factors, line, acc)
        lower(x, at, h, v, valid, work, factors, line, acc)

    return add


def block_sums(count: int) -> Callable:
    """The inlined function that adds up all threads' acc[t] for t < count in the order of a tree, to partial[t * PITCH]."""

    @inlined
    def tree(partial, acc):
        me = uint32(cuda.threadIdx.x)
        for t in range(count):
            partial[uint32(t * PITCH) + me] = acc[t]
        cuda.syncthreads()
        half, bits = uint32(THREADS // 2), uint32(LEVELS - 1)  # half = 2 ** bits
        while half > uint32(0):
            e = me
            while e < uint32(count) * half:
                at = (e >> bits) * uint32(PITCH) + (e & (half - uint32(1)))
                partial[at] += partial[at + half]
                e = uint32(e + uint32(THREADS))
            cuda.syncthreads()
            half, bits = uint32(half >> uint32(1)), uint32(bits - uint32(1))

    return tree


def column_loader(reach: int, columns: int, stored: str) -> Callable:
    """The inlined function (line, x, at, h, v, s, work) that reads column s of a window of channels-last images.

    Its pixels are at column v of x from row h on, the first at x[at] unless that is padding; the window has ``columns``.
    """
    read, _ = reader_and_writer(stored)

    @inlined
    def load(line, x, at, h, v, s, work):
        down = anew(h)  # which lines are padding would else be kept in registers
        for a in range(reach):
            inside = uint32(down + a) < uint32(work.height) and uint32(v) < uint32(work.width)
            line[a * columns + s] = read(x[int32(at + a * work.width * work.sources)]) if inside else float32(0)

    return load


def in_turn(functions: list[Callable]) -> Callable:
    """The inlined function (factors, line, acc) that calls each; one loop over all is more than the compiler unrolls."""
    if len(functions) == 1:
        return functions[0]
    head, others = functions[0], in_turn(functions[1:])

    @inlined
    def call(factors, line, acc):
        head(factors, line, acc)
        others(factors, line, acc)

    return call


def rows_below(products: Callable[[int], Callable]) -> Callable:
    """The inlined function (given, count, line, acc) that calls what ``products`` makes for each of the ROWS rows of gy that
    is below ``count``: the last strip has fewer, and no zero in their place may meet an infinity."""
    row_0, row_1, row_2, row_3 = (products(j) for j in range(ROWS))

    @inlined
    def add(given, count, line, acc):
        row_0(given, line, acc)
        if count > 1:
            row_1(given, line, acc)
        if count > 2:
            row_2(given, line, acc)
        if count > 3:
            row_3(given, line, acc)

    return add


def lane_sums(count: int, lanes: int) -> tuple[Callable, Callable]:
    """Sums over the threads of a block that have the same number modulo ``lanes``, of acc[t] for t < count.

    The inlined functions (partial, acc) that shares them, and (partial, e) that then adds up those of t = e // lanes and
    thread e % lanes, in the order of the threads; partial has count * THREADS floats.
    """
    apart, others = count * lanes, THREADS // lanes

    @inlined
    def share(partial, acc):
        me = uint32(cuda.threadIdx.x)
        for t in range(count):
            partial[me // uint32(lanes) * uint32(apart) + uint32(t * lanes) + me % uint32(lanes)] = acc[t]
        cuda.syncthreads()

    @inlined
    def total(partial, e):
        value = float32(0)
        for other in range(others):
            value += partial[uint32(other * apart) + e]
        return value

    return share, total
