"""The CUDA backend: kernels in CUDA C++ (`kernels/`), compiled by CuPy, and what launches them.

The way of a call: `calls` writes addresses, sizes and options into the one argument of all kernels (`args`, read from
`kernels/args.cuh`); `selection` and `attention` say which kernels follow one another; `runner` launches them. All of it
but the last runs once for calls alike: `plans` keeps what is launched, for other addresses. Workspace is one piece of
the caller's memory (`memory`). Nothing is allocated between launches and nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from zeta_ops.backends import DeviceArray, Execution
from zeta_ops.backends.cupy import calls, plans
from zeta_ops.backends.cupy.availability import unavailable_reason
from zeta_ops.backends.cupy.calls import residual_specs
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.cupy.runner import runner_for, runner_of
from zeta_ops.backends.radix_sort import sort_bytes
from zeta_ops.options import Problem, Shapes

__all__ = [
    "attention_backward",
    "attention_forward",
    "cauchy_backward",
    "cauchy_forward",
    "causal_topk",
    "morton_decode",
    "morton_encode",
    "residual_specs",
    "unavailable_reason",
    "workspace_bytes",
]


@lru_cache(maxsize=256)
def workspace_bytes(operation: str, shapes: Shapes, width: int = 0) -> int:
    """Say how many bytes of workspace an operation takes; see `zeta_ops.backends.DeviceBackend`."""
    storage = sort_bytes(0, *calls.largest_sort(operation, shapes, width))
    return total_bytes(calls.workspace_specs(operation, shapes, width)) + storage


# Arrays come in the order of `zeta_ops.backends.DeviceBackend`, which says what each function does.


def morton_encode(
    x: DeviceArray,
    codes: DeviceArray,
    *,
    bits: int,
    bounds: tuple[float, float] | None,
    num_curves: int,
    curve: int,
    on: Execution,
) -> None:
    """Encode points."""
    run = runner_of(calls.morton_configuration(x.dtype, x.shape[-1]), on)
    calls.morton_encode(x, codes, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve, run=run)


def morton_decode(codes: DeviceArray, cells: DeviceArray, *, dims: int, bits: int, on: Execution) -> None:
    """Decode codes."""
    run = runner_of(calls.morton_configuration("float32", dims), on)
    calls.morton_decode(codes, cells, bits=bits, run=run)


def causal_topk(problem: Problem, *arrays: Any, on: Execution) -> None:
    """Write the selection of every query."""
    _launch("select", problem, arrays, on)


def attention_forward(problem: Problem, *arrays: Any, on: Execution) -> None:
    """Attend over the selection."""
    _launch("search_forward", problem, arrays, on)


def attention_backward(problem: Problem, *arrays: Any, on: Execution) -> None:
    """Differentiate `attention_forward`."""
    _launch("search_backward", problem, arrays, on)


def cauchy_forward(shapes: Shapes, *arrays: Any, on: Execution) -> None:
    """Attend over given indices."""
    _launch("given_forward", shapes, arrays, on, width=arrays[3].shape[-1])


def cauchy_backward(shapes: Shapes, *arrays: Any, on: Execution) -> None:
    """Differentiate `cauchy_forward`."""
    _launch("given_backward", shapes, arrays, on, width=arrays[4].shape[-1])


def _launch(operation: str, shapes: Shapes, arrays: Sequence[Any], on: Execution, width: int = 0) -> None:
    plans.launch(operation, shapes, arrays, on.workspace, runner_for(operation, shapes, on, width), width)
