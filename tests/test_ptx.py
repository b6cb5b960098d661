"""The PTX interpreter itself: instructions against NumPy, and bugs put into good kernels, each of which it must notice."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pytest

from convkern.kernels.conv import reference
from convkern.kernels.cuda import compiler, launch
from convkern.kernels.spec import ConvSpec

from . import ptx
from .gpu import compiled, needs_compiler, parameters
from .ptx.program import split_operands

HEAD = """
.version 8.0
.target sm_80
.address_size 64
.shared .align 16 .b8 room[{shared}];
.visible .entry made(.param .u64 made_0, .param .u64 made_1, .param .u32 made_2)
{{
    .reg .pred %p<9>;
    .reg .b32 %r<30>;
    .reg .f32 %f<30>;
    .reg .b64 %rd<20>;
    ld.param.u64 %rd1, [made_0];
    ld.param.u64 %rd2, [made_1];
    ld.param.u32 %r1, [made_2];
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
"""


def made(body: str, shared: int = 1024) -> str:
    """A kernel (x, y, number) in which rd4 and rd5 are the addresses of this thread's x and y, r2 its index."""
    return HEAD.format(shared=shared) + body + "\n    ret;\n}\n"


def lane_results(body: str, x: np.ndarray, kind: str = "u4", threads: int = 32, number: int = 0) -> np.ndarray:
    y = np.zeros(threads, kind)
    ptx.run(ptx.Program(made(body)), 1, threads, (x, y, np.int32(number)))
    return y


# --- instructions


def test_operands_are_split_outside_of_brackets():
    assert split_operands("{%f1, %f2}, [%r1+4], 16") == ("{%f1, %f2}", "[%r1+4]", "16")


def negative(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


CASES: dict[str, Any] = {
    "add.s32": lambda a, b: a + b,
    "sub.s32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32,
    "mul.hi.s32": lambda a, b: negative(a) * negative(b) >> 32,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "min.s32": lambda a, b: min(negative(a), negative(b)),
    "max.u32": max,
    "shl.b32": lambda a, b: a << b if b < 32 else 0,
    "shr.u32": lambda a, b: a >> b if b < 32 else 0,
    "shr.s32": lambda a, b: negative(a) >> min(b, 31),
    "div.u32": lambda a, b: a // b if b else 2**32 - 1,
    "rem.u32": lambda a, b: a % b if b else 2**32 - 1,
    "div.s32": lambda a, b: int(negative(a) / negative(b)) if b else -1,
    "rem.s32": lambda a, b: negative(a) - negative(b) * int(negative(a) / negative(b)) if b else -1,
}


@pytest.mark.parametrize("opcode", CASES)
def test_integer_instructions(opcode):
    values = np.array([0, 1, 2, 7, 31, 32, 33, 100, 2**31 - 1, 2**31, 2**32 - 5, 2**32 - 1, 12345, 3, 65536, 9], "u4")
    x = np.repeat(values, 2)
    for number in (0, 1, 3, 5, 31, 32, 40, 2**31 - 1, -3):
        y = lane_results(
            f"ld.global.u32 %r3, [%rd4]; {opcode} %r4, %r3, %r1; st.global.u32 [%rd5], %r4;", x, number=number
        )
        want = [CASES[opcode](int(a), number % 2**32) % 2**32 for a in x]
        np.testing.assert_array_equal(y, np.array(want, "u4"), f"{opcode} by {number}")


def test_float_instructions_and_comparisons():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(32).astype("f4")
    x[:4] = np.nan, np.inf, -0.0, 0.0
    y = lane_results(
        "ld.global.f32 %f1, [%rd4]; fma.rn.f32 %f2, %f1, %f1, %f1; div.rn.f32 %f3, %f2, 0f40400000;"
        " st.global.f32 [%rd5], %f3;", x, "f4",
    )  # fmt: skip
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(y, (wide * wide + wide).astype("f4") / np.float32(3))
    for name, of_nan in (("lt", 0), ("ltu", 1), ("ne", 0), ("neu", 1), ("geu", 1)):
        y = lane_results(
            f"ld.global.f32 %f1, [%rd4]; setp.{name}.f32 %p1, %f1, 0f00000000; selp.u32 %r3, 1, 0, %p1;"
            " st.global.u32 [%rd5], %r3;", x,
        )  # fmt: skip
        compare = {"lt": np.less, "ne": np.not_equal, "ge": np.greater_equal}[name[:2]]
        assert y[0] == of_nan
        np.testing.assert_array_equal(y[1:], compare(x[1:], 0))


def test_wide_products_and_bit_fields():
    x = np.arange(32, dtype="u4") * 0x1234567
    y = lane_results(
        "ld.global.u32 %r3, [%rd4]; mul.wide.s32 %rd6, %r3, %r1; shr.u64 %rd7, %rd6, 7; cvt.u32.u64 %r4, %rd7;"
        " bfi.b32 %r5, %r3, %r4, 8, 5; st.global.u32 [%rd5], %r5;", x, number=-77,
    )  # fmt: skip
    for a, got in zip(x, y, strict=True):
        low = (negative(int(a)) * -77 % 2**64 >> 7) % 2**32
        assert got == (low & ~(31 << 8)) | ((int(a) & 31) << 8)


def test_lanes_part_and_meet_again():
    y = lane_results(
        """
    setp.lt.u32 %p1, %r2, 5;
    mov.u32 %r3, 0;
    @%p1 bra $FEW;
$LOOP:
    add.s32 %r3, %r3, 1;
    setp.lt.u32 %p2, %r3, %r2;
    @%p2 bra $LOOP;
    bra.uni $MEET;
$FEW:
    mov.u32 %r3, 1000;
$MEET:
    add.s32 %r3, %r3, 1;
    st.global.u32 [%rd5], %r3;
""",
        np.zeros(32, "u4"),
    )
    np.testing.assert_array_equal(y, [1001 if i < 5 else i + 1 for i in range(32)])


def test_tensor_core_products():
    """Against a matrix product, with the fragments laid out as the ISA's figures show them."""
    rng = np.random.default_rng(2)
    a, b = rng.integers(-8, 9, (16, 16)).astype("f2"), rng.integers(-8, 9, (16, 8)).astype("f2")
    pair = lambda low, high: struct.unpack("<I", np.array([low, high], "f2").tobytes())[0]  # noqa: E731
    x = np.zeros((6, 32), "u4")
    for lane in range(32):
        g, t = divmod(lane, 4)
        for i, (row, k) in enumerate(((g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8))):
            x[i, lane] = pair(a[row, k], a[row, k + 1])
        for i, k in enumerate((2 * t, 2 * t + 8)):
            x[4 + i, lane] = pair(b[k, g], b[k + 1, g])
    y = np.zeros((4, 32), "f4")
    loads = "".join(f"ld.global.u32 %r{10 + i}, [%rd4+{128 * i}];" for i in range(6))
    stores = "".join(f"st.global.f32 [%rd5+{128 * i}], %f{5 + i};" for i in range(4))
    body = f"""{loads}
    mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F800000; mov.f32 %f3, 0f3F800000; mov.f32 %f4, 0f3F800000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%f5,%f6,%f7,%f8}}, {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}},
        {{%f1,%f2,%f3,%f4}};
    {stores}"""
    ptx.run(ptx.Program(made(body)), 1, 32, (x, y, np.int32(0)))
    want = a.astype("f4") @ b.astype("f4") + 1
    for lane in range(32):
        g, t = divmod(lane, 4)
        for i, (row, column) in enumerate(((g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1))):
            assert y[i, lane] == want[row, column]


def test_unknown_instructions_are_refused():
    with pytest.raises(NotImplementedError, match="brev"):
        lane_results("brev.b32 %r3, %r2;", np.zeros(32, "u4"))
    with pytest.raises(ValueError, match="uses local memory"):
        ptx.Program(made(".local .align 4 .b8 depot[16];"))


# --- bugs in a kernel that Numba compiled

SPEC = ConvSpec(1, 5, 33, 1, (6, 23), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (6, 23))


def unchanged(text: str) -> str:
    return text


def convolve(change: Any = unchanged) -> None:
    """Run the forward row in float32 with a change in its PTX, and compare."""
    from convkern.kernels.conv.cuda_direct import forward

    rng = np.random.default_rng(3)
    x, w = (rng.integers(-4, 5, shape).astype("f4") for shape in (SPEC.x_shape, SPEC.w_shape))
    y = np.full(SPEC.y_shape, np.nan, "f4")

    def launcher(kernel: Any, blocks: int, args: tuple[Any, ...]) -> None:
        text = compiled(kernel, "sm_80").read_text()
        changed = change(text)
        if change is not unchanged:
            assert changed != text
        code = ptx.Program(changed)
        ptx.run(code, blocks, kernel.threads, parameters(code, kernel, args), kernel.shared)

    previous, launch.launcher = launch.launcher, launcher
    try:
        forward(x, w, np.empty(0, "f4"), SPEC, np.empty(0, "u1"), y)
    finally:
        launch.launcher = previous
    np.testing.assert_array_equal(y, reference.forward(x, w, None, SPEC))


def first(pattern: str, replacement: str, count: int = 1) -> Any:
    return lambda text: re.sub(pattern, replacement, text, count=count, flags=re.S)


BUGS = {
    "no barrier": (first(r"bar\.sync\s+0;", "", 0), "race in shared memory"),
    "load beyond the end": (first(r"(ld\.global\.f32\s+%f\d+, \[%rd\d+)\]", r"\1+4000000]"), "out of bounds"),
    "load before the start": (
        first(r"(ld\.global\.f32\s+%f\d+, \[%rd\d+)\]", r"\1+-4000000]"),
        "out of bounds|in no array",
    ),
    "store beyond the end": (first(r"(st\.global\.f32\s+\[%rd\d+)\]", r"\1+4000000]"), "out of bounds"),
    "misaligned load": (first(r"(ld\.global\.f32\s+%f\d+, \[%rd\d+)\]", r"\1+2]"), "misaligned 4-byte access"),
    "misaligned vector": (
        first(r"(ld\.shared\.v4\.f32[^\[]*\[%r\w+)\]", r"\1+4]"),
        "misaligned 16-byte access to shared",
    ),
    "shared store out of bounds": (
        first(r"(st\.shared\.f32\s+\[%r\w+)(?:\+\d+)?\]", r"\1+60000]"),
        "shared memory out of bounds",
    ),
    "a missing store": (first(r"st\.shared\.f32[^;]*;", ""), "nobody wrote"),
    "blocks that write the same": (first(r"%ctaid\.x", "0", 0), "two threads write the same global address"),
}


HALF_SPEC = ConvSpec(1, 40, 70, 1, (6, 23), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (6, 23))

HALF_BUGS = {
    "no barrier": (first(r"bar\.sync\s+0;", "", 0), "race in shared memory"),
    "no wait": (first(r"cp\.async\.wait_group 1;", ""), "has not delivered: a wait is missing"),
    "a wait for too few": (first("wait_group 1", "wait_group 2"), "has not delivered: a wait is missing"),
    "copies beyond the end": (first(r"(cp\.async\.cg[^;]*), \[(%rd\d+)\]", r"\1, [\2+4000000]"), "out of bounds"),
    "copies misaligned": (first(r"(cp\.async\.cg[^;]*), \[(%rd\d+)\]", r"\1, [\2+2]"), "misaligned 16-byte access"),
    "padding read from outside": (first(r"(cp\.async\.cg[^;]*\]), 16, %r\d+;", r"\1, 16, 16;", 0), None),
    "no commit": (first(r"cp\.async\.commit_group;", ""), "has not delivered: a wait is missing"),
    "a matrix beyond the end": (first(r"(ldmatrix[^\[]*\[%r\d+)\]", r"\1+200000]"), "shared memory out of bounds"),
    "another matrix": (first(r"(ldmatrix[^\[]*\[%r\d+)\]", r"\1+16]"), None),
    "matrices turned": (first(r"m8n8\.x4\.shared", "m8n8.x4.trans.shared"), None),
}

# TF32's weight gradient by single warps, whose lanes load their elements of the first operand.
FLOAT_BUGS = {
    "no barrier": HALF_BUGS["no barrier"],
    "no wait": HALF_BUGS["no wait"],
    "another chunk": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+16]"), None),
    "the next line": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+128]"), None),
    "a load between words": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+2]"), "misaligned 4-byte access"),
    "a load beyond the end": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+200000]"), "shared memory out of bounds"),
    "rows and terms exchanged": (
        first(r"(mma[^{]*\{[^}]*\}, )\{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}", r"\1{\2,\4,\3,\5}"), None,
    ),
}  # fmt: skip

WARPGROUP_BUGS = {
    "no proxy fence": (first(r"fence\.proxy\.async[^;]*;", ""), "without a proxy fence"),
    "the fence before the wait": (
        first(r"cp\.async\.wait_group 1;(.*?)fence\.proxy\.async\.shared::cta;",
              r"fence.proxy.async.shared::cta;\1cp.async.wait_group 1;"),
        "without a proxy fence",
    ),
    "the fence behind the barrier": (
        first(r"fence\.proxy\.async\.shared::cta;(.*?)bar\.sync\s+0;", r"bar.sync 0;\1fence.proxy.async.shared::cta;"),
        "without a barrier since",
    ),
    "no barrier": (first(r"bar\.sync\s+0;", "", 0), "without a barrier since"),
    "no wait for copies": (first(r"cp\.async\.wait_group 1;", ""), "has not delivered: a wait is missing"),
    "no wgmma.fence": (first(r"wgmma\.fence\.sync\.aligned;", ""), "without a wgmma.fence since"),
    "no wait at the end": (first(r"wgmma\.wait_group\.sync\.aligned 0;", ""), "is read while a matrix product"),
    "no wait in the loop": (
        first(r"wgmma\.wait_group\.sync\.aligned 1;", ""), "writes what a matrix product under way reads",
    ),
    "a wait for too few": (
        first(r"wgmma\.wait_group\.sync\.aligned 1;", "wgmma.wait_group.sync.aligned 3;"),
        "writes what a matrix product under way reads",
    ),
    "no commit": (first(r"wgmma\.commit_group\.sync\.aligned;", ""), "a matrix product"),
    "no swizzle": (first(str(1 << 62 | 64 << 32 | 1 << 16), str(64 << 32 | 1 << 16), 0), "swizzle mode is 0"),
    "patterns too far apart": (first(str(1 << 62 | 64 << 32 | 1 << 16), str(1 << 62 | 128 << 32 | 1 << 16), 0), None),
    "patterns beyond the end": (
        first(str(1 << 62 | 64 << 32 | 1 << 16), str(1 << 62 | 8192 << 32 | 1 << 16), 0), "shared memory out of bounds",
    ),
    "a start between rows": (first(r"add\.s64(\s+%rd\d+, %rd\d+), 6;", r"add.s64\1, 9;"), "does not lie in the first line"),
    "the wrong terms": (first(r"add\.s64(\s+%rd\d+, %rd\d+), 6;", r"add.s64\1, 4;"), None),
}  # fmt: skip


IN_COLUMNS = 1 << 62 | 64 << 32 | 512 << 16

TURNED_BUGS = {
    "operands along their terms": (first(r"1, 1, 1, 1, 1;", "1, 1, 1, 0, 0;", 0), None),
    "one of them along its terms": (first(r"1, 1, 1, 1, 1;", "1, 1, 1, 1, 0;", 0), None),
    "patterns too far apart": (first(str(IN_COLUMNS), str(IN_COLUMNS + (64 << 32)), 0), None),
    "panels too close": (first(str(IN_COLUMNS), str(IN_COLUMNS - (256 << 16)), 0), None),
    "panels beyond the end": (first(str(IN_COLUMNS), str(IN_COLUMNS + (8192 << 16)), 0), "shared memory out of bounds"),
    "a start between lines": (
        first(r"add\.s64(\s+%rd\d+, %rd\d+), 384;", r"add.s64\1, 386;"), "does not lie in the first line",
    ),
    "the wrong terms": (first(r"add\.s64(\s+%rd\d+, %rd\d+), 384;", r"add.s64\1, 256;"), None),
    "no proxy fence": (first(r"fence\.proxy\.async[^;]*;", ""), "without a proxy fence"),
}  # fmt: skip


# TF32's weight gradient, whose first operand comes from registers.
REGISTER_BUGS = {
    "no wait in the loop": (
        first(r"wgmma\.wait_group\.sync\.aligned 0;", ""), "is written while a matrix product that has it is under way",
    ),
    "a wait for too few": (
        first(r"wgmma\.wait_group\.sync\.aligned 0;", "wgmma.wait_group.sync.aligned 1;"),
        "is written while a matrix product that has it is under way",
    ),
    "the next loads to the same registers": (
        lambda text: re.sub(
            r"(ld\.shared\.u32\s+)%r\d+", lambda found: found[1] + re.search(r"\}, \{(%r\d+),", text)[1], text, count=1
        ),
        "is written while a matrix product that has it is under way",
    ),
    "no wgmma.fence": (first(r"wgmma\.fence\.sync\.aligned;", ""), "without a wgmma.fence since"),
    "no proxy fence": (first(r"fence\.proxy\.async[^;]*;", ""), "without a proxy fence"),
    "no barrier": (first(r"bar\.sync\s+0;", "", 0), "race in shared memory"),
    "no wait for copies": (first(r"cp\.async\.wait_group 1;", ""), "has not delivered: a wait is missing"),
    "rows and terms exchanged": (first(r"\{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}", r"{\1,\3,\2,\4}"), None),
    "another chunk": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+16]"), None),
    "a load between words": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+2]"), "misaligned 4-byte access"),
    "a load beyond the end": (first(r"(ld\.shared\.u32[^\[]*\[%rd\d+)\]", r"\1+200000]"), "shared memory out of bounds"),
    "patterns too far apart": (first(str(1 << 62 | 64 << 32 | 1 << 16), str(1 << 62 | 128 << 32 | 1 << 16), 0), None),
    "the wrong terms": (first(r"add\.s64(\s+%rd\d+, %rd\d+), 6;", r"add.s64\1, 4;"), None),
}  # fmt: skip


def convolve_halves(change: Any, target: str, direction: str = "forward", kind: str = "float16") -> None:
    """The forward direction or weight gradient of a kind with a change in the PTX of its product, and compare."""
    from convkern.kernels.conv import half_products

    families = {
        ("sm_80", False): half_products.WARPS, ("sm_80", True): half_products.TF32_WARPS,
        ("sm_90a", False): half_products.WARPGROUPS, ("sm_90a", True): half_products.TF32_WARPGROUPS,
    }  # fmt: skip
    family = families[target, kind == "tf32"]
    rng = np.random.default_rng(3)
    shapes = HALF_SPEC.x_shape, HALF_SPEC.w_shape, HALF_SPEC.y_shape
    x, w, y = (rng.integers(-4, 5, shape).astype("f4") for shape in shapes)

    def launcher(kernel: Any, blocks: int, args: tuple[Any, ...]) -> None:
        text = compiled(kernel, target).read_text()
        if kernel.name.startswith("conv") and change is not unchanged:
            changed = change(text)
            assert changed != text
            text = changed
        code = ptx.Program(text)
        ptx.run(code, blocks, kernel.threads, parameters(code, kernel, args), kernel.shared)

    previous, launch.launcher = launch.launcher, launcher
    workspace = np.full(half_products.workspace_bytes(direction, HALF_SPEC, False, kind=kind), 0xFF, np.uint8)
    try:
        if direction == "forward":
            want, got = reference.forward(x, w, None, HALF_SPEC), np.full_like(y, np.nan)
            half_products.forward(kind, x, w, np.empty(0, "f4"), HALF_SPEC, workspace, got, family)
        else:
            want, got = reference.weight_grad(x, y, HALF_SPEC), np.full_like(w, np.nan)
            half_products.weight_grad(kind, x, y, HALF_SPEC, workspace, got, family)
    finally:
        launch.launcher = previous
    np.testing.assert_array_equal(got, want)


@needs_compiler
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_the_good_product_of_halves_is_good(target):
    convolve_halves(unchanged, target)


@needs_compiler
@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("bug", HALF_BUGS)
def test_bugs_of_products_of_single_warps_are_noticed(bug, kind):
    change, message = HALF_BUGS[bug]
    with pytest.raises(ptx.Fault if message else AssertionError, match=message):
        convolve_halves(change, "sm_80", kind=kind)


@needs_compiler
def test_the_other_kind_of_half_is_noticed():
    with pytest.raises(AssertionError):
        convolve_halves(first(r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32", 0), "sm_80")


@needs_compiler
@pytest.mark.parametrize("bug", FLOAT_BUGS)
def test_bugs_of_operands_of_single_elements_are_noticed(bug):
    change, message = FLOAT_BUGS[bug]
    with pytest.raises(ptx.Fault if message else AssertionError, match=message):
        convolve_halves(change, "sm_80", "weight_grad", "tf32")


@needs_compiler
@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("bug", WARPGROUP_BUGS)
def test_bugs_of_warpgroups_are_noticed(bug, kind):
    change, message = WARPGROUP_BUGS[bug]
    with pytest.raises(ptx.Fault if message else (AssertionError, ptx.Fault), match=message):
        convolve_halves(change, "sm_90a", kind=kind)


@needs_compiler
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("direction", ["forward", "weight_grad"])
def test_the_good_product_of_tf32_is_good(direction, target):
    convolve_halves(unchanged, target, direction, "tf32")


@needs_compiler
@pytest.mark.parametrize("bug", REGISTER_BUGS)
def test_bugs_of_operands_in_registers_are_noticed(bug):
    change, message = REGISTER_BUGS[bug]
    with pytest.raises(ptx.Fault if message else (AssertionError, ptx.Fault), match=message):
        convolve_halves(change, "sm_90a", "weight_grad", "tf32")


@needs_compiler
@pytest.mark.parametrize(
    "change", [first(r", 1, 1, 1;", ", 1, 1, 1, 0, 0;", 0), first("k8.f32.tf32", "k16.f32.tf32", 0)]
)
def test_tf32_cannot_be_transposed_nor_longer(change):
    with pytest.raises(NotImplementedError):
        convolve_halves(change, "sm_90a", kind="tf32")


@needs_compiler
def test_the_good_product_of_transposed_operands_is_good():
    convolve_halves(unchanged, "sm_90a", "weight_grad")


@needs_compiler
@pytest.mark.parametrize("bug", TURNED_BUGS)
def test_bugs_of_transposed_operands_are_noticed(bug):
    change, message = TURNED_BUGS[bug]
    with pytest.raises(ptx.Fault if message else (AssertionError, ptx.Fault), match=message):
        convolve_halves(change, "sm_90a", "weight_grad")


def test_bank_conflicts_are_counted():
    """Lanes a row of 128 bytes apart meet in one bank; a row of neighbours does not."""
    for scale, conflicts in ((2, 0), (7, 31)):
        body = f"""
    mov.u64 %rd6, room;
    cvt.u32.u64 %r3, %rd6;
    shl.b32 %r4, %r2, {scale};
    add.s32 %r5, %r3, %r4;
    st.shared.u32 [%r5], %r2;"""
        counts = ptx.run(
            ptx.Program(made(body, 4096)), 1, 32, (np.zeros(1, "u4"), np.zeros(1, "f4"), np.int32(0)), banks=True
        )
        assert counts["st.shared.u32 phases"] == 1
        assert counts["st.shared.u32 conflicts"] == conflicts


@needs_compiler
def test_the_good_kernel_is_good():
    convolve()


@needs_compiler
@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_noticed(bug):
    change, message = BUGS[bug]
    with pytest.raises(ptx.Fault, match=message):
        convolve(change)


@needs_compiler
def test_wrong_arithmetic_is_noticed():
    with pytest.raises(AssertionError, match="Mismatched elements"):
        convolve(first(r"fma\.rn\.f32(\s+%f\d+, %f\d+, %f\d+), %f\d+;", r"mul.f32\1;"))


# --- asynchronous copies and barriers, in a kernel small enough to write by hand

COPY = """
    mov.u64 %rd6, room;
    cvt.u32.u64 %r3, %rd6;
    shl.b32 %r4, %r2, 4;
    add.s32 %r5, %r3, %r4;
    cvt.u64.u32 %rd7, %r4;
    add.s64 %rd8, %rd1, %rd7;
    setp.eq.u32 %p1, %r2, 7;
    selp.b32 %r6, 0, 16, %p1;
    cp.async.cg.shared.global [%r5], [%rd8], 16, %r6;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    xor.b32 %r7, %r4, 1008;
    add.s32 %r8, %r3, %r7;
    ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r8];
    add.s64 %rd9, %rd2, %rd7;
    st.global.v4.u32 [%rd9], {%r10, %r11, %r12, %r13};
"""


def copy(text: str, threads: int = 64) -> None:
    """Four numbers for each thread go through shared memory and come out in reverse order; thread 7 copies zeros."""
    x, y = np.arange(4 * threads, dtype="u4"), np.zeros(4 * threads, "u4")
    ptx.run(ptx.Program(made(text)), 1, threads, (x, y, np.int32(0)))
    want = x.reshape(threads, 4).copy()
    want[7] = 0
    np.testing.assert_array_equal(y.reshape(threads, 4), want[::-1])


def test_the_good_copy_is_good():
    copy(COPY)


COPY_BUGS = {
    "no wait": ("cp.async.wait_group 0;", "", "has not delivered: a wait is missing"),
    "a wait for too few": ("wait_group 0", "wait_group 1", "has not delivered: a wait is missing"),
    "no commit": ("cp.async.commit_group;", "", "has not delivered: a wait is missing"),
    "no barrier": ("bar.sync 0;", "", "race in shared memory: reads another warp's write"),
    "the barrier before the wait": (
        "cp.async.wait_group 0;\n    bar.sync 0;", "bar.sync 0;\n cp.async.wait_group 0;", "race in shared memory: reads",
    ),
    "zeros read from outside": ("[%rd8], 16", "[%rd8+1024], 16", "out of bounds"),
    "misaligned": ("[%rd8], 16", "[%rd8+8], 16", "misaligned 16-byte access"),
    "a store under way": ("cp.async.commit_group;", "st.shared.u32 [%r5], %r2;", "asynchronous copy is under way"),
    "never waited for": (COPY[COPY.index("cp.async.wait") :], "", "nobody waited for"),
    "a part of the block at the barrier": ("bar.sync 0;", "@%p1 bar.sync 0;", "a part of a warp waits at a barrier"),
    "threads that left": (
        "bar.sync 0;", "setp.lt.u32 %p2, %r2, 32;\n @%p2 ret;\n bar.sync 0;", "some threads of a block returned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", COPY_BUGS)
def test_bugs_of_copies_and_barriers_are_noticed(bug):
    old, new, message = COPY_BUGS[bug]
    assert old in COPY
    with pytest.raises(ptx.Fault, match=message):
        copy(COPY.replace(old, new))


@needs_compiler
def test_the_hand_written_kernel_is_ptx(tmp_path):
    source = tmp_path / "made.ptx"
    source.write_text(made(COPY))
    assert "registers" in compiler.assemble(source, "sm_80", tmp_path / "made.cubin")


def test_a_launch_that_does_not_fit_is_refused():
    program = ptx.Program(made("").replace("made_2)", "made_2)\n.maxntid 32, 1, 1"))
    args = np.zeros(1, "u4"), np.zeros(1, "u4"), np.int32(0)
    with pytest.raises(ptx.Fault, match="64 threads, but the kernel was compiled for 32"):
        ptx.run(program, 1, 64, args)
    with pytest.raises(ptx.Fault, match="the kernel has 3 parameters, got 2"):
        ptx.run(program, 1, 32, args[:2])
    with pytest.raises(ptx.Fault, match="parameter made_2 is u32, got int64"):
        ptx.run(program, 1, 32, (*args[:2], np.int64(0)))
