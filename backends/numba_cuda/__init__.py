"""The second CUDA backend: the kernels in Python, compiled by Numba's CUDA target. To be read, changed and taught.

It does what the `cupy` backend does, in the same steps, with threads, blocks and shared memory alone: no tensor cores,
no votes or shuffles among the threads of a warp. So Numba's simulator runs it too, on any machine
(`NUMBA_ENABLE_CUDASIM=1`).

Where to begin reading: `layout` (where everything lies), `selection` and `attention` (what is launched, in which
order), then the kernels, one operation a file: `encode`, `levels`, `entries`, `ranges`, `select`; `lists` and `parts`,
which kernels of attention share, `attend`, `keys`, `given`, `given_keys`, `history`, `history_keys`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from zeta_ops.backends import INDICES, ArraySpec, DeviceArray, Execution, Launch
from zeta_ops.backends.numba_cuda import sizes
from zeta_ops.backends.numba_cuda.availability import unavailable_reason
from zeta_ops.options import Problem, Shapes

__all__ = [
    "morton_decode",
    "morton_encode",
    "prepare",
    "residual_specs",
    "unavailable_reason",
    "workspace_bytes",
]


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    """List what the forward pass leaves for the backward pass."""
    return tuple(sizes.residual_specs(problem).values())


# What follows needs Numba's CUDA target, which may be missing: it is imported when something is computed. Arrays come
# in the order of `zeta_ops.backends.DeviceBackend`, which says what each function does.


@lru_cache(maxsize=256)
def workspace_bytes(operation: str, shapes: Shapes, width: int = 0) -> int:
    """Say how many bytes of workspace an operation takes; see `zeta_ops.backends.DeviceBackend`."""
    from zeta_ops.backends.numba_cuda.runner import workspace_bytes

    return workspace_bytes(operation, shapes, width)


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
    from zeta_ops.backends.numba_cuda import operations, runner

    run = runner.runner_of(on)
    operations.morton_encode(x, codes, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve, run=run)


def morton_decode(codes: DeviceArray, cells: DeviceArray, *, dims: int, bits: int, on: Execution) -> None:
    """Decode codes."""
    from zeta_ops.backends.numba_cuda import operations, runner

    operations.morton_decode(codes, cells, dims=dims, bits=bits, run=runner.runner_of(on))


def prepare(operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None], device: int) -> Launch:
    """Keep what calls alike have in common; steps are gone through at each."""
    from zeta_ops.backends.numba_cuda import operations, runner

    indices = arrays[INDICES[operation]] if operation in INDICES else None
    width = 0 if indices is None else indices.shape[-1]

    def launch(addresses: Sequence[int], stream: int) -> None:
        *of_arrays, workspace = addresses
        moved = [
            array and array._replace(address=0 if 0 in array.shape else address)
            for array, address in zip(arrays, of_arrays, strict=True)
        ]
        run = runner.runner_for(operation, shapes, Execution(device, stream, workspace), width)
        operations.launch(operation, shapes, moved, workspace=workspace, run=run)

    return launch
