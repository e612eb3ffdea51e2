"""One piece of workspace for many arrays: where each of them lies."""

from __future__ import annotations

from math import prod

from zeta_ops.backends import ArraySpec

__all__ = ["ALIGNMENT", "item_bytes", "place", "total_bytes"]

ALIGNMENT = 256  # of every array, in bytes

_ITEM_BYTES = {
    "uint8": 1, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "float32": 4, "int64": 8, "uint64": 8,
    "float64": 8,
}  # fmt: skip


def item_bytes(dtype: str) -> int:
    """Size of an element."""
    return _ITEM_BYTES[dtype]


def _bytes(spec: ArraySpec) -> int:
    return -(-prod(spec.shape) * item_bytes(spec.dtype) // ALIGNMENT) * ALIGNMENT


def total_bytes(specs: dict[str, ArraySpec]) -> int:
    """Size of memory that holds all arrays."""
    return sum(map(_bytes, specs.values()))


def place(specs: dict[str, ArraySpec]) -> dict[str, int]:
    """Find the offset of each array that is not empty, one after another."""
    offsets, end = {}, 0
    for name, spec in specs.items():
        if _bytes(spec):
            offsets[name] = end
            end += _bytes(spec)
    return offsets
