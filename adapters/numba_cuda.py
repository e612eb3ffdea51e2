"""The public functions on device arrays of Numba, and on others with `__cuda_array_interface__`, shape, ndim and dtype.

Results are device arrays of Numba. Everything runs on Numba's default stream of its current device, and nothing waits
for it, so that values on the device are not checked, as with CuPy (`zeta_ops.adapters.cupy`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda

from zeta_ops.adapters.arrays import ArrayAdapter, Pullback
from zeta_ops.adapters.numba_cuda_arrays import Array, array_of, asarray, contiguous, empty
from zeta_ops.adapters.numpy import recall_of
from zeta_ops.adapters.operations import STRIDED, launch, out_of_memory, plan, width_of
from zeta_ops.backends import Execution
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["ADAPTER"]


class _NumbaCudaAdapter(ArrayAdapter):
    module = SimpleNamespace(ndarray=Array, empty=empty, asarray=asarray)
    kind = "Numba device"

    def pick(self, name: str | None) -> Any:
        return pick_backend(name, "cuda", "numba_cuda")

    def device_of(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()  # Numba's arrays belong to its current device

    def check_devices(self, **arrays: Any) -> None:
        """Nothing to check: see `device_of`."""

    def check_values(self, shapes: Shapes, *, gamma: Any = 1.0, cu_seqlens: Any = None, indices: Any = None) -> None:
        """Nothing is checked: reading values would wait for the device."""

    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Any]) -> list[Array]:
        planned = plan(backend, operation, shapes, width_of(operation, arguments))
        try:
            taken = [contiguous(x, strided=n < STRIDED[operation]) for n, x in enumerate(arguments)]
            results = [empty(spec.shape, spec.dtype) for spec in planned.results]
            workspace = empty((planned.workspace,), "uint8")
        except cuda.cudadrv.driver.CudaAPIError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise MemoryError(out_of_memory(operation, planned, _device())) from error
        views = [None if x is None else x.view() for x in (*taken, *results)]
        launch(backend, operation, shapes, views, Execution(_device(), 0, workspace.address))
        return results

    def morton_encode(
        self,
        x: Any,
        *,
        bits: int,
        bounds: tuple[float, float] | None,
        num_curves: int,
        curve: int,
        backend: str | None,
    ) -> Any:
        chosen, x = self.pick(backend), array_of(x)
        dims = x.shape[-1]
        points = contiguous(x.astype("float64" if x.dtype == "float64" else "float32").reshape(-1, dims))
        codes = empty((points.shape[0],), "uint32" if dims * bits <= 32 else "uint64")
        options = {"bits": bits, "bounds": bounds, "num_curves": num_curves, "curve": curve}
        chosen.morton_encode(points.view(), codes.view(), **options, on=Execution(_device(), 0, 0))
        return codes.reshape(*x.shape[:-1]).owner

    def morton_decode(self, codes: Any, *, dims: int, bits: int, backend: str | None) -> Any:
        chosen, codes = self.pick(backend), array_of(codes)
        flat = contiguous(codes.reshape(-1))
        cells = empty((flat.shape[0], dims), "uint32")
        chosen.morton_decode(flat.view(), cells.view(), dims=dims, bits=bits, on=Execution(_device(), 0, 0))
        return cells.reshape(*codes.shape, dims).owner

    def causal_topk(self, problem: Problem, *arguments: Any) -> Any:
        return _on_device(super().causal_topk, problem, arguments).owner

    def zeta_attention(self, problem: Problem, *arguments: Any) -> Any:
        found = _on_device(super().zeta_attention, problem, arguments)
        return tuple(x.owner for x in found) if isinstance(found, tuple) else found.owner

    def zeta_attention_vjp(self, problem: Problem, *arguments: Any) -> tuple[Any, Pullback]:
        return _with_pullback(*_on_device(super().zeta_attention_vjp, problem, arguments))

    def cauchy_attention(self, shapes: Shapes, *arguments: Any) -> Any:
        return _on_device(super().cauchy_attention, shapes, arguments).owner

    def cauchy_attention_vjp(self, shapes: Shapes, *arguments: Any) -> tuple[Any, Pullback]:
        return _with_pullback(*_on_device(super().cauchy_attention_vjp, shapes, arguments))

    def selection_recall(
        self, problem: Problem, q: Any, k: Any, gamma: Any, cu_seqlens: Any, backend: str | None
    ) -> tuple[Any, Any]:
        def select(problem: Problem) -> Any:
            return self.causal_topk(problem, q, k, cu_seqlens, backend).copy_to_host()

        width = gamma if isinstance(gamma, (int, float)) else _to_host(gamma)
        keys, mass = recall_of(select, problem, _to_host(q), _to_host(k), width)
        return cuda.to_device(np.asarray(keys)), cuda.to_device(np.asarray(mass))


ADAPTER = _NumbaCudaAdapter()


def _device() -> int:
    return int(cuda.get_current_device().id)


def _to_host(x: Any) -> Any:
    return cuda.as_cuda_array(x).copy_to_host() if hasattr(x, "__cuda_array_interface__") else x


def _on_device(function: Callable[..., Any], shapes: Shapes, arguments: tuple[Any, ...]) -> Any:
    """Call a function with every array among its arguments as an `Array`."""
    return function(shapes, *(array_of(x) if hasattr(x, "__cuda_array_interface__") else x for x in arguments))


def _with_pullback(out: Array, pullback: Pullback) -> tuple[Any, Pullback]:
    def pull(grad_out: Any) -> tuple[Any, Any, Any, Any]:
        given = array_of(grad_out) if hasattr(grad_out, "__cuda_array_interface__") else grad_out
        grad_q, grad_k, grad_v, grad_gamma = pullback(given)
        return grad_q.owner, grad_k.owner, grad_v.owner, grad_gamma.owner

    return out.owner, pull
