"""CUDA kernels of convolution by few channels over channels-last images, of 3x3 kernels; see :mod:`.cuda_tiled`.

A unit is four results of a group. Eight neighbouring units, whose channels lie side by side, are neighbouring lanes; with
the other lanes a block shares pixels. As in :mod:`.depthwise_last` a thread slides along some rows of the result: each column
of pixels that comes into its window adds to the results under way, channel by channel, with weights from shared memory.
"""

from __future__ import annotations

from collections.abc import Callable

from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, inlined, int32, load4, uint32, uint64
from ..cuda.stored import pointer, reader_and_writer
from ..cuda.tiles import FEW_RESULTS, RESULTS, SLOTS, UNITS
from .tiled_grid import KERNEL, LastGrid, last_place, tiled_name
from .window_lines import ROWS, THREADS, column_loader, finisher, in_turn, lane_sums, rows_below

TAPS = KERNEL * KERNEL
SIDE = UNITS * RESULTS  # weights of a tap and channel in a block


@inlined
def _unit(grid):
    """This thread's unit, its group and first result in it, and its block's part of the pixels and other index."""
    block, me = uint32(cuda.blockIdx.x), uint32(cuda.threadIdx.x)
    u = int32(block % uint32(grid.wide) * uint32(UNITS) + me % uint32(UNITS))
    group = int32(uint32(u) // uint32(grid.blocks))
    return u, group, int32((u - group * grid.blocks) * RESULTS), int32(block // uint32(grid.wide))


def last_kernel(step: int, stored: str) -> CudaKernel:
    """The kernel (source, w, bias, residual, result, grid) of one stride."""
    reach, beside = (ROWS - 1) * step + KERNEL, -(-KERNEL // step)
    room, column, sums = FEW_RESULTS * TAPS * SIDE, ROWS * RESULTS, beside * ROWS * RESULTS
    (read, _), finish = reader_and_writer(stored), finisher(stored)

    def products(i: int, d: int) -> Callable:
        """Of the i-th of ``step`` columns, with the results whose windows began d times as many columns ago."""

        @inlined
        def add(factors, line, acc):
            for r in range(KERNEL):
                held = load4(factors[0], factors[1] + uint64((r * KERNEL + d * step + i) * SIDE))
                for j in range(ROWS):
                    for f in range(RESULTS):
                        acc[d * column + j * RESULTS + f] += held[f] * line[j * step + r]

        return add

    met = [[products(i, d) for d in range(beside) if d * step + i < KERNEL] for i in range(step)]
    add_first, add_last, load = in_turn(met[0]), in_turn(met[-1]), column_loader(reach, 1, stored)

    def body(x, w, bias, residual, y, grid):
        factors = cuda.shared.array(room, float32, alignment=16)  # (source channel, tap, unit, result)
        line, acc = cuda.local.array(reach, float32), cuda.local.array(sums, float32)
        more = cuda.local.array(RESULTS, float32)
        me = uint32(cuda.threadIdx.x)
        u, group, k0, part = _unit(grid)
        i = me
        while i < uint32(grid.inner * TAPS * SIDE):
            other = int32(u - int32(me % uint32(UNITS)) + int32(i // uint32(RESULTS) % uint32(UNITS)))
            g = int32(uint32(other) // uint32(grid.blocks))
            k = int32((other - g * grid.blocks) * RESULTS + int32(i % uint32(RESULTS)))
            t, c = int32(i // uint32(SIDE) % uint32(TAPS)), int32(i // uint32(SIDE * TAPS))
            at = int32(g * grid.inner * grid.outer * TAPS + grid.first_tap + k * grid.weight_outer)
            at = int32(at + c * grid.weight_inner + t * grid.tap_step)
            factors[i] = read(w[at]) if other < grid.units and k < grid.outer else float32(0)
            i = uint32(i + uint32(THREADS))
        cuda.syncthreads()
        for f in range(RESULTS):
            biased = grid.biased and u < grid.units and k0 + f < grid.outer
            more[f] = read(bias[int32(group * grid.outer + k0 + f)]) if biased else float32(0)
        e = int32(part * grid.chunk + int32(me // uint32(UNITS)))
        last = int32(min(part * grid.chunk + grid.chunk, grid.terms)) if u < grid.units else int32(0)
        while e < last:
            n, strip, segment = last_place(e, grid)
            p, first = int32(strip * ROWS), int32(segment * grid.run)
            end = int32(min(first + grid.run, grid.out_width))
            h, v = int32(p * step - grid.top), int32(first * step - grid.left)
            at = int32(((n * grid.height + h) * grid.width + v) * grid.sources + group * grid.inner)
            q = int32(first - (beside - 1))  # of the oldest results
            to = int32(((n * grid.out_height + p) * grid.out_width + q) * grid.results + group * grid.outer + k0)
            for j in range(sums):
                acc[j] = more[j % RESULTS]
            while q < end:
                come = uint64(me % uint32(UNITS) * uint32(RESULTS))
                for c in range(grid.inner):
                    load(line, x, int32(at + c), h, v, 0, grid)
                    add_first((factors, come), line, acc)
                    if step > 1:
                        load(line, x, int32(at + c + grid.sources), h, int32(v + 1), 0, grid)
                        add_last((factors, come), line, acc)
                    come = uint64(come + uint64(TAPS * SIDE))
                if q >= first:
                    for j in range(ROWS):
                        for f in range(RESULTS):
                            if int32(p + j) < grid.out_height and k0 + f < grid.outer:
                                there = int32(to + j * grid.out_width * grid.results + f)
                                finish(acc[(beside - 1) * column + j * RESULTS + f], residual, y, there, grid)
                for j in range(sums - column):
                    acc[sums - 1 - j] = acc[sums - 1 - j - column]
                for j in range(column):
                    acc[j] = more[j % RESULTS]
                v, q = int32(v + step), int32(q + 1)
                at, to = int32(at + step * grid.sources), int32(to + grid.results)
            e = int32(e + SLOTS)

    name = tiled_name(f"last-{KERNEL}x{KERNEL}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 5, LastGrid), THREADS)


def last_weight_kernel(step: int, stored: str) -> CudaKernel:
    """The kernel (x, gy, sums, grid) of one stride; sums (part, K, C/groups, R, S). A block has one channel of a group."""
    reach, kept, count = (ROWS - 1) * step + KERNEL, KERNEL - step, RESULTS * TAPS
    window, room, (read, _) = reach * KERNEL, RESULTS * TAPS * THREADS, reader_and_writer(stored)
    share, total = lane_sums(count, UNITS)

    def products(j: int) -> Callable:
        """Those of a row of gy."""

        @inlined
        def add(given, line, acc):
            for r in range(KERNEL):
                for s in range(KERNEL):
                    for f in range(RESULTS):
                        pixel = line[(j * step + r) * KERNEL + s]
                        acc[f * TAPS + r * KERNEL + s] += given[j * RESULTS + f] * pixel

        return add

    add, load = rows_below(products), column_loader(reach, KERNEL, stored)
    columns = ROWS * RESULTS

    def body(x, gy, sums, grid):
        partial = cuda.shared.array(room, float32)
        acc, given = cuda.local.array(count, float32), cuda.local.array(columns, float32)
        line = cuda.local.array(window, float32)
        me = uint32(cuda.threadIdx.x)
        u, group, k0, rest = _unit(grid)
        part = int32(uint32(rest) // uint32(grid.inner))
        c = int32(rest - part * grid.inner)
        for i in range(count):
            acc[i] = float32(0)
        e = int32(part * grid.chunk + int32(me // uint32(UNITS)))
        last = int32(min(part * grid.chunk + grid.chunk, grid.terms)) if u < grid.units else int32(0)
        while e < last:
            n, strip, segment = last_place(e, grid)
            p, q = int32(strip * ROWS), int32(segment * grid.run)
            end, valid = int32(min(q + grid.run, grid.out_width)), int32(grid.out_height - p)
            h, v = int32(p * step - grid.top), int32(q * step - grid.left)
            at = int32(((n * grid.height + h) * grid.width + v) * grid.sources + group * grid.inner + c)
            come = int32(((n * grid.out_height + p) * grid.out_width + q) * grid.results + group * grid.outer + k0)
            for s in range(kept):
                load(line, x, int32(at + s * grid.sources), h, int32(v + s), step + s, grid)
            v, at = int32(v + kept), int32(at + kept * grid.sources)
            while q < end:
                for j in range(ROWS):
                    for f in range(RESULTS):
                        there = int32(come + j * grid.out_width * grid.results + f)
                        inside = j < valid and k0 + f < grid.outer
                        given[j * RESULTS + f] = read(gy[there]) if inside else float32(0)
                for a in range(reach):
                    for s in range(kept):
                        line[a * KERNEL + s] = line[a * KERNEL + s + step]
                for s in range(step):
                    load(line, x, int32(at + s * grid.sources), h, int32(v + s), kept + s, grid)
                add(given, valid, line, acc)
                v, q = int32(v + step), int32(q + 1)
                at, come = int32(at + step * grid.sources), int32(come + grid.results)
            e = int32(e + SLOTS)
        share(partial, acc)
        i = me
        while i < uint32(count * UNITS):
            other = int32(u - int32(me % uint32(UNITS)) + int32(i % uint32(UNITS)))
            number = int32(i // uint32(UNITS))
            f, g = int32(uint32(number) // uint32(TAPS)), int32(uint32(other) // uint32(grid.blocks))
            k = int32((other - g * grid.blocks) * RESULTS + f)
            if other < grid.units and k < grid.outer:
                to = int32(((part * grid.groups + g) * grid.outer + k) * grid.inner + c)
                sums[int32(to * TAPS + number - f * TAPS)] = total(partial, i)
            i = uint32(i + uint32(THREADS))

    name = tiled_name(f"last-weight_grad-{KERNEL}x{KERNEL}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 2, "float32", LastGrid), THREADS)
