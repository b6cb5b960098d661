"""CUDA kernels of depthwise convolution: unrolled for common kernels, and for any kernel.

Unrolled, a thread computes some rows of its column from a window in registers, line by line: a pixel is read once for all of
them. It does so for the same place in several images, so that its weights stay in registers and what its taps meet is found
once. Neighbouring threads have neighbouring columns: reads and writes lie side by side, and the first-level cache serves the
pixels that they share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..cuda.kernel import CudaKernel
from ..cuda.language import anew, cuda, float32, inlined, int32, int64, quotient, thread, uint32

THREADS = 128
LEVELS = 7  # of a tree over them
ROWS = 4  # of y that a thread computes from one window
PITCH = THREADS + 1  # between two taps' sums of a block: apart from each other in the banks
TOGETHER = 4  # images of a thread, where the kernel is not unrolled
TAPS = 8  # of a block of the weight gradient, where the kernel is not unrolled


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


@inlined
def _place(work):
    """This thread's part of the batch, plane of the result, strip and column."""
    i = thread()
    rest = quotient(i, work.by_row, work.by_row_shift)
    column = int32(i - rest * work.out_width)
    plane = quotient(rest, work.by_strips, work.by_strips_shift)
    part = quotient(plane, work.by_results, work.by_results_shift)
    return part, int32(plane - part * work.results), int32(rest - plane * work.strips), column


@inlined
def finish(value, residual, y, at, work):
    """Add the residual, go through the ReLU, write."""
    if work.added:
        value += residual[at]
    if work.relu:
        value = float32(0) if value <= float32(0) else value
    y[at] = value


@inlined
def load_line(line, x, at, h, v, count, work):
    """line[s] = the pixel at row h, column v + s, which lies at x[at + s] unless it is padding."""
    for s in range(count):
        inside = uint32(h) < uint32(work.height) and uint32(v + s) < uint32(work.width)
        line[s] = x[at + s] if inside else float32(0)


# --- unrolled


def correlation(rows: int, columns: int, step: int) -> CudaKernel:
    """y[p, q] = bias + Σ w[r, s] · x[p · step - top + r, q · step - left + s] + residual, through the ReLU."""
    taps, reach = rows * columns, (ROWS - 1) * step + rows

    def lines(first: int, last: int) -> Callable:
        """Some of the window's lines; one loop over all of them is more than the compiler unrolls."""

        @inlined
        def add(x, at, h, v, work, weights, line, acc):
            for a in range(first, last):
                load_line(line, x, int64(int32(at + a * work.width)), int32(h + a), v, columns, work)
                for j in range(ROWS):
                    if 0 <= a - j * step < rows:
                        for s in range(columns):
                            acc[j] += weights[(a - j * step) * columns + s] * line[s]

        return add

    upper, lower = lines(0, reach // 2), lines(reach // 2, reach)

    def body(x, w, bias, residual, y, work):
        weights, line = cuda.local.array(taps, float32), cuda.local.array(columns, float32)
        acc = cuda.local.array(ROWS, float32)
        if thread() < work.terms:
            part, k, strip, q = _place(work)
            p, v = int32(strip * ROWS), int32(q * step - work.left)
            for t in range(taps):
                weights[t] = w[int32(k * taps + work.first_tap + t * work.tap_step)]
            more = bias[k] if work.biased else float32(0)
            c = quotient(k, work.by_filters, work.by_filters_shift)
            n = int32(part * work.chunk)
            end = int32(min(n + work.chunk, work.n))
            while n < end:
                h = anew(int32(p * step - work.top))  # which lines are padding would else be kept in registers
                at = int32(((n * work.sources + c) * work.height + h) * work.width + v)
                for j in range(ROWS):
                    acc[j] = more
                upper(x, at, h, v, work, weights, line, acc)
                lower(x, at, h, v, work, weights, line, acc)
                to = int32(((n * work.results + k) * work.out_height + p) * work.out_width + q)
                for j in range(ROWS):
                    if int32(p + j) < work.out_height:
                        finish(acc[j], residual, y, to, work)
                    to = int32(to + work.out_width)
                n = int32(n + 1)

    return CudaKernel(
        f"conv-depthwise-correlation-{rows}x{columns}-step{step}", body, (*("float32",) * 5, Work), THREADS
    )


def spread(rows: int, columns: int, step: int) -> CudaKernel:
    """gx[h, v] = Σ w[r, s] · gy[(h + top - r) / step, (v + left - s) / step], where both are whole.

    A thread's rows begin where h + top is a multiple of the step, so that each has taps that are known here. Which taps its
    column has is found once.
    """
    taps, tall = rows * columns, ROWS * step
    below, beside = -(-rows // step), -(-columns // step)  # taps that a row and a column may have
    reach, held = ROWS + below - 1, rows * beside

    def body(gy, w, gx, work):
        weights, line = cuda.local.array(held, float32), cuda.local.array(beside, float32)
        acc = cuda.local.array(tall, float32)
        if thread() < work.terms:
            part, c, strip, v = _place(work)
            h = int32(strip * tall - int32(uint32(work.top) % uint32(step)))
            p = int32(int32(uint32(h + work.top) // uint32(step)) - (below - 1))
            q, s0 = int32(uint32(v + work.left) // uint32(step)), int32(uint32(v + work.left) % uint32(step))
            for r in range(rows):
                for i in range(beside):
                    s = int32(s0 + i * step)
                    weights[r * beside + i] = w[int32(c * taps + r * columns + s)] if s < columns else float32(0)
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
                        line[i] = gy[from_row - i] if inside and s0 + i * step < columns else float32(0)
                    for j in range(tall):
                        r = j % step + (j // step + below - 1 - a) * step
                        if 0 <= r < rows:
                            for i in range(beside):
                                acc[j] += weights[r * beside + i] * line[i]
                to = int32(((n * work.results + c) * work.out_height + h) * work.out_width + v)
                for j in range(tall):
                    if uint32(h + j) < uint32(work.out_height):
                        gx[to] = acc[j]
                    to = int32(to + work.out_width)
                n = int32(n + 1)

    return CudaKernel(f"conv-depthwise-spread-{rows}x{columns}-step{step}", body, (*("float32",) * 3, Work), THREADS)


def weight_kernel(rows: int, columns: int, step: int) -> CudaKernel:
    """gw[r, s] = Σ gy[p, q] · x[p · step - top + r, q · step - left + s] over images and pixels; a block for each part."""
    taps, reach = rows * columns, (ROWS - 1) * step + rows
    room = taps * PITCH

    def lines(first: int, last: int) -> Callable:
        @inlined
        def add(x, at, h, v, count, work, given, line, acc):
            for a in range(first, last):
                load_line(line, x, int64(int32(at + a * work.width)), int32(h + a), v, columns, work)
                for j in range(ROWS):
                    if 0 <= a - j * step < rows and j < count:  # no zero of gy's may meet an infinity
                        for s in range(columns):
                            acc[(a - j * step) * columns + s] += given[j] * line[s]

        return add

    upper, lower = lines(0, reach // 2), lines(reach // 2, reach)
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
                given[j] = gy[int32(come + j * work.out_width)] if j < count else float32(0)
            h, v = int32(p * step - work.top), int32(q * step - work.left)
            at = int32(((n * work.sources + c) * work.height + h) * work.width + v)
            upper(x, at, h, v, count, work, given, line, acc)
            lower(x, at, h, v, count, work, given, line, acc)
            e = int32(e + THREADS)
        tree(partial, acc)
        me = uint32(cuda.threadIdx.x)
        if me < uint32(taps):
            sums[int32(int32(cuda.blockIdx.x) * taps + int32(me))] = partial[me * uint32(PITCH)]

    return CudaKernel(
        f"conv-depthwise-weight_grad-{rows}x{columns}-step{step}", body, (*("float32",) * 3, Work), THREADS
    )


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


# --- any kernel


@inlined
def _first_image(source, c, work):
    """Where plane c of the first of a thread's images begins."""
    return int32((source * work.sources + c) * work.height * work.width)


def _forward_body(x, w, bias, residual, y, work):
    acc = cuda.local.array(TOGETHER, float32)
    if thread() < work.terms:
        part, k, p, q = _place(work)
        n = int32(part * TOGETHER)
        plane = _first_image(n, quotient(k, work.by_filters, work.by_filters_shift), work)
        image, weight = int64(work.sources) * int64(work.height * work.width), int32(k * work.kernel_h * work.kernel_w)
        more = bias[k] if work.biased else float32(0)
        for j in range(TOGETHER):
            acc[j] = more
        for r in range(work.kernel_h):
            h = int32(p * work.stride_h - work.top + r * work.dilation_h)
            if uint32(h) < uint32(work.height):
                for s in range(work.kernel_w):
                    v = int32(q * work.stride_w - work.left + s * work.dilation_w)
                    if uint32(v) < uint32(work.width):
                        at, factor = int64(int32(plane + h * work.width + v)), w[int32(weight + r * work.kernel_w + s)]
                        for j in range(TOGETHER):
                            acc[j] += factor * (x[at + j * image] if int32(n + j) < work.n else float32(0))
        to = int64(int32(((n * work.results + k) * work.out_height + p) * work.out_width + q))
        for j in range(TOGETHER):
            if int32(n + j) < work.n:
                finish(acc[j], residual, y, to, work)
            to = to + int64(work.results) * int64(work.out_height * work.out_width)


def _input_body(gy, w, gx, work):
    acc = cuda.local.array(TOGETHER, float32)
    if thread() < work.terms:
        part, c, h, v = _place(work)
        n = int32(part * TOGETHER)
        image = int64(work.sources) * int64(work.height * work.width)
        for j in range(TOGETHER):
            acc[j] = float32(0)
        for r in range(work.kernel_h):
            down = int32(h + work.top - r * work.dilation_h)
            p = quotient(down, work.by_stride_h, work.by_stride_h_shift) if down >= 0 else int32(-1)
            if uint32(p) < uint32(work.height) and int32(p * work.stride_h) == down:
                for s in range(work.kernel_w):
                    across = int32(v + work.left - s * work.dilation_w)
                    q = quotient(across, work.by_stride_w, work.by_stride_w_shift) if across >= 0 else int32(-1)
                    if uint32(q) < uint32(work.width) and int32(q * work.stride_w) == across:
                        for i in range(work.filters):
                            k = int32(c * work.filters + i)
                            factor = w[int32((k * work.kernel_h + r) * work.kernel_w + s)]
                            at = int64(int32(_first_image(n, k, work) + p * work.width + q))
                            for j in range(TOGETHER):
                                acc[j] += factor * (gy[at + j * image] if int32(n + j) < work.n else float32(0))
        to = int64(int32(((n * work.results + c) * work.out_height + h) * work.out_width + v))
        for j in range(TOGETHER):
            if int32(n + j) < work.n:
                gx[to] = acc[j]
            to = to + int64(work.results) * int64(work.out_height * work.out_width)


_TREE, _ROOM = block_sums(TAPS), TAPS * PITCH


def _weight_body(x, gy, sums, work):
    # a block for TAPS neighbouring taps of a filter, of each part
    partial = cuda.shared.array(_ROOM, float32)
    acc = cuda.local.array(TAPS, float32)
    down, across = cuda.local.array(TAPS, int32), cuda.local.array(TAPS, int32)
    taps = int32(work.kernel_h * work.kernel_w)
    groups = int32(uint32(taps + TAPS - 1) // uint32(TAPS))
    plane = int32(uint32(cuda.blockIdx.x) // uint32(groups))
    first = int32(int32(int32(cuda.blockIdx.x) - plane * groups) * TAPS)
    part = quotient(plane, work.by_results, work.by_results_shift)
    k = int32(plane - part * work.results)
    c = quotient(k, work.by_filters, work.by_filters_shift)
    for t in range(TAPS):
        tap = int32(first + t)
        r = int32(uint32(tap) // uint32(work.kernel_w))
        acc[t] = float32(0)
        down[t] = int32(r * work.dilation_h - work.top)
        across[t] = int32((tap - r * work.kernel_w) * work.dilation_w - work.left)
    e = int32(part * work.chunk + int32(cuda.threadIdx.x))
    last = int32(min(part * work.chunk + work.chunk, work.terms))
    while e < last:
        rest = quotient(e, work.by_row, work.by_row_shift)
        n = quotient(rest, work.by_strips, work.by_strips_shift)
        p, q = int32(rest - n * work.out_height), int32(e - rest * work.out_width)
        given = gy[int32(((n * work.results + k) * work.out_height + p) * work.out_width + q)]
        plane_at = _first_image(n, c, work)
        for t in range(TAPS):
            h, v = int32(p * work.stride_h + down[t]), int32(q * work.stride_w + across[t])
            inside = uint32(h) < uint32(work.height) and uint32(v) < uint32(work.width)
            acc[t] += given * (x[int32(plane_at + h * work.width + v)] if inside else float32(0))
        e = int32(e + THREADS)
    _TREE(partial, acc)
    me = uint32(cuda.threadIdx.x)
    if me < uint32(min(taps - first, TAPS)):
        sums[int32(plane * taps + first + int32(me))] = partial[me * uint32(PITCH)]


FORWARD = CudaKernel("conv-depthwise-forward", _forward_body, (*("float32",) * 5, Work), THREADS)
INPUT_GRAD = CudaKernel("conv-depthwise-input_grad", _input_body, (*("float32",) * 3, Work), THREADS)
WEIGHT_GRAD = CudaKernel("conv-depthwise-weight_grad", _weight_body, (*("float32",) * 3, Work), THREADS)
