"""Two loops over value rows written as vector code, and a prefetch: what the compiler does not find by itself.

Numba's own loops load and store a row of sums for every few value rows. These keep 64 columns in registers while they
run over all rows, which makes them about twice as fast. `VECTOR` is no demand on the machine: LLVM splits vectors
that are too wide. How terms are grouped is fixed, whatever the addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["COLUMNS", "add_rows", "add_to_rows", "prefetch_row"]

VECTOR = 16
COLUMNS = 64  # per block: four vectors

Value = Any
INT64 = ir.IntType(64)
FUSED = ("contract",)


class _Emitter:
    """Emits vector code into a function that Numba compiles."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context, self.builder, self.signature, self.arguments = context, builder, signature, arguments
        element = context.get_value_type(signature.args[0].dtype)
        self.element = element
        self.vector = ir.VectorType(element, VECTOR)
        self.align = signature.args[0].dtype.bitwidth // 8

    def memory(self, place: int) -> Value:
        """Pointer to the elements of an array argument."""
        array = self.context.make_array(self.signature.args[place])
        return array(self.context, self.builder, self.arguments[place]).data

    def load(self, pointer: Value, index: Value) -> Value:
        address = self.builder.gep(pointer, [index])
        loaded = self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()))
        loaded.align = self.align
        return loaded

    def store(self, value: Value, pointer: Value, index: Value) -> None:
        address = self.builder.gep(pointer, [index])
        stored = self.builder.store(value, self.builder.bitcast(address, self.vector.as_pointer()))
        stored.align = self.align

    def spread(self, scalar: Value) -> Value:
        """Vector of equal elements."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        return self.builder.fadd(self.builder.fmul(a, b, flags=FUSED), c, flags=FUSED)

    def loop(self, stop: Value, carried: list[Value], body: Callable[[Value, list[Value]], list[Value]]) -> list[Value]:
        """Run `body(i, values)` for i in [0, stop); return the values that the last run gave."""
        builder = self.builder
        before = builder.block
        head, inside, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(INT64)
        i.add_incoming(INT64(0), before)
        values = []
        for value in carried:
            values.append(builder.phi(value.type))
            values[-1].add_incoming(value, before)
        builder.cbranch(builder.icmp_unsigned("<", i, stop), inside, after)
        builder.position_at_end(inside)
        results = body(i, values)
        i.add_incoming(builder.add(i, INT64(1)), builder.block)
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values


@intrinsic
def add_rows(
    typing_context: Any, out: Any, out_at: Any, v: Any, offsets: Any, first: Any, weights: Any, count: Any
) -> Any:
    """Add `weights[e] * v[offsets[e] + first + c]` over all e to 64 columns `out[out_at + c]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, signature, arguments)
        sums, values, places, scales = (emit.memory(place) for place in (0, 2, 3, 5))
        start, first_column, stop = arguments[1], arguments[4], arguments[6]
        columns = [builder.add(start, INT64(c)) for c in range(0, COLUMNS, VECTOR)]

        def add_row(e: Value, totals: list[Value]) -> list[Value]:
            place = builder.add(builder.load(builder.gep(places, [e])), first_column)
            scale = emit.spread(builder.load(builder.gep(scales, [e])))
            rows = [emit.load(values, builder.add(place, INT64(c))) for c in range(0, COLUMNS, VECTOR)]
            return [emit.multiply_add(scale, row, total) for row, total in zip(rows, totals, strict=True)]

        totals = emit.loop(stop, [emit.load(sums, column) for column in columns], add_row)
        for total, column in zip(totals, columns, strict=True):
            emit.store(total, sums, column)
        return context.get_dummy_value()

    return types.void(out, out_at, v, offsets, first, weights, count), generate


@intrinsic
def add_to_rows(
    typing_context: Any, sums: Any, offsets: Any, first: Any, weights: Any, count: Any, x: Any, x_at: Any
) -> Any:
    """Add `weights[e] * x[x_at + c]` to 64 columns `sums[offsets[e] + first + c]`, for each e."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, signature, arguments)
        rows, places, scales, factors = (emit.memory(place) for place in (0, 1, 3, 5))
        mine = [emit.load(factors, builder.add(arguments[6], INT64(c))) for c in range(0, COLUMNS, VECTOR)]

        def add_to_row(e: Value, _: list[Value]) -> list[Value]:
            place = builder.add(builder.load(builder.gep(places, [e])), arguments[2])
            scale = emit.spread(builder.load(builder.gep(scales, [e])))
            for c, factor in zip(range(0, COLUMNS, VECTOR), mine, strict=True):
                column = builder.add(place, INT64(c))
                emit.store(emit.multiply_add(scale, factor, emit.load(rows, column)), rows, column)
            return []

        emit.loop(arguments[4], [], add_to_row)
        return context.get_dummy_value()

    return types.void(sums, offsets, first, weights, count, x, x_at), generate


@intrinsic
def prefetch_row(typing_context: Any, x: Any, at: Any, size: Any) -> Any:
    """Ask for `x[at : at + size]` to come near; of more than 64 elements, for the first 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, signature, arguments)
        byte = ir.IntType(8).as_pointer()
        name, number = "llvm.prefetch.p0", ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        lines = COLUMNS * emit.align // 64
        for line in range(lines):
            within = builder.icmp_unsigned("<", INT64(line * 64 // emit.align), arguments[2])
            with builder.if_then(within):
                address = builder.gep(emit.memory(0), [builder.add(arguments[1], INT64(line * 64 // emit.align))])
                builder.call(function, [builder.bitcast(address, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(x, at, size), generate
