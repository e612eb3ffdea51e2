"""The CUDA backend: kernels in CUDA C++ (`kernels/`), compiled by CuPy, and what launches them.

The way of a call: `calls` writes addresses, sizes and options into the one argument of all kernels (`args`, read from
`kernels/args.cuh`); `selection` and `attention` say which kernels follow one another; `runner` launches them. All of it
but the last runs once for calls alike (`prepare`): `plans` keeps what is launched, for other addresses. Workspace is
one piece of the caller's memory (`memory`). Nothing is allocated between launches and nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from zeta_ops.backends import INDICES, DeviceArray, Execution, Launch
from zeta_ops.backends.cupy import calls, plans
from zeta_ops.backends.cupy.availability import unavailable_reason
from zeta_ops.backends.cupy.calls import residual_specs
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.cupy.runner import Prepared, runner_of
from zeta_ops.backends.radix_sort import sort_bytes
from zeta_ops.options import Shapes

__all__ = [
    "morton_decode",
    "morton_encode",
    "prepare",
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


def prepare(operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None], device: int) -> Launch:
    """Find what is launched, and compile it."""
    indices = arrays[INDICES[operation]] if operation in INDICES else None
    width = 0 if indices is None else indices.shape[-1]
    return Prepared(plans.record(operation, shapes, arrays), operation, shapes, width, device)
