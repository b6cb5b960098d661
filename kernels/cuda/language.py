"""The names that CUDA kernels are written with. The only file that imports Numba's CUDA target.

``cuda`` is Numba's module (threadIdx, syncthreads, shared.array …); ``inlined`` marks a function that kernels call.
"""

from __future__ import annotations

import re

from llvmlite import ir
from numba import config, cuda, float32, int32, int64, types, uint16, uint32, uint64

POINTERS = {name: types.CPointer(getattr(types, name)) for name in ("float32", "int64", "uint16")}
POINTERS["table"] = POINTERS["int64"]
HALVES = {"float16": "f16", "bfloat16": "bf16"}  # kernels hold both as the uint16 of their bits; PTX's names
CHUNKS = {"float16": 8, "bfloat16": 8, "tf32": 4}  # operands of a kind in 16 bytes; those of TF32 are held as float32


def inlined(function):
    """A function that is compiled into each kernel that calls it."""
    return cuda.jit(device=True, inline="always")(function)


@inlined
def quotient(value, multiplier, shift):
    """value // divisor for 0 <= value < 2**31, with the pair that :func:`divider` gives: a product and a shift."""
    return int32((uint64(uint32(value)) * uint64(uint32(multiplier))) >> uint64(shift))


def divider(divisor: int) -> tuple[int, int]:
    """The multiplier, as the int32 of its bits, and the shift with which :func:`quotient` divides by ``divisor``.

    Source: Granlund and Montgomery, "Division by invariant integers using multiplication", 1994, theorem 4.2 for 31 bits.
    """
    shift = 31 + (divisor - 1).bit_length()
    multiplier = (1 << shift) // divisor + 1
    return multiplier - (1 << 32) if multiplier >= 1 << 31 else multiplier, shift


if config.ENABLE_CUDASIM:  # Numba's simulator runs kernels as Python, without tensor cores and asynchronous copies

    def load4(array, index):
        """Four neighbours of a float32 array from ``index`` on, a multiple of 4, in one instruction."""
        return array[index], array[index + 1], array[index + 2], array[index + 3]

    def anew(value):
        return value

    def floats_at(address):
        raise NotImplementedError("the simulator has no addresses")

    def _no_halves(value):
        raise NotImplementedError("the simulator has no halves")

    widen = narrow = dict.fromkeys(HALVES, _no_halves)

else:
    from numba.core.errors import RequireLiteralValue
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    @intrinsic
    def load4(typingctx, array, index):
        """Four neighbours of a float32 array from ``index`` on, a multiple of 4, in one instruction."""

        def codegen(context, builder, signature, args):
            first = context.make_array(array)(context, builder, args[0]).data
            position = context.cast(builder, args[1], index, types.int64)
            vector = ir.VectorType(ir.FloatType(), 4)
            address = builder.bitcast(builder.gep(first, [position]), vector.as_pointer(first.type.addrspace))
            value = builder.load(address, align=16)
            return cgutils.pack_array(builder, [builder.extract_element(value, ir.IntType(32)(i)) for i in range(4)])

        return types.UniTuple(types.float32, 4)(array, index), codegen

    @intrinsic
    def anew(typingctx, value):
        """The same int32, which the compiler takes for another: what follows from it is not kept, but computed once more."""

        def codegen(context, builder, signature, args):
            return _assembly(builder, ir.IntType(32), [ir.IntType(32)], "mov.b32 $0, $1;", "=r,r,~{memory}", args)

        return types.int32(types.int32), codegen

    @intrinsic
    def floats_at(typingctx, address):
        """An address of a table as a pointer to float32 in global memory."""
        kind = types.CPointer(types.float32)

        def codegen(context, builder, signature, args):
            there = builder.inttoptr(args[0], ir.PointerType(ir.FloatType(), 1))
            return builder.addrspacecast(there, context.get_value_type(kind))

        return kind(types.int64), codegen

    def _assembly(builder, result, kinds, text, constraints, args, effect=True):
        function = ir.FunctionType(result, kinds)
        return builder.call(ir.InlineAsm(function, text, constraints, side_effect=effect), args)

    @intrinsic
    def close_copies(typingctx):
        """The copies that this thread started since the last call become a group."""

        def codegen(context, builder, signature, args):
            _assembly(builder, ir.VoidType(), [], "cp.async.commit_group;", "~{memory}", [])
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def wait_copies(typingctx, latest):
        """Wait for all of this thread's groups but the ``latest`` ones, a constant."""
        if not isinstance(latest, types.IntegerLiteral):
            raise RequireLiteralValue(latest)
        text = f"cp.async.wait_group {latest.literal_value};"

        def codegen(context, builder, signature, args):
            _assembly(builder, ir.VoidType(), [], text, "~{memory}", [])
            return context.get_dummy_value()

        return types.void(latest), codegen

    @intrinsic
    def round_tf32(typingctx, value):
        """A float32 rounded to the 10 fraction bits of TF32, to nearest, as the bits that tensor cores take."""

        def codegen(context, builder, signature, args):
            return _assembly(
                builder, ir.IntType(32), [ir.FloatType()], "cvt.rna.tf32.f32 $0, $1;", "=r,f", args, effect=False
            )

        return types.uint32(types.float32), codegen

    @intrinsic
    def nearest_tf32(typingctx, value):
        """As :func:`round_tf32`, as a float32."""

        def codegen(context, builder, signature, args):
            i32, f32 = ir.IntType(32), ir.FloatType()
            bits = _assembly(builder, i32, [f32], "cvt.rna.tf32.f32 $0, $1;", "=r,f", args, effect=False)
            return builder.bitcast(bits, f32)

        return types.float32(types.float32), codegen

    @intrinsic
    def multiply_tf32(typingctx, a, b, c):
        """c + a · b for a 16 x 8 tile of c, 8 terms, on the tensor cores; each lane of the warp holds its fragments.

        With g = lane div 4 and t = lane mod 4: a is rows g, g + 8, g, g + 8 in columns t, t, t + 4, t + 4; b is rows t, t + 4
        in column g; c is columns 2 · t, 2 · t + 1 of row g, then of row g + 8.
        """

        def codegen(context, builder, signature, args):
            i32, f32 = ir.IntType(32), ir.FloatType()
            parts = [cgutils.unpack_tuple(builder, arg) for arg in args]
            registers = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13}"
            text = f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {registers};"
            result = _assembly(
                builder, ir.LiteralStructType([f32] * 4), [i32] * 6 + [f32] * 4, text,
                "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", [*parts[0], *parts[1], *parts[2]], effect=False,
            )  # fmt: skip
            return cgutils.pack_array(builder, [builder.extract_value(result, i) for i in range(4)])

        return types.UniTuple(types.float32, 4)(a, b, c), codegen

    @intrinsic
    def shared_address(typingctx, room):
        """The byte address of a shared array's first element, as shared memory counts."""

        def codegen(context, builder, signature, args):
            first = context.make_array(room)(context, builder, args[0]).data
            first = builder.addrspacecast(first, ir.PointerType(first.type.pointee, 3))
            return builder.ptrtoint(first, ir.IntType(32))

        return types.uint32(room), codegen

    @intrinsic
    def load_word(typingctx, address):
        """The 4 bytes at a byte address in shared memory; in 64 bits, where no sum can wrap, constants become part of it."""

        def codegen(context, builder, signature, args):
            return builder.load(builder.inttoptr(args[0], ir.PointerType(ir.IntType(32), 3)), align=4)

        return types.uint32(types.uint64), codegen

    @intrinsic
    def copy16_async(typingctx, to, source, position, inside):
        """Start copying 16 bytes from source[position] on to the byte ``to`` of shared memory; zeros where not ``inside``.

        Both are multiples of 16 bytes. When :func:`wait_copies` says so of their group they have arrived for this thread,
        after a barrier for others. The first cache keeps nothing of them.
        """

        def codegen(context, builder, signature, args):
            to, pointer, at, inside = args
            at = context.cast(builder, at, position, types.int64)
            at = builder.select(inside, at, at.type(0))
            element = pointer.type.pointee
            pointer = builder.addrspacecast(pointer, ir.PointerType(element, 1))
            i32, i64 = ir.IntType(32), ir.IntType(64)
            origin = builder.ptrtoint(builder.gep(pointer, [at]), i64)
            size = builder.select(inside, i32(16), i32(0))
            text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
            _assembly(builder, ir.VoidType(), [i32, i64, i32], text, "r,l,r,~{memory}", [to, origin, size])
            return context.get_dummy_value()

        return types.void(types.uint32, source, position, types.boolean), codegen

    def _matrix_load(turned):
        @intrinsic
        def load(typingctx, address):
            def codegen(context, builder, signature, args):
                i32 = ir.IntType(32)
                text = f"ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
                result = _assembly(
                    builder, ir.LiteralStructType([i32] * 4), [i32], text, "=r,=r,=r,=r,r,~{memory}", args
                )
                return cgutils.pack_array(builder, [builder.extract_value(result, i) for i in range(4)])

            return types.UniTuple(types.uint32, 4)(types.uint32), codegen

        return load

    # Four 8 x 8 matrices of halves; lane 8 · i + row gives the address of a row of matrix i. Each lane gets two neighbours
    # of row lane div 4, columns 2 · (lane mod 4) on, of each matrix; turned: of its transpose.
    load_matrices, load_turned = _matrix_load(""), _matrix_load(".trans")

    def _half_product(kind):
        @intrinsic
        def multiply(typingctx, a, b, c):
            def codegen(context, builder, signature, args):
                i32, f32 = ir.IntType(32), ir.FloatType()
                parts = [cgutils.unpack_tuple(builder, arg) for arg in args]
                registers = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13}"
                text = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {registers};"
                result = _assembly(
                    builder, ir.LiteralStructType([f32] * 4), [i32] * 6 + [f32] * 4, text,
                    "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", [*parts[0], *parts[1], *parts[2]], effect=False,
                )  # fmt: skip
                return cgutils.pack_array(builder, [builder.extract_value(result, i) for i in range(4)])

            return types.UniTuple(types.float32, 4)(a, b, c), codegen

        return multiply

    # c + a · b for a 16 x 8 tile of c, 16 terms: fragments of a and b as load_matrices gives them, of c as in multiply_tf32.
    multiply_half = {name: _half_product(kind) for name, kind in HALVES.items()}

    def _narrowing(kind):
        @intrinsic
        def narrow(typingctx, value):
            """The bits of a float32 rounded to a half, to nearest, ties to even."""

            def codegen(context, builder, signature, args):
                i16, f32 = ir.IntType(16), ir.FloatType()
                return _assembly(builder, i16, [f32], f"cvt.rn.{kind}.f32 $0, $1;", "=h,f", args, effect=False)

            return types.uint16(types.float32), codegen

        return narrow

    narrow = {name: _narrowing(kind) for name, kind in HALVES.items()}

    @intrinsic
    def _widen_float16(typingctx, bits):
        def codegen(context, builder, signature, args):
            return _assembly(
                builder, ir.FloatType(), [ir.IntType(16)], "cvt.f32.f16 $0, $1;", "=f,h", args, effect=False
            )

        return types.float32(types.uint16), codegen

    @intrinsic
    def _widen_bfloat16(typingctx, bits):
        def codegen(context, builder, signature, args):
            wide = builder.zext(args[0], ir.IntType(32))
            return builder.bitcast(builder.shl(wide, ir.IntType(32)(16)), ir.FloatType())

        return types.float32(types.uint16), codegen

    # The float32 of a half's bits.
    widen = {"float16": _widen_float16, "bfloat16": _widen_bfloat16}

    def _order(text, doc):
        @intrinsic
        def order(typingctx):
            def codegen(context, builder, signature, args):
                _assembly(builder, ir.VoidType(), [], text, "~{memory}", [])
                return context.get_dummy_value()

            return types.void(), codegen

        order.__doc__ = doc
        return order

    open_products = _order("wgmma.fence.sync.aligned;", "Sums that were written may be added to by the next products.")
    close_products = _order("wgmma.commit_group.sync.aligned;", "The products since the last call become a group.")
    share_writes = _order(
        "fence.proxy.async.shared::cta;", "After a barrier, products may read what this thread wrote to shared memory."
    )

    @intrinsic
    def wait_products(typingctx, latest):
        """Wait for all of this warpgroup's groups but the ``latest`` ones, a constant."""
        if not isinstance(latest, types.IntegerLiteral):
            raise RequireLiteralValue(latest)
        text = f"wgmma.wait_group.sync.aligned {latest.literal_value};"

        def codegen(context, builder, signature, args):
            _assembly(builder, ir.VoidType(), [], text, "~{memory}", [])
            return context.get_dummy_value()

        return types.void(latest), codegen

    def _places(context, builder, array, value, count):
        first = context.make_array(array)(context, builder, value).data
        return [builder.gep(first, [ir.IntType(64)(i)]) for i in range(count)]

    @intrinsic
    def keep(typingctx, acc, count):
        """Let no use of the first ``count`` sums, a constant, move across this point."""
        if not isinstance(count, types.IntegerLiteral):
            raise RequireLiteralValue(count)

        def codegen(context, builder, signature, args):
            f32 = ir.FloatType()
            for place in _places(context, builder, acc, args[0], count.literal_value):
                builder.store(_assembly(builder, f32, [f32], "", "=f,0,~{memory}", [builder.load(place)]), place)
            return context.get_dummy_value()

        return types.void(acc, count), codegen

    @intrinsic
    def hold(typingctx, words, count):
        """Up to here the first ``count`` words, a constant, stay in their registers, and no others take these."""
        if not isinstance(count, types.IntegerLiteral):
            raise RequireLiteralValue(count)

        def codegen(context, builder, signature, args):
            values = [builder.load(place) for place in _places(context, builder, words, args[0], count.literal_value)]
            constraints = ",".join(["r"] * len(values) + ["~{memory}"])
            _assembly(builder, ir.VoidType(), [value.type for value in values], "", constraints, values)
            return context.get_dummy_value()

        return types.void(words, count), codegen

    def warpgroup_product(kind, columns, turned=False):
        """The function (sums, descriptor of a, descriptor of b) that starts adding a product of 64 rows to local sums.

        Both operands lie in shared memory in the 128-byte swizzle: along their 16 terms, 8 of TF32, or of halves ``turned``,
        across them. Of float32 the hardware leaves the last 13 bits out, which cuts the fraction off after 10.
        """
        flags = "" if kind == "tf32" else f", {int(turned)}, {int(turned)}"
        return _warpgroup_product(kind, columns, ["l"], "$0", flags)

    def warpgroup_product_of_registers(columns):
        """The same of TF32 for the 64 x 8 operand a in registers: the function (sums, its four, descriptor of b).

        With g = lane div 4 and t = lane mod 4 a lane has, of its warp's 16 rows, g, g + 8, g, g + 8 in columns t, t, t + 4,
        t + 4; registers are kept until the product has been waited for.
        """
        return _warpgroup_product("tf32", columns, ["r"] * 4, "{$0,$1,$2,$3}", "")

    def _warpgroup_product(kind, columns, left, left_text, flags):
        """``left``: the constraints of what a comes in, ``left_text`` how PTX writes them, numbered from 0."""
        count, name = columns // 2, HALVES.get(kind, kind)
        registers = ",".join(f"${i}" for i in range(count))
        numbered = re.sub(r"\d+", lambda found: str(count + int(found[0])), left_text)
        text = (
            f"wgmma.mma_async.sync.aligned.m64n{columns}k{2 * CHUNKS[kind]}.f32.{name}.{name} "
            f"{{{registers}}}, {numbered}, ${count + len(left)}, 1, 1, 1{flags};"
        )
        constraints = ",".join(["=f"] * count + left + ["l"] + [str(i) for i in range(count)])

        @intrinsic
        def multiply(typingctx, acc, a, b):
            def codegen(context, builder, signature, args):
                i64, f32 = ir.IntType(64), ir.FloatType()
                held = [args[1]] if left == ["l"] else cgutils.unpack_tuple(builder, args[1])
                places = _places(context, builder, acc, args[0], count)
                before = [builder.load(place) for place in places]
                result = _assembly(
                    builder, ir.LiteralStructType([f32] * count), [value.type for value in held] + [i64] + [f32] * count,
                    text, constraints, [*held, args[2], *before],
                )  # fmt: skip
                for i, place in enumerate(places):
                    builder.store(builder.extract_value(result, i), place)
                return context.get_dummy_value()

            kinds = types.uint64 if left == ["l"] else types.UniTuple(types.uint32, len(left))
            return types.void(acc, kinds, types.uint64), codegen

        return multiply


@inlined
def as_it_is(value):
    return value


@inlined
def thread():
    """Index of this thread in a one-dimensional grid."""
    return int32(cuda.blockIdx.x) * int32(cuda.blockDim.x) + int32(cuda.threadIdx.x)


__all__ = [
    "CHUNKS",
    "HALVES",
    "POINTERS",
    "anew",
    "as_it_is",
    "cuda",
    "divider",
    "float32",
    "floats_at",
    "inlined",
    "int32",
    "int64",
    "load4",
    "narrow",
    "quotient",
    "thread",
    "uint16",
    "uint32",
    "uint64",
    "widen",
]
