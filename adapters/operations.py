"""The operations of a backend as every adapter calls them: what each takes and returns, and how it is called.

Arguments and results are flat lists here. `cu_seqlens` always stands among the arguments, as None where nothing is
packed; residuals stand at the end of the forward pass's results and of the backward pass's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from zeta_ops.backends import ADDRESS_UNIT, INDICES, STRIDED, ArraySpec, DeviceArray, DeviceBackend, Execution, Launch
from zeta_ops.options import Problem, Shapes

__all__ = [
    "STRIDED",
    "Packing",
    "Plan",
    "kept_packing",
    "launch",
    "out_of_memory",
    "plan",
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
_SIZES = {"float64": 8, "float16": 2, "bfloat16": 2, "uint8": 1, "int64": 8, "uint64": 8}  # bytes; 4 of all others
_ALIGNMENT = 256  # of each array in one piece of memory, in bytes


def width_of(operation: str, arguments: Sequence[Any]) -> int:
    """Count the given indices of each query; 0 for operations that search."""
    return int(arguments[INDICES[operation]].shape[-1]) if operation in INDICES else 0


class Packing(NamedTuple):
    """Where that which a call keeps for its backward pass lies in one piece of memory.

    Attributes
    ----------
    pieces : tuple of (ArraySpec, int, int)
        With offset and size of each, in bytes.
    size : int
        Bytes of all.
    """

    pieces: tuple[tuple[ArraySpec, int, int], ...]
    size: int


def residual_specs(backend: Any, operation: str, shapes: Shapes) -> tuple[ArraySpec, ...]:
    """List what the forward pass of an operation leaves for its backward pass, besides the normalizer."""
    searches = operation in ("search_forward", "search_backward")
    specs: tuple[ArraySpec, ...] = backend.residual_specs(shapes) if searches else ()
    return specs


def _kept_specs(backend: Any, operation: str, shapes: Shapes) -> tuple[ArraySpec, ...]:
    normalizer = ArraySpec(shapes.normalizer_shape, shapes.sum_dtype)
    return normalizer, *residual_specs(backend, operation, shapes)


@lru_cache(maxsize=1024)
def kept_packing(backend: Any, operation: str, shapes: Shapes, apart: int) -> Packing:
    """Lay what the forward pass leaves one after another: normalizer and residuals, but for the first `apart`."""
    pieces, end = [], 0
    for spec in _kept_specs(backend, operation, shapes)[apart:]:
        size = math.prod(spec.shape) * _SIZES.get(spec.dtype, 4)
        pieces.append((spec, end, size))
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return Packing(tuple(pieces), end)


def result_specs(backend: Any, operation: str, shapes: Shapes, apart: int | None = None) -> tuple[ArraySpec, ...]:
    """List the arrays that an operation writes. Shapes may be symbolic.

    With a number `apart`, only so many of those that a forward pass leaves for the backward pass are arrays; the others
    are one array of bytes.
    """
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
    specs = ArraySpec(s.out_shape, s.value_dtype), *_kept_specs(backend, operation, s)
    if apart is None:
        return specs
    return *specs[: 1 + apart], ArraySpec((kept_packing(backend, operation, s, apart).size,), "uint8")


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


def run(backend: Any, operation: str, shapes: Shapes, arguments: list[Any], results: list[Any]) -> None:
    """Call a CPU backend's function for an operation."""
    if operation == "search_forward":
        results = [*results[:2], tuple(results[2:])]
    elif operation == "search_backward":
        arguments = [*arguments[:7], tuple(arguments[7:])]
    getattr(backend, _FUNCTIONS[operation])(shapes, *arguments, *results)


def launch(backend: Any, operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None], on: Execution) -> None:
    """Launch an operation of a device on its arguments and results, prepared where no call alike came before."""
    layouts = tuple([x and x._replace(address=x.address % ADDRESS_UNIT) for x in arrays])
    addresses = [0 if x is None else x.address for x in arrays]
    _prepared(backend, operation, shapes, layouts, on.device)([*addresses, on.workspace], on.stream)


@lru_cache(maxsize=1024)
def _prepared(
    backend: Any, operation: str, shapes: Shapes, layouts: tuple[DeviceArray | None, ...], device: int
) -> Launch:
    prepared: Launch = backend.prepare(operation, shapes, layouts, device)
    return prepared
