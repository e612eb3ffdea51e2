"""The steps of an operation: which kernels follow one another, and over which memory.

A call is the arrays that it has, by name; a kernel takes those that its arguments are named for. Nothing is allocated
between launches and nothing waits: all memory is the caller's, and a stream's order is enough.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, Protocol

import numpy as np

from zeta_ops.backends import ArraySpec, DeviceArray
from zeta_ops.backends.cupy.memory import item_bytes, place
from zeta_ops.backends.numba_cuda.compiling import Kernel, Memory
from zeta_ops.backends.numba_cuda.constants import COLUMNS
from zeta_ops.backends.numba_cuda.parts import THREADS, made_for
from zeta_ops.backends.numba_cuda.sizes import num_sequences, sizes_of, workspace_specs
from zeta_ops.backends.numba_cuda.table import table_kernel
from zeta_ops.options import Problem, Shapes

__all__ = ["ITEMS", "Call", "Runner", "call_of", "kept_as", "memory_of", "quantiser"]

ITEMS = 256  # threads of a block where each thread has an item of its own
_VALUES = ("v", "grad_out", "out", "grad_v")


class Runner(Protocol):
    """What executes the steps of a call, in order."""

    def launch(self, kernel: Kernel, blocks: int, threads: int | tuple[int, int], arguments: tuple[Any, ...]) -> None:
        """Launch a kernel. Arguments are `Memory`, ints, floats, float32 numbers and tuples of ints."""

    def sort(
        self, keys: Memory, values: Memory, sorted_keys: Memory, sorted_values: Memory, count: int, bits: int
    ) -> None:
        """Sort uint64 keys with int32 values stably by the lowest `bits` bits."""

    def sort_keys(self, keys: Memory, sorted_keys: Memory, count: int, first_bit: int, bits: int) -> None:
        """Sort uint64 keys stably by `bits` bits from `first_bit`."""


class Call:
    """A call: its arrays by name, and how to launch kernels on them."""

    def __init__(self, shapes: Shapes | None, memory: dict[str, Memory], run: Runner) -> None:
        self.shapes, self.memory, self.run = shapes, memory, run

    def launch(self, kernel: Kernel, blocks: int, threads: int | tuple[int, int], /, **others: Any) -> None:
        """Launch a kernel on blocks of threads (along x, or x and y), if on any; `others` go by names of arguments."""
        if blocks > 0:
            memory = self.memory
            arguments = tuple(others[name] if name in others else memory[name] for name in kernel.arguments)
            self.run.launch(kernel, blocks, threads, arguments)

    def each(self, kernel: Kernel, items: int, /, **others: Any) -> None:
        """Launch a thread for each item."""
        self.launch(kernel, -(-items // ITEMS), ITEMS, **others)

    def teams(self, kernel: Kernel, items: int, /, **others: Any) -> None:
        """Launch a team for each item: its threads along x, the items of a block along y."""
        assert self.shapes is not None
        team = made_for(self.shapes).team
        self.launch(kernel, -(-items // (THREADS // team)), (team, THREADS // team), **others)

    def sort(self, keys: str, values: str, sorted_keys: str, sorted_values: str, count: int, bits: int) -> None:
        """Sort pairs; arrays by name."""
        names = keys, values, sorted_keys, sorted_values
        unsorted_keys, unsorted_values, to_keys, to_values = (self.memory[name] for name in names)
        self.run.sort(unsorted_keys, unsorted_values, to_keys, to_values, count, bits)

    def part_of(self, name: str, part: int, parts: int) -> Memory:
        """Take one of equal parts of an array."""
        whole = self.memory[name]
        count = whole.count // parts
        return Memory(whole.address + part * count * item_bytes(whole.dtype), count, whole.dtype)


def kept_as(dtype: str) -> str:
    """Say as what kernels take an array: 16-bit floats are their bits."""
    return "uint16" if dtype in ("float16", "bfloat16") else dtype


def memory_of(array: DeviceArray) -> Memory:
    """Take an array as kernels do."""
    reach = 1 + sum((length - 1) * stride for length, stride in zip(array.shape, array.strides, strict=True))
    return Memory(array.address, reach if prod(array.shape) else 0, kept_as(array.dtype))


def _in_words(array: DeviceArray, memory: Memory) -> Memory:
    """Take rows of 16-bit values in words where all of them consist of whole panels, at multiples of their size."""
    whole = all(count % COLUMNS == 0 for count in (array.shape[-1], *array.strides[:-1]))
    if memory.dtype == "uint16" and whole and array.shape[-1] > 0 and array.address % (2 * COLUMNS) == 0:
        return Memory(memory.address, memory.count // 4, "uint64")
    return memory


@lru_cache(maxsize=256)
def _offsets(operation: str, shapes: Shapes, width: int) -> tuple[tuple[str, int, ArraySpec], ...]:
    specs = workspace_specs(operation, shapes, width)
    offsets = place(specs)
    return tuple((name, offsets.get(name, 0), spec) for name, spec in specs.items())


def call_of(
    operation: str, shapes: Shapes, arrays: dict[str, DeviceArray | None], workspace: int, run: Runner, width: int = 0
) -> Call:
    """Begin a call: find its memory and write its table."""
    memory = {"cu_seqlens": Memory(0, 0, "int32")}
    for name, offset, spec in _offsets(operation, shapes, width):
        memory[name] = Memory(workspace + offset, prod(spec.shape), spec.dtype)
    for name, array in arrays.items():
        if array is not None:
            memory[name] = memory_of(array)
            if name in _VALUES:
                memory[f"{name}_elements"] = memory[name]
                memory[name] = _in_words(array, memory[name])
    call = Call(shapes, memory, run)
    strides = [
        stride
        for name in ("q", "k", "v", "grad_out")
        for stride in ((arrays[name] or _NO_STRIDES).strides[:3] if arrays.get(name) else (0, 0, 0))
    ]
    numbers = (*_numbers(shapes, width), *strides)
    call.launch(table_kernel, 1, min(ITEMS, num_sequences(shapes)), numbers=numbers)
    return call


_NO_STRIDES = DeviceArray(0, (), (0, 0, 0), "float32")


@lru_cache(maxsize=256)
def _numbers(shapes: Shapes, width: int) -> tuple[int, ...]:
    """List the numbers of the table, in its order, up to the strides."""
    s = shapes
    sizes = (s.batch, s.q_heads, s.kv_heads, s.group_size, s.q_len, s.k_len, s.value_dim)
    if not isinstance(s, Problem):
        return *sizes, 0, 1, 0, 0, 0, 0, 0, width, 1, 1, *(0,) * 9
    o, found = s.options, sizes_of(s)
    packed = s.num_sequences is not None and s.num_sequences > 0
    capacities = found.entries, found.lower_entries, found.upper_entries, found.units, found.chunks
    past = int(o.causal), o.chunk_size, int(o.include_self), o.local_window, o.q_offset
    codes = o.bits, int(o.bounds is not None), found.row_shift, found.number_bits
    return *sizes, int(packed), num_sequences(s), *capacities, o.top_k, o.window, o.num_curves, *past, *codes


def quantiser(bounds: tuple[float, float] | None) -> dict[str, Any]:
    """Say how coordinates are quantised."""
    lo, hi = bounds or (0.0, 1.0)
    return {"lo": np.float32(lo), "scale": np.float32(2**27 / (hi - lo))}
