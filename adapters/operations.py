"""The operations of a backend as every adapter calls them: what each takes and returns, and how it is called.

Arguments and results are flat lists here. `cu_seqlens` always stands among the arguments, as None where nothing is
packed; residuals stand at the end of the forward pass's results and of the backward pass's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from zeta_ops.backends import STRIDED, ArraySpec, DeviceBackend
from zeta_ops.options import Problem, Shapes

__all__ = [
    "STRIDED",
    "Packing",
    "Plan",
    "has_residuals",
    "out_of_memory",
    "plan",
    "residual_packing",
    "residual_specs",
    "result_specs",
    "run",
    "width_of",
]

_FUNCTIONS = {
    "select": "causal_topk",
    "search_forward": "attention_forward",
    "search_backward": "attention_backward",
    "given_forward": "cauchy_forward",
    "given_backward": "cauchy_backward",
}
_INDICES = {"given_forward": 3, "given_backward": 4}  # place of given indices
_SIZES = {"float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1, "int64": 8, "uint64": 8}  # bytes; 4 of all others
_ALIGNMENT = 256  # of residuals, in bytes


def width_of(operation: str, arguments: Sequence[Any]) -> int:
    """Count the given indices of each query; 0 for operations that search."""
    return int(arguments[_INDICES[operation]].shape[-1]) if operation in _INDICES else 0


class Packing(NamedTuple):
    """Where the residuals of a call lie in one piece of memory.

    Attributes
    ----------
    pieces : tuple of (ArraySpec, int, int)
        With offset and size of each, in bytes.
    size : int
        Bytes of all.
    """

    pieces: tuple[tuple[ArraySpec, int, int], ...]
    size: int


@lru_cache(maxsize=1024)
def residual_packing(backend: Any, problem: Shapes) -> Packing:
    """Lay the residuals of a search one after another."""
    pieces, end = [], 0
    for spec in backend.residual_specs(problem):
        size = math.prod(spec.shape) * _SIZES.get(spec.dtype, 4)
        pieces.append((spec, end, size))
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return Packing(tuple(pieces), end)


def has_residuals(operation: str) -> bool:
    """Whether an operation leaves or takes more than the normalizer for its backward pass."""
    return operation in ("search_forward", "search_backward")


def residual_specs(backend: Any, operation: str, shapes: Shapes) -> tuple[ArraySpec, ...]:
    """List what the forward pass of an operation leaves for its backward pass."""
    specs: tuple[ArraySpec, ...] = backend.residual_specs(shapes) if has_residuals(operation) else ()
    return specs


def result_specs(backend: Any, operation: str, shapes: Shapes, packing: Packing | None = None) -> tuple[ArraySpec, ...]:
    """List the arrays that an operation writes, residuals in one piece if packed. Shapes may be symbolic."""
    s = shapes
    if operation == "select":
        assert isinstance(s, Problem)
        return (ArraySpec((*s.normalizer_shape, s.options.top_k), "int32"),)
    if operation.endswith("backward"):
        return (
            ArraySpec(s.q_shape, s.coordinate_dtype),
            ArraySpec(s.k_shape, s.coordinate_dtype),
            ArraySpec(s.v_shape, s.value_dtype),
            ArraySpec((s.q_heads,), s.coordinate_dtype),
        )
    outputs = ArraySpec(s.out_shape, s.value_dtype), ArraySpec(s.normalizer_shape, s.sum_dtype)
    if packing is not None:
        return *outputs, ArraySpec((packing.size,), "uint8")
    return *outputs, *residual_specs(backend, operation, s)


class Plan(NamedTuple):
    """Memory that an operation takes from its caller on a device.

    Attributes
    ----------
    results : tuple of ArraySpec
    workspace : int
        Bytes.
    """

    results: tuple[ArraySpec, ...]
    workspace: int


@lru_cache(maxsize=1024)
def plan(backend: DeviceBackend, operation: str, shapes: Shapes, width: int) -> Plan:
    """Find out, once for all calls alike, which memory an operation takes."""
    return Plan(result_specs(backend, operation, shapes), backend.workspace_bytes(operation, shapes, width))


def out_of_memory(operation: str, planned: Plan, device: int) -> str:
    """Say what an operation would have needed, for the error of a caller that could not get it."""
    results = sum(math.prod(spec.shape) * _SIZES.get(spec.dtype, 4) for spec in planned.results)
    return (
        f"zeta_ops: not enough memory on device {device}: {operation} needs {results + planned.workspace:,} bytes,"
        f" {results:,} for its results and {planned.workspace:,} as workspace, and a copy of what is not contiguous;"
        " free memory there, or call it with fewer batch items or heads at a time"
    )


def run(backend: Any, operation: str, shapes: Shapes, arguments: list[Any], results: list[Any], **on: Any) -> None:
    """Call a backend's function for an operation; `on` is for backends of devices."""
    if operation == "search_forward":
        results = [*results[:2], tuple(results[2:])]
    elif operation == "search_backward":
        arguments = [*arguments[:7], tuple(arguments[7:])]
    getattr(backend, _FUNCTIONS[operation])(shapes, *arguments, *results, **on)
