"""Stage primitives: each instruction that the kernels live on, alone in a kernel of a warp or a warpgroup, beside NumPy.

What a later stage finds wrong in a whole kernel is told here by name. Every check takes the function that brings a NumPy
array to where kernels run and the one that brings it back, so that the tests can hold the interpreter to the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...kernels.cuda import kernel as registry
from ...kernels.cuda import launch
from . import stage
from .primitive_bodies import BODIES, DEEP, PRODUCT_COLUMNS

LANES = np.arange(32)
G, T = LANES // 4, LANES % 4  # how fragments are spread over a warp
STAMP = hashlib.sha256(Path(__file__).with_name("primitive_bodies.py").read_bytes()).hexdigest()[:8]


class Place(NamedTuple):
    """Where kernels run."""

    there: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray]


@cache
def kernel(name: str) -> registry.CudaKernel:
    """The kernel of a primitive, which is no part of the library's own."""
    body, kinds, threads, shared, targets = BODIES[name]
    made = registry.CudaKernel(f"primitive-{name}-{STAMP}", body, kinds, threads, shared, targets)
    del registry.KERNELS[made.name]
    return made


def run(name: str, place: Place, out: np.ndarray, *arrays: np.ndarray, numbers: tuple[int, ...] = ()) -> np.ndarray:
    """What the kernel of a primitive writes."""
    result = place.there(out)
    kernel(name)(1, *map(place.there, arrays), result, *numbers)
    return place.back(result)


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 rounded to this many fraction bits, to nearest, ties to even (TF32's ties go away from zero)."""
    drop = 23 - bits
    found = values.view(np.uint32).astype(np.uint64)
    half = np.uint64((1 << (drop - 1)) - 1)
    up = half + ((found >> np.uint64(drop)) & np.uint64(1)) if bits != 10 else np.uint64(1 << (drop - 1))
    kept = ((found + up) >> np.uint64(drop)) << np.uint64(drop)
    return kept.astype(np.uint32).view(np.float32)


def bits_of(values: np.ndarray, kind: str) -> np.ndarray:
    """The bits of values that are halves of a kind already, as uint16."""
    if kind == "float16":
        return values.astype(np.float16).view(np.uint16)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers: their products and sums are exact in every precision here."""
    return rng.integers(-8, 9, shape).astype(np.float32)


def exact_operands(rng: np.random.Generator) -> Iterator[tuple[Callable[..., np.ndarray], np.float32]]:
    """Operands of TF32, and a factor that is to change nothing: whole numbers and one; then powers of two and nearly one step
    of TF32 more, which of both operands is cut off, not rounded."""
    yield partial(whole, rng), np.float32(1)
    powers = np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8], "f4")
    yield lambda *shape: rng.choice(powers, shape), np.float32(1 + 2.0**-10 - 2.0**-23)


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Raise AssertionError, saying where, unless the two are equal."""
    wrong = np.argwhere(~((got == want) | ((got != got) & (want != want))))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise AssertionError(
            f"{len(wrong)} of {got.size} values are wrong, the first at {at}: {got[at]}, not {want[at]}"
        )


def check_copy(place: Place, rng: np.random.Generator) -> None:
    x = whole(rng, 32)
    same(run("copy", place, np.full(32, np.nan, "f4"), x), x)


def check_shared(place: Place, rng: np.random.Generator) -> None:
    """More than 48 KB, which the driver has to be asked for."""
    x = whole(rng, 64)
    same(run("shared", place, np.full(64, np.nan, "f4"), x), x[::-1])


def check_copy16(place: Place, rng: np.random.Generator) -> None:
    x = rng.integers(1, 2**16, 256).astype(np.uint16)
    want = x.reshape(32, 8)[::-1] * (LANES % 4 != 2)[:, None]
    same(run("copy16", place, np.zeros(256, "u2"), x), want.reshape(-1).astype(np.uint16))


def check_ldmatrix(place: Place, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    pair = lambda m, row, column: m[:, row, column].astype(np.uint32)  # noqa: E731
    for name, m in (("ldmatrix", x), ("ldmatrix-trans", x.transpose(0, 2, 1))):
        want = pair(m, G, 2 * T) | pair(m, G, 2 * T + 1) << np.uint32(16)
        got = run(name, place, np.zeros(128, "i8"), x.reshape(-1))
        same(got.reshape(4, 32), want.astype(np.int64))


def check_tf32(place: Place, rng: np.random.Generator) -> None:
    """Rounding, on what is no tie and what is; then products."""
    x = (rng.standard_normal(32) * 10.0 ** rng.uniform(-6, 6, 32)).astype("f4")
    x[:4] = (1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11, 0)
    bits = (
        run("round-tf32", place, np.zeros(32, "i8"), x) & 0xFFFFE000
    )  # nothing is said about the 13 bits that TF32 lacks
    same(bits, rounded(x, 10).view(np.uint32).astype(np.int64))
    for make, factor in exact_operands(rng):
        a, b = make(16, 8), make(8, 8)
        got = run("mma-tf32", place, np.zeros(128, "f4"), *((m * factor).reshape(-1) for m in (a, b)))
        same(got.reshape(16, 8), a @ b.T)


def _check_product(kind: str) -> Callable[[Place, np.random.Generator], None]:
    def check(place: Place, rng: np.random.Generator) -> None:
        a, b = whole(rng, 16, 16), whole(rng, 8, 16)
        given = (bits_of(m, kind).reshape(-1) for m in (a, b))
        same(run(f"mma-{kind}", place, np.zeros(128, "f4"), *given).reshape(16, 8), a @ b.T)

    return check


def _check_rounding(kind: str) -> Callable[[Place, np.random.Generator], None]:
    def check(place: Place, rng: np.random.Generator) -> None:
        bits, tie = (10, 2.0**-11) if kind == "float16" else (7, 2.0**-8)
        x = (rng.standard_normal(32) * 10.0 ** rng.uniform(-3, 3, 32)).astype("f4")
        x[:4] = (1 + tie, 1 + 3 * tie, -1 - tie, 0)
        want = x.astype(np.float16).astype("f4") if kind == "float16" else rounded(x, bits)
        same(run(f"round-{kind}", place, np.zeros(32, "f4"), x), want)

    return check


def _check_warpgroup(kind: str, turned: bool = False) -> Callable[[Place, np.random.Generator], None]:
    def check(place: Place, rng: np.random.Generator) -> None:
        a, b = whole(rng, 64, 64), whole(rng, PRODUCT_COLUMNS, 64)
        given = (bits_of(m.T if turned else m, kind).reshape(-1) for m in (a, b))
        got = run(f"wgmma-{'turned-' if turned else ''}{kind}", place, np.zeros(64 * PRODUCT_COLUMNS, "f4"), *given)
        same(got.reshape(64, PRODUCT_COLUMNS), a @ b.T)

    return check


def _check_warpgroup_tf32(in_registers: bool = False) -> Callable[[Place, np.random.Generator], None]:
    def check(place: Place, rng: np.random.Generator) -> None:
        for make, factor in exact_operands(rng):
            a, b = make(64, 32), make(PRODUCT_COLUMNS, 32)
            given = ((m * factor).reshape(-1) for m in (a.T if in_registers else a, b))
            name = "wgmma-registers-tf32" if in_registers else "wgmma-tf32"
            got = run(name, place, np.zeros(64 * PRODUCT_COLUMNS, "f4"), *given)
            same(got.reshape(64, PRODUCT_COLUMNS), a @ b.T)

    return check


# By the compute capability that they need.
CHECKS: dict[int, dict[str, Callable[[Place, np.random.Generator], None]]] = {
    70: {"loads and stores": check_copy, f"{DEEP // 1024} KB of shared memory": check_shared},
    80: {
        "cp.async of 16 bytes": check_copy16,
        "ldmatrix": check_ldmatrix,
        "mma.sync TF32": check_tf32,
        "rounding to float16": _check_rounding("float16"),
        "rounding to bfloat16": _check_rounding("bfloat16"),
        "mma.sync float16": _check_product("float16"),
        "mma.sync bfloat16": _check_product("bfloat16"),
    },
    90: {
        "wgmma float16": _check_warpgroup("float16"),
        "wgmma bfloat16": _check_warpgroup("bfloat16"),
        "wgmma float16 transposed": _check_warpgroup("float16", turned=True),
        "wgmma bfloat16 transposed": _check_warpgroup("bfloat16", turned=True),
        "wgmma TF32": _check_warpgroup_tf32(),
        "wgmma TF32 from registers": _check_warpgroup_tf32(in_registers=True),
    },
}


def _told(check: Callable[[Place, np.random.Generator], None], place: Place, checks: dict[str, str], name: str) -> None:
    check(place, np.random.default_rng(7))
    checks[name] = "right"


def work(report: stage.Report) -> None:
    import cupy

    place = Place(cupy.asarray, cupy.asnumpy)
    capability = launch.device_capability() or 0
    report.begin(capability=capability, checks={})
    for needed, checks in CHECKS.items():
        for name, check in checks.items():
            if capability < needed or (needed == 90 and capability != 90):
                report.data["checks"][name] = f"needs compute capability {needed / 10}"
                continue
            if name in report.data["checks"]:
                continue
            report.data["checks"][name] = "wrong"  # until it is over: the device may be lost
            report.attempt(name, partial(_told, check, place, report.data["checks"], name))
            report.save()


if __name__ == "__main__":
    stage.run("primitives", work, patience=25)
