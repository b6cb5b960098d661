"""CUDA kernels of depthwise convolution with any kernel, stride and dilation, over images in both layouts.

Forward and input gradient: a thread has one pixel of a channel in some images, and loops over its taps. Neighbouring threads
have neighbouring pixels, channels-last neighbouring channels. Weight gradient: a block has some taps and a part of the
pixels, of one filter, whose pixels its threads share; channels-last of a filter for each lane of a warp.
"""

from __future__ import annotations

from ..cuda.kernel import CudaKernel
from ..cuda.language import cuda, float32, inlined, int32, int64, quotient, thread, uint32
from ..cuda.stored import pointer, reader_and_writer
from .depthwise_kernels import Work, named, place
from .window_lines import LANES, PITCH, THREADS, WARPS, block_sums, finisher, lane_sums

TOGETHER = 4  # images of a thread
TAPS = 8  # of a block of the weight gradient


@inlined
def _any_place(work):
    """This thread's part of the batch, plane of the result, row and column."""
    if work.last:
        i = thread()
        rest = quotient(i, work.by_results, work.by_results_shift)
        line = quotient(rest, work.by_row, work.by_row_shift)
        part = quotient(line, work.by_strips, work.by_strips_shift)
        found = (
            part,
            int32(i - rest * work.results),
            int32(line - part * work.strips),
            int32(rest - line * work.out_width),
        )
    else:
        found = place(work)
    return found


@inlined
def _first(n, c, work):
    """Where channel c of image n of the source begins."""
    return int32(n * work.sources * work.height * work.width + c * work.plane)


@inlined
def _result(n, k, p, q, work):
    """Where pixel (p, q) of channel k of image n of the result lies."""
    first = int32(n * work.results * work.out_height * work.out_width + k * work.out_plane)
    return int32(first + (p * work.out_width + q) * work.out_pixel)


def forward_kernel(stored: str) -> CudaKernel:
    """As :func:`.depthwise_kernels.correlation`, for any kernel."""
    (read, _), finish = reader_and_writer(stored), finisher(stored)

    def body(x, w, bias, residual, y, work):
        acc = cuda.local.array(TOGETHER, float32)
        if thread() < work.terms:
            part, k, p, q = _any_place(work)
            n = int32(part * TOGETHER)
            plane = _first(n, quotient(k, work.by_filters, work.by_filters_shift), work)
            image, weight = (
                int64(work.sources) * int64(work.height * work.width),
                int32(k * work.kernel_h * work.kernel_w),
            )
            more = read(bias[k]) if work.biased else float32(0)
            for j in range(TOGETHER):
                acc[j] = more
            for r in range(work.kernel_h):
                h = int32(p * work.stride_h - work.top + r * work.dilation_h)
                if uint32(h) < uint32(work.height):
                    for s in range(work.kernel_w):
                        v = int32(q * work.stride_w - work.left + s * work.dilation_w)
                        if uint32(v) < uint32(work.width):
                            at = int64(int32(plane + (h * work.width + v) * work.pixel))
                            factor = read(w[int32(weight + r * work.kernel_w + s)])
                            for j in range(TOGETHER):
                                acc[j] += factor * (read(x[at + j * image]) if int32(n + j) < work.n else float32(0))
            to = int64(_result(n, k, p, q, work))
            for j in range(TOGETHER):
                if int32(n + j) < work.n:
                    finish(acc[j], residual, y, to, work)
                to = to + int64(work.results) * int64(work.out_height * work.out_width)

    return CudaKernel(named("forward", stored), body, (*(pointer(stored),) * 5, Work), THREADS)


def input_kernel(stored: str) -> CudaKernel:
    """gx[c, h, v] = Σ over the filters k of c and the taps (r, s) that meet it of w[k, r, s] times their pixel of gy."""
    read, write = reader_and_writer(stored)

    def body(gy, w, gx, work):
        acc = cuda.local.array(TOGETHER, float32)
        if thread() < work.terms:
            part, c, h, v = _any_place(work)
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
                                factor = read(w[int32((k * work.kernel_h + r) * work.kernel_w + s)])
                                at = int64(int32(_first(n, k, work) + (p * work.width + q) * work.pixel))
                                for j in range(TOGETHER):
                                    given = read(gy[at + j * image]) if int32(n + j) < work.n else float32(0)
                                    acc[j] += factor * given
            to = int64(_result(n, c, h, v, work))
            for j in range(TOGETHER):
                if int32(n + j) < work.n:
                    gx[to] = write(acc[j])
                to = to + int64(work.results) * int64(work.out_height * work.out_width)

    return CudaKernel(named("input_grad", stored), body, (*(pointer(stored),) * 3, Work), THREADS)


@inlined
def _tap(number, work):
    """How far below and beside the first pixel of its window a tap lies."""
    r = int32(uint32(number) // uint32(work.kernel_w))
    return int32(r * work.dilation_h - work.top), int32((number - r * work.kernel_w) * work.dilation_w - work.left)


def weight_kernel(stored: str, last: bool) -> CudaKernel:
    """gw[k, r, s] = Σ over images and pixels of gy times the pixel of x that the tap meets; parts of it, to be added up.

    Block = (part · filters, or ``last`` lines of LANES filters, + filter) · groups of TAPS taps + group.
    """
    (read, _), (tree, (share, total)) = reader_and_writer(stored), (block_sums(TAPS), lane_sums(TAPS, LANES))
    room, shared_by = TAPS * PITCH, WARPS if last else THREADS

    def body(x, gy, sums, work):
        partial = cuda.shared.array(room, float32)
        acc = cuda.local.array(TAPS, float32)
        down, across = cuda.local.array(TAPS, int32), cuda.local.array(TAPS, int32)
        me = uint32(cuda.threadIdx.x)
        taps = int32(work.kernel_h * work.kernel_w)
        groups = int32(uint32(taps + TAPS - 1) // uint32(TAPS))
        rest = int32(uint32(cuda.blockIdx.x) // uint32(groups))
        first = int32(int32(int32(cuda.blockIdx.x) - rest * groups) * TAPS)
        if last:
            wide = int32(uint32(work.results + LANES - 1) // uint32(LANES))
            part = int32(uint32(rest) // uint32(wide))
            k0 = int32((rest - part * wide) * LANES)
            k, e = int32(k0 + int32(me % uint32(LANES))), int32(me // uint32(LANES))
        else:
            part = quotient(rest, work.by_results, work.by_results_shift)
            k0 = int32(rest - part * work.results)
            k, e = k0, int32(me)
        c = quotient(k, work.by_filters, work.by_filters_shift)
        for t in range(TAPS):
            acc[t] = float32(0)
            down[t], across[t] = _tap(int32(first + t), work)
        e = int32(part * work.chunk + e)
        end = int32(min(part * work.chunk + work.chunk, work.terms)) if k < work.results else int32(0)
        while e < end:
            line = quotient(e, work.by_row, work.by_row_shift)
            n = quotient(line, work.by_strips, work.by_strips_shift)
            p, q = int32(line - n * work.out_height), int32(e - line * work.out_width)
            given, plane = read(gy[_result(n, k, p, q, work)]), _first(n, c, work)
            for t in range(TAPS):
                h, v = int32(p * work.stride_h + down[t]), int32(q * work.stride_w + across[t])
                inside = uint32(h) < uint32(work.height) and uint32(v) < uint32(work.width)
                acc[t] += given * (read(x[int32(plane + (h * work.width + v) * work.pixel)]) if inside else float32(0))
            e = int32(e + shared_by)
        if last:
            share(partial, acc)
            i = me
            while i < uint32(TAPS * LANES):
                tap, filter = int32(first + int32(i // uint32(LANES))), int32(k0 + int32(i % uint32(LANES)))
                if tap < taps and filter < work.results:
                    sums[int32((part * work.results + filter) * taps + tap)] = total(partial, i)
                i = uint32(i + uint32(THREADS))
        else:
            tree(partial, acc)
            if me < uint32(min(taps - first, TAPS)):
                sums[int32(rest * taps + first + int32(me))] = partial[me * uint32(PITCH)]

    name = named(f"{'last-' * last}weight_grad", stored)
    return CudaKernel(name, body, (*(pointer(stored),) * 2, "float32", Work), THREADS)
