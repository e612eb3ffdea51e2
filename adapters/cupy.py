"""The public functions on CuPy arrays.

Everything runs on CuPy's current stream of the arrays' device, and nothing waits for it. So values on the device are
not checked: an array `gamma` that is not positive gives meaningless results, as do borders out of order in `cu_seqlens`
and given indices out of range. `selection_recall` is measured on the CPU from copies, for which it waits.

CuPy has bfloat16 from version 14 on, where `ml_dtypes` is installed; such arrays are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import cupy

from zeta_ops.adapters.arrays import ArrayAdapter
from zeta_ops.adapters.numpy import recall_of
from zeta_ops.adapters.operations import STRIDED, launch, out_of_memory, plan, width_of
from zeta_ops.arguments import dtype_name
from zeta_ops.backends import DeviceArray, Execution
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["ADAPTER"]

Array = Any  # cupy.ndarray


class _CupyAdapter(ArrayAdapter):
    module = cupy
    kind = "CuPy"

    def pick(self, name: str | None) -> Any:
        return pick_backend(name, "cuda", "cupy")

    def device_of(self, x: Array) -> AbstractContextManager[Any]:
        device: AbstractContextManager[Any] = x.device
        return device

    def check_devices(self, **arrays: Any) -> None:
        devices = {name: x.device.id for name, x in arrays.items() if self.is_array(x)}
        if len(set(devices.values())) > 1:
            found = ", ".join(f"{name}: {device}" for name, device in devices.items())
            raise ValueError(f"all arrays must be on one device; got {found}")

    def check_values(
        self, shapes: Shapes, *, gamma: Any = 1.0, cu_seqlens: Array | None = None, indices: Array | None = None
    ) -> None:
        """Nothing is checked: reading values would wait for the device."""

    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Any]) -> list[Array]:
        planned = plan(backend, operation, shapes, width_of(operation, arguments))
        try:
            taken = [_laid_out(x, strided=n < STRIDED[operation]) for n, x in enumerate(arguments)]
            results = [cupy.empty(spec.shape, spec.dtype) for spec in planned.results]
            workspace = cupy.empty(planned.workspace, "uint8")
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError(out_of_memory(operation, planned, cupy.cuda.Device().id)) from error
        launch(backend, operation, shapes, [*map(_view, taken), *map(_view, results)], _here(workspace.data.ptr))
        return results

    def morton_encode(
        self,
        x: Array,
        *,
        bits: int,
        bounds: tuple[float, float] | None,
        num_curves: int,
        curve: int,
        backend: str | None,
    ) -> Array:
        chosen = self.pick(backend)
        key_dim = x.shape[-1]
        with self.device_of(x):
            dtype = "float64" if dtype_name(x) == "float64" else "float32"
            points = _laid_out(x.reshape(-1, key_dim).astype(dtype, copy=False), strided=False)
            codes = cupy.empty(points.shape[0], "uint32" if key_dim * bits <= 32 else "uint64")
            options = {"bits": bits, "bounds": bounds, "num_curves": num_curves, "curve": curve}
            chosen.morton_encode(_view(points), _view(codes), **options, on=_here(0))
        return codes.reshape(x.shape[:-1])

    def morton_decode(self, codes: Array, *, dims: int, bits: int, backend: str | None) -> Array:
        chosen = self.pick(backend)
        with self.device_of(codes):
            flat = _laid_out(codes.reshape(-1), strided=False)
            cells = cupy.empty((flat.size, dims), "uint32")
            chosen.morton_decode(_view(flat), _view(cells), dims=dims, bits=bits, on=_here(0))
        return cells.reshape(*codes.shape, dims)

    def selection_recall(
        self, problem: Problem, q: Array, k: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
    ) -> tuple[Array, Array]:
        self.check_devices(q=q, k=k, gamma=gamma, cu_seqlens=cu_seqlens)

        def select(problem: Problem) -> Any:
            return cupy.asnumpy(self.causal_topk(problem, q, k, cu_seqlens, backend))

        with self.device_of(q):
            width = cupy.asnumpy(gamma) if self.is_array(gamma) else gamma
            keys, mass = recall_of(select, problem, cupy.asnumpy(q), cupy.asnumpy(k), width)
            return cupy.asarray(keys), cupy.asarray(mass)


ADAPTER = _CupyAdapter()


def _laid_out(x: Any, *, strided: bool) -> Any:
    """Bring an array into a layout that the backend takes: contiguous, or with strides and a contiguous last axis."""
    if x is None or x.flags.c_contiguous:
        return x
    whole = all(stride % x.itemsize == 0 for stride in x.strides)
    if strided and whole and (x.strides[-1] == x.itemsize or x.shape[-1] == 1):
        return x
    return cupy.ascontiguousarray(x)


def _view(x: Array | None) -> DeviceArray | None:
    if x is None:
        return None
    strides = tuple(stride // x.itemsize for stride in x.strides[:-1])
    return DeviceArray(x.data.ptr if x.size else 0, x.shape, (*strides, 1), dtype_name(x))


def _here(workspace: int) -> Execution:
    """Say where a call runs: on the current device, on its current stream."""
    return Execution(cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr, workspace)
