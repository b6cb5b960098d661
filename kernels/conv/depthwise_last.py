"""CUDA kernels of depthwise convolution over channels-last images, unrolled for common kernels.

The lanes of a warp have neighbouring channels, which lie side by side. A thread slides along some rows of the result: of each
column of pixels that comes into its window it reads every pixel once, and adds its products to the results under way, of
which the oldest is then complete, so no window is kept. The weight gradient, whose results are the taps, keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..cuda.kernel import CudaKernel
from ..cuda.language import anew, cuda, float32, inlined, int32, quotient, thread, uint32
from ..cuda.stored import pointer, reader_and_writer
from .depthwise_kernels import named
from .window_lines import LANES, ROWS, THREADS, WARPS, column_loader, finisher, in_turn, lane_sums, rows_below


class Lines(NamedTuple):
    """Images (height, width) of a source, images (out_height, out_width) of a result, and who does what.

    The result is cut into strips of rows, and these into segments of columns. The weight gradient reads gy as the result.
    """

    terms: int  # of the launch's threads: (image, strip, segment, channel of the result); or of a sum: the first three
    chunk: int  # of a part of a sum
    run: int  # columns of a segment, of the result or of gy
    sources: int  # channels
    height: int
    width: int
    results: int
    out_height: int
    out_width: int
    by_results: int  # multiplier and shift with which to divide by it
    by_results_shift: int
    by_filters: int  # of a channel
    by_filters_shift: int
    strips: int
    by_strips: int
    by_strips_shift: int
    segments: int  # of a strip
    by_segments: int
    by_segments_shift: int
    top: int
    left: int
    first_tap: int  # of a filter's weights, and the step to the next: forwards, or turned by 180 degrees
    tap_step: int
    biased: int
    relu: int
    added: int


@inlined
def _place(e, work):
    """Image, strip and segment of a term."""
    rest = quotient(e, work.by_segments, work.by_segments_shift)
    n = quotient(rest, work.by_strips, work.by_strips_shift)
    return n, int32(rest - n * work.strips), int32(e - rest * work.segments)


def correlation(rows: int, columns: int, step: int, stored: str) -> CudaKernel:
    """y[p, q] = bias + Σ w[r, s] · x[p · step - top + r, q · step - left + s] + residual, through the ReLU.

    Under way are the results of some neighbouring columns, the newest first: its window begins with the columns that come.
    """
    taps, reach, beside = rows * columns, (ROWS - 1) * step + rows, -(-columns // step)
    (read, _), finish, sums = reader_and_writer(stored), finisher(stored), ROWS * beside

    def products(i: int, d: int) -> Callable:
        """Of the i-th of ``step`` columns, with the results whose windows began d times as many columns ago."""

        @inlined
        def add(weights, line, acc):
            for j in range(ROWS):
                for r in range(rows):
                    acc[d * ROWS + j] += weights[r * columns + d * step + i] * line[j * step + r]

        return add

    # The oldest results first: these are waited for.
    met = [[products(i, d) for d in reversed(range(beside)) if d * step + i < columns] for i in range(step)]
    add_first, add_last, load = in_turn(met[0]), in_turn(met[-1]), column_loader(reach, 1, stored)

    def body(x, w, bias, residual, y, work):
        weights, line = cuda.local.array(taps, float32), cuda.local.array(reach, float32)
        acc = cuda.local.array(sums, float32)
        i = thread()
        if i < work.terms:
            e = quotient(i, work.by_results, work.by_results_shift)
            k = int32(i - e * work.results)
            n, strip, segment = _place(e, work)
            for t in range(taps):
                weights[t] = read(w[int32(k * taps + work.first_tap + t * work.tap_step)])
            more = read(bias[k]) if work.biased else float32(0)
            for j in range(sums):
                acc[j] = more
            p, first = int32(strip * ROWS), int32(segment * work.run)
            count = int32(min(work.run, work.out_width - first))
            h, v = int32(p * step - work.top), int32(first * step - work.left)
            c = quotient(k, work.by_filters, work.by_filters_shift)
            at = int32(((n * work.height + h) * work.width + v) * work.sources + c)
            q = int32(-(beside - 1))  # column of the oldest results, from the first one of the segment on
            to = int32(((n * work.out_height + p) * work.out_width + first + q) * work.results + k)
            while q < count:
                load(line, x, at, h, v, 0, work)
                add_first(weights, line, acc)
                if step > 1:
                    load(line, x, int32(at + work.sources), h, int32(v + 1), 0, work)
                    add_last(weights, line, acc)
                if q >= 0:
                    row = anew(p)  # the numbers of the rows below would else be kept in registers
                    for j in range(ROWS):
                        if int32(row + j) < work.out_height:
                            there = int32(to + j * work.out_width * work.results)
                            finish(acc[(beside - 1) * ROWS + j], residual, y, there, work)
                for j in range(sums - ROWS):
                    acc[sums - 1 - j] = acc[sums - 1 - j - ROWS]
                for j in range(ROWS):
                    acc[j] = more
                v, q = int32(v + step), int32(q + 1)
                at, to = int32(at + step * work.sources), int32(to + work.results)

    name = named(f"last-correlation-{rows}x{columns}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 5, Lines), THREADS)


def spread(rows: int, columns: int, step: int, stored: str) -> CudaKernel:
    """gx[h, v] = Σ w[r, s] · gy[(h + top - r) / step, (v + left - s) / step], where both are whole.

    A thread's rows begin where h + top is a multiple of the step, so that each has taps that are known here; so do its
    columns. Each column of gy adds to ``columns`` of gx, of which ``step`` are complete then.
    """
    taps, tall, below, beside = rows * columns, ROWS * step, -(-rows // step), -(-columns // step)
    reach, sums, (read, write) = ROWS + below - 1, tall * columns, reader_and_writer(stored)

    def products(j: int) -> Callable:
        """Those of a row of gx."""

        @inlined
        def add(weights, line, acc):
            for a in range(reach):
                r = j % step + (j // step + below - 1 - a) * step
                if 0 <= r < rows:
                    for s in range(columns):
                        acc[j * columns + s] += weights[r * columns + s] * line[a]

        return add

    add, load = in_turn([products(j) for j in range(tall)]), column_loader(reach, 1, stored)

    def body(gy, w, gx, work):
        weights, line = cuda.local.array(taps, float32), cuda.local.array(reach, float32)
        acc = cuda.local.array(sums, float32)
        i = thread()
        if i < work.terms:
            e = quotient(i, work.by_results, work.by_results_shift)
            c = int32(i - e * work.results)
            n, strip, segment = _place(e, work)
            for t in range(taps):
                weights[t] = read(w[int32(c * taps + t)])
            for j in range(sums):
                acc[j] = float32(0)
            h = int32(strip * tall - int32(uint32(work.top) % uint32(step)))
            p = int32(int32(uint32(h + work.top) // uint32(step)) - (below - 1))
            # Columns of gy whose first columns of gx are the segment's; those of padding on the left are passed by.
            first = int32(int32(uint32(work.left) // uint32(step)) + segment * work.run)
            end, q = int32(first + work.run), int32(first - (beside - 1))
            v = int32(q * step - work.left)
            at = int32(((n * work.height + p) * work.width + q) * work.sources + c)
            to = int32(((n * work.out_height + h) * work.out_width + v) * work.results + c)
            while q < end:
                load(line, gy, at, p, q, 0, work)
                add(weights, line, acc)
                if q >= first:
                    for s in range(step):
                        if uint32(v + s) < uint32(work.out_width):
                            for j in range(tall):
                                if uint32(h + j) < uint32(work.out_height):
                                    there = int32(to + (j * work.out_width + s) * work.results)
                                    gx[there] = write(acc[j * columns + s])
                for j in range(tall):
                    for s in range(columns - step):
                        acc[j * columns + s] = acc[j * columns + s + step]
                    for s in range(columns - step, columns):
                        acc[j * columns + s] = float32(0)
                v, q = int32(v + step), int32(q + 1)
                at, to = int32(at + work.sources), int32(to + step * work.results)

    name = named(f"last-spread-{rows}x{columns}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 3, Lines), THREADS)


def weight_kernel(rows: int, columns: int, step: int, stored: str) -> CudaKernel:
    """gw[r, s] = Σ gy[p, q] · x[p · step - top + r, q · step - left + s] over images and pixels.

    A block has LANES filters and part of the strips and segments, which its warps share.
    """
    taps, reach, (read, _) = rows * columns, (ROWS - 1) * step + rows, reader_and_writer(stored)
    window, room, kept = reach * columns, taps * THREADS, columns - step
    share, total = lane_sums(taps, LANES)

    def products(j: int) -> Callable:
        """Those of a row of gy."""

        @inlined
        def add(given, line, acc):
            for r in range(rows):
                for s in range(columns):
                    acc[r * columns + s] += given[j] * line[(j * step + r) * columns + s]

        return add

    add, load = rows_below(products), column_loader(reach, columns, stored)

    def body(x, gy, sums, work):
        partial = cuda.shared.array(room, float32)
        acc, given = cuda.local.array(taps, float32), cuda.local.array(ROWS, float32)
        line = cuda.local.array(window, float32)
        me = uint32(cuda.threadIdx.x)
        wide = uint32(uint32(work.results + LANES - 1) // uint32(LANES))
        part = int32(uint32(cuda.blockIdx.x) // wide)
        k0 = int32(uint32(cuda.blockIdx.x) % wide * uint32(LANES))
        k = int32(k0 + int32(me % uint32(LANES)))
        c = quotient(k, work.by_filters, work.by_filters_shift)
        for t in range(taps):
            acc[t] = float32(0)
        e = int32(part * work.chunk + int32(me // uint32(LANES)))
        last = int32(min(part * work.chunk + work.chunk, work.terms)) if k < work.results else int32(0)
        while e < last:
            n, strip, segment = _place(e, work)
            p, q = int32(strip * ROWS), int32(segment * work.run)
            end, count = int32(min(q + work.run, work.out_width)), int32(work.out_height - p)
            h, v = int32(p * step - work.top), int32(q * step - work.left)
            at = int32(((n * work.height + h) * work.width + v) * work.sources + c)
            come = int32(((n * work.out_height + p) * work.out_width + q) * work.results + k)
            for s in range(kept):
                load(line, x, int32(at + s * work.sources), h, int32(v + s), step + s, work)
            v, at = int32(v + kept), int32(at + kept * work.sources)
            while q < end:
                for j in range(ROWS):
                    there = int32(come + j * work.out_width * work.results)
                    given[j] = read(gy[there]) if j < count else float32(0)
                for a in range(reach):
                    for s in range(kept):
                        line[a * columns + s] = line[a * columns + s + step]
                for s in range(step):
                    load(line, x, int32(at + s * work.sources), h, int32(v + s), kept + s, work)
                add(given, count, line, acc)
                v, q = int32(v + step), int32(q + 1)
                at, come = int32(at + step * work.sources), int32(come + work.results)
            e = int32(e + WARPS)
        share(partial, acc)
        i = me
        while i < uint32(taps * LANES):
            tap, filter = int32(i // uint32(LANES)), int32(k0 + int32(i % uint32(LANES)))
            if filter < work.results:
                sums[int32((part * work.results + filter) * taps + tap)] = total(partial, i)
            i = uint32(i + uint32(THREADS))

    name = named(f"last-weight_grad-{rows}x{columns}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 2, "float32", Lines), THREADS)
