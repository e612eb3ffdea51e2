"""A backend of a device whose memory is the CPU's: what adapters hand to kernels, computed by the numba backend.

It reads and writes at the addresses that it is given, and nowhere else, and refuses what the contract of
`zeta_ops.backends.DeviceBackend` does not allow.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases import Array

from zeta_ops.backends import ADDRESS_UNIT, ArraySpec, DeviceArray, Execution, Launch, numba
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import BackendEntry

__all__ = [
    "CALLS",
    "NAME",
    "entry",
    "morton_decode",
    "morton_encode",
    "prepare",
    "residual_specs",
    "unavailable_reason",
    "workspace_bytes",
]

NAME = "device_memory"
CALLS: list[tuple[str, Execution]] = []  # operations, and where they ran
_WORKSPACE = {"select": 1, "search_forward": 1000, "search_backward": 3000, "given_forward": 0, "given_backward": 256}
_POISON = 0xA5


def entry(platform: str) -> BackendEntry:
    """Row of this backend for the table of backends."""
    return BackendEntry(NAME, __name__, (platform,), "for tests", ("cupy", "torch", "jax"))


def unavailable_reason() -> None:
    return None


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    return numba.residual_specs(problem)


def workspace_bytes(operation: str, shapes: Shapes, width: int = 0) -> int:
    assert (width > 0) == operation.startswith("given")
    return _WORKSPACE[operation]


def _array(x: DeviceArray, spec: tuple[tuple[int, ...], str], strided: bool = False) -> Array:
    """View memory as an array, after a check of what the contract says about it."""
    shape, dtype = spec
    assert isinstance(x, DeviceArray) and tuple(x.shape) == shape and x.dtype == dtype, (x, spec)
    contiguous = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    assert len(x.strides) == len(shape) and x.strides[-1] == 1
    if 0 in shape:
        assert x.address == 0
        return np.empty(shape, dtype)
    assert x.address != 0
    is_whole = all(a == b for a, b, n in zip(x.strides, contiguous, shape, strict=True) if n > 1)
    assert strided or is_whole, (x, contiguous)
    size = np.dtype(dtype).itemsize
    steps = [stride * size for stride in x.strides]
    low = sum(min(0, (n - 1) * step) for n, step in zip(shape, steps, strict=True))
    high = sum(max(0, (n - 1) * step) for n, step in zip(shape, steps, strict=True)) + size
    memory: Any = (ctypes.c_char * (high - low)).from_address(x.address + low)
    return np.ndarray(shape, dtype, memory, offset=-low, strides=steps)


def _use(operation: str, on: Execution) -> None:
    """Write all over the workspace."""
    CALLS.append((operation, on))
    size = _WORKSPACE.get(operation, 0)
    if size:
        ctypes.memset(on.workspace, _POISON, size)


def _inputs(shapes: Shapes, q: DeviceArray, k: DeviceArray, v: DeviceArray | None) -> list[Array]:
    s = shapes
    arrays = [_array(q, (s.q_shape, s.coordinate_dtype), True), _array(k, (s.k_shape, s.coordinate_dtype), True)]
    return arrays if v is None else [*arrays, _array(v, (s.v_shape, s.value_dtype), True)]


def _gamma(shapes: Shapes, gamma: DeviceArray) -> Array:
    return _array(gamma, ((shapes.q_heads,), shapes.coordinate_dtype))


def _borders(problem: Problem, cu_seqlens: DeviceArray | None) -> Array | None:
    assert (cu_seqlens is None) == (problem.num_sequences is None)
    return None if cu_seqlens is None else _array(cu_seqlens, ((problem.num_sequences + 1,), "int32"))


def _normalizer(shapes: Shapes, normalizer: DeviceArray) -> Array:
    return _array(normalizer, (shapes.normalizer_shape, shapes.sum_dtype))


def _residuals(problem: Problem, residuals: tuple[DeviceArray, ...]) -> tuple[Array, ...]:
    specs = residual_specs(problem)
    return tuple(_array(x, (spec.shape, spec.dtype)) for x, spec in zip(residuals, specs, strict=True))


def _out(shapes: Shapes, out: DeviceArray, strided: bool = False) -> Array:
    return _array(out, (shapes.out_shape, shapes.value_dtype), strided)


def _gradients(shapes: Shapes, gradients: tuple[DeviceArray, ...]) -> list[Array]:
    s = shapes
    specs = (
        (s.q_shape, s.coordinate_dtype),
        (s.k_shape, s.coordinate_dtype),
        (s.v_shape, s.value_dtype),
        ((s.q_heads,), s.coordinate_dtype),
    )
    return [_array(x, spec) for x, spec in zip(gradients, specs, strict=True)]


def morton_encode(x: DeviceArray, codes: DeviceArray, *, on: Execution, **options: Any) -> None:
    assert x.dtype in ("float32", "float64")
    _use("morton_encode", on)
    points = _array(x, (tuple(x.shape), x.dtype))
    found = numba.morton_encode(points, **options)
    _array(codes, (found.shape, found.dtype.name))[...] = found


def morton_decode(codes: DeviceArray, cells: DeviceArray, *, dims: int, bits: int, on: Execution) -> None:
    _use("morton_decode", on)
    found = numba.morton_decode(_array(codes, (tuple(codes.shape), codes.dtype)), dims=dims, bits=bits)
    _array(cells, (found.shape, "uint32"))[...] = found


def prepare(operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None], device: int) -> Launch:
    layouts = [*arrays]

    def launch(addresses: Sequence[int], stream: int) -> None:
        *of_arrays, workspace = addresses
        moved = [_moved(layout, address) for layout, address in zip(layouts, of_arrays, strict=True)]
        _use(operation, Execution(device, stream, workspace))
        _COMPUTE[operation](shapes, *moved)

    return launch


def _moved(layout: DeviceArray | None, address: int) -> DeviceArray | None:
    if layout is None:
        return None
    if 0 in layout.shape:
        return layout._replace(address=0)
    assert address % ADDRESS_UNIT == layout.address % ADDRESS_UNIT
    return layout._replace(address=address)


def _select(
    problem: Problem, q: DeviceArray, k: DeviceArray, cu_seqlens: DeviceArray | None, indices: DeviceArray
) -> None:
    written = _array(indices, ((*problem.normalizer_shape, problem.options.top_k), "int32"))
    numba.causal_topk(problem, *_inputs(problem, q, k, None), _borders(problem, cu_seqlens), written)


def _search_forward(
    problem: Problem,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    gamma: DeviceArray,
    cu_seqlens: DeviceArray | None,
    out: DeviceArray,
    normalizer: DeviceArray,
    *residuals: DeviceArray,
) -> None:
    given = *_inputs(problem, q, k, v), _gamma(problem, gamma), _borders(problem, cu_seqlens)
    written = _out(problem, out), _normalizer(problem, normalizer), _residuals(problem, residuals)
    numba.attention_forward(problem, *given, *written)


def _search_backward(
    problem: Problem,
    grad_out: DeviceArray,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    gamma: DeviceArray,
    cu_seqlens: DeviceArray | None,
    normalizer: DeviceArray,
    *others: DeviceArray,
) -> None:
    residuals, gradients = others[:-4], others[-4:]
    given = *_inputs(problem, q, k, v), _gamma(problem, gamma), _borders(problem, cu_seqlens)
    kept = _normalizer(problem, normalizer), _residuals(problem, residuals)
    numba.attention_backward(problem, _out(problem, grad_out, True), *given, *kept, *_gradients(problem, gradients))


def _given_forward(
    shapes: Shapes,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    indices: DeviceArray,
    gamma: DeviceArray,
    out: DeviceArray,
    normalizer: DeviceArray,
) -> None:
    given = _array(indices, ((*shapes.normalizer_shape, indices.shape[-1]), "int32")), _gamma(shapes, gamma)
    numba.cauchy_forward(shapes, *_inputs(shapes, q, k, v), *given, _out(shapes, out), _normalizer(shapes, normalizer))


def _given_backward(
    shapes: Shapes,
    grad_out: DeviceArray,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    indices: DeviceArray,
    gamma: DeviceArray,
    normalizer: DeviceArray,
    *gradients: DeviceArray,
) -> None:
    given = _array(indices, ((*shapes.normalizer_shape, indices.shape[-1]), "int32")), _gamma(shapes, gamma)
    numba.cauchy_backward(
        shapes,
        _out(shapes, grad_out, True),
        *_inputs(shapes, q, k, v),
        *given,
        _normalizer(shapes, normalizer),
        *_gradients(shapes, gradients),
    )


_COMPUTE: dict[str, Callable[..., None]] = {
    "select": _select,
    "search_forward": _search_forward,
    "search_backward": _search_backward,
    "given_forward": _given_forward,
    "given_backward": _given_backward,
}
