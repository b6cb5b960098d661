"""CUDA kernels of depthwise convolution over NCHW, unrolled for common kernels.

A thread computes some rows of its column from a window in registers, line by line: a pixel is read once for all of them. It
does so for the same place in several images, so that its weights stay in registers and what its taps meet is found once.
Neighbouring threads have neighbouring columns: reads and writes lie side by side, and the first-level cache serves the
pixels that they share.
"""

from __future__ import annotations

from typing import NamedTuple

from ..cuda.kernel import CudaKernel
from ..cuda.language import anew, as_it_is, cuda, float32, inlined, int32, int64, quotient, thread, uint32
from ..cuda.stored import pointer, reader_and_writer
from .window_lines import PITCH, ROWS, THREADS, block_sums, finisher, over_window

MANY_TAPS = 25  # more leave no registers for the bias, and for which rows are below


def named(name: str, stored: str) -> str:
    """A kernel's name, which says what it reads and writes where that is not float32."""
    return f"conv-depthwise-{name}{'' if stored == 'float32' else '-' + stored}"


class Work(NamedTuple):
    """Planes (height, width) of a source, planes (out_height, out_width) of a result, and who does what.

    The weight gradient reads gy as the result.
    """

    terms: int  # of the launch's threads, or of a channel's sum
    chunk: int  # images of a thread, or terms of a part of a sum
    n: int
    sources: int  # planes of an image
    height: int
    width: int
    results: int
    out_height: int
    out_width: int
    filters: int  # of a channel
    by_filters: int  # multiplier and shift with which to divide by it
    by_filters_shift: int
    by_results: int
    by_results_shift: int
    strips: int  # of a column: the rows that a thread has at once are one
    by_strips: int
    by_strips_shift: int
    by_row: int  # of out_width
    by_row_shift: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    by_stride_h: int
    by_stride_h_shift: int
    by_stride_w: int
    by_stride_w_shift: int
    dilation_h: int
    dilation_w: int
    top: int
    left: int
    first_tap: int  # of a filter's weights, and the step to the next: forwards, or turned by 180 degrees
    tap_step: int
    biased: int
    relu: int
    added: int
    plane: int  # elements from channel to channel of the source, and from pixel to pixel
    pixel: int
    out_plane: int  # of the result
    out_pixel: int
    last: int  # whether images are channels-last


@inlined
def place(work):
    """This thread's part of the batch, plane of the result, strip and column."""
    i = thread()
    rest = quotient(i, work.by_row, work.by_row_shift)
    column = int32(i - rest * work.out_width)
    plane = quotient(rest, work.by_strips, work.by_strips_shift)
    part = quotient(plane, work.by_results, work.by_results_shift)
    return part, int32(plane - part * work.results), int32(rest - plane * work.strips), column


def correlation(rows: int, columns: int, step: int, stored: str) -> CudaKernel:
    """y[p, q] = bias + Σ w[r, s] · x[p · step - top + r, q · step - left + s] + residual, through the ReLU."""
    taps, (read, _), finish = rows * columns, reader_and_writer(stored), finisher(stored)
    many = taps > MANY_TAPS
    again = anew if many else as_it_is

    @inlined
    def multiply(acc, weights, j, r, s, pixel):
        acc[j] += weights[r * columns + s] * pixel

    add = over_window(rows, columns, step, stored, multiply)

    def body(x, w, bias, residual, y, work):
        weights, line = cuda.local.array(taps, float32), cuda.local.array(columns, float32)
        acc = cuda.local.array(ROWS, float32)
        if thread() < work.terms:
            part, k, strip, q = place(work)
            p, v = int32(strip * ROWS), int32(q * step - work.left)
            for t in range(taps):
                weights[t] = read(w[int32(k * taps + work.first_tap + t * work.tap_step)])
            more = read(bias[k]) if work.biased else float32(0)
            c = quotient(k, work.by_filters, work.by_filters_shift)
            n = int32(part * work.chunk)
            end = int32(min(n + work.chunk, work.n))
            while n < end:
                h = anew(int32(p * step - work.top))  # which lines are padding would else be kept in registers
                at = int32(((n * work.sources + c) * work.height + h) * work.width + v)
                if many:
                    more = read(bias[anew(k)]) if work.biased else float32(0)
                for j in range(ROWS):
                    acc[j] = more
                add(x, at, h, v, ROWS, work, weights, line, acc)
                to = int32(((n * work.results + k) * work.out_height + p) * work.out_width + q)
                row = again(p)  # which rows are below
                for j in range(ROWS):
                    if int32(row + j) < work.out_height:
                        finish(acc[j], residual, y, to, work)
                    to = int32(to + work.out_width)
                n = int32(n + 1)

    name = named(f"correlation-{rows}x{columns}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 5, Work), THREADS)


def spread(rows: int, columns: int, step: int, stored: str) -> CudaKernel:
    """gx[h, v] = Σ w[r, s] · gy[(h + top - r) / step, (v + left - s) / step], where both are whole.

    A thread's rows begin where h + top is a multiple of the step, so that each has taps that are known here. Which taps its
    column has is found once.
    """
    taps, tall, (read, write) = rows * columns, ROWS * step, reader_and_writer(stored)
    below, beside = -(-rows // step), -(-columns // step)  # taps that a row and a column may have
    reach, held = ROWS + below - 1, rows * beside

    def body(gy, w, gx, work):
        weights, line = cuda.local.array(held, float32), cuda.local.array(beside, float32)
        acc = cuda.local.array(tall, float32)
        if thread() < work.terms:
            part, c, strip, v = place(work)
            h = int32(strip * tall - int32(uint32(work.top) % uint32(step)))
            p = int32(int32(uint32(h + work.top) // uint32(step)) - (below - 1))
            q, s0 = int32(uint32(v + work.left) // uint32(step)), int32(uint32(v + work.left) % uint32(step))
            for r in range(rows):
                for i in range(beside):
                    s = int32(s0 + i * step)
                    at = int32(c * taps + r * columns + s)
                    weights[r * beside + i] = read(w[at]) if s < columns else float32(0)
            n = int32(part * work.chunk)
            end = int32(min(n + work.chunk, work.n))
            while n < end:
                first = anew(p)
                at = int32(((n * work.sources + c) * work.height + first) * work.width + q)
                for j in range(tall):
                    acc[j] = float32(0)
                for a in range(reach):
                    from_row = int64(int32(at + a * work.width))
                    for i in range(beside):
                        inside = uint32(first + a) < uint32(work.height) and uint32(q - i) < uint32(work.width)
                        line[i] = read(gy[from_row - i]) if inside and s0 + i * step < columns else float32(0)
                    for j in range(tall):
                        r = j % step + (j // step + below - 1 - a) * step
                        if 0 <= r < rows:
                            for i in range(beside):
                                acc[j] += weights[r * beside + i] * line[i]
                to = int32(((n * work.results + c) * work.out_height + h) * work.out_width + v)
                for j in range(tall):
                    if uint32(h + j) < uint32(work.out_height):
                        gx[to] = write(acc[j])
                    to = int32(to + work.out_width)
                n = int32(n + 1)

    name = named(f"spread-{rows}x{columns}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 3, Work), THREADS)


def weight_kernel(rows: int, columns: int, step: int, stored: str) -> CudaKernel:
    """gw[r, s] = Σ gy[p, q] · x[p · step - top + r, q · step - left + s] over images and pixels; a block for each part."""
    taps, room, (read, _) = rows * columns, rows * columns * PITCH, reader_and_writer(stored)

    @inlined
    def multiply(acc, given, j, r, s, pixel):
        acc[r * columns + s] += given[j] * pixel

    add = over_window(rows, columns, step, stored, multiply)
    tree = block_sums(taps)

    def body(x, gy, sums, work):
        partial = cuda.shared.array(room, float32)
        acc, given = cuda.local.array(taps, float32), cuda.local.array(ROWS, float32)
        line = cuda.local.array(columns, float32)
        part = quotient(int32(cuda.blockIdx.x), work.by_results, work.by_results_shift)
        k = int32(int32(cuda.blockIdx.x) - part * work.results)
        c = quotient(k, work.by_filters, work.by_filters_shift)
        for t in range(taps):
            acc[t] = float32(0)
        e = int32(part * work.chunk + int32(cuda.threadIdx.x))
        last = int32(min(part * work.chunk + work.chunk, work.terms))
        while e < last:
            rest = quotient(e, work.by_row, work.by_row_shift)
            n = quotient(rest, work.by_strips, work.by_strips_shift)
            p, q = int32((rest - n * work.strips) * ROWS), int32(e - rest * work.out_width)
            count = int32(work.out_height - p)
            come = int32(((n * work.results + k) * work.out_height + p) * work.out_width + q)
            for j in range(ROWS):
                given[j] = read(gy[int32(come + j * work.out_width)]) if j < count else float32(0)
            h, v = int32(p * step - work.top), int32(q * step - work.left)
            at = int32(((n * work.sources + c) * work.height + h) * work.width + v)
            add(x, at, h, v, count, work, given, line, acc)  # no zero of gy's may meet an infinity
            e = int32(e + THREADS)
        tree(partial, acc)
        me = uint32(cuda.threadIdx.x)
        if me < uint32(taps):
            sums[int32(int32(cuda.blockIdx.x) * taps + int32(me))] = partial[me * uint32(PITCH)]

    name = named(f"weight_grad-{rows}x{columns}-step{step}", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 2, "float32", Work), THREADS)
