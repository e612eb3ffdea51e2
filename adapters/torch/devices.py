"""The types of device that tensors can be on: how a backend gets their memory, and where a call runs.

One entry of `DEVICES` for each; the ops, and all that is registered with torch, are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from zeta_ops.adapters.operations import STRIDED, out_of_memory, plan, result_specs, run, width_of
from zeta_ops.adapters.torch.memory import as_array, torch_dtype
from zeta_ops.backends import DeviceArray, Execution
from zeta_ops.options import Shapes

__all__ = ["DEVICES", "Device"]


class Device(Protocol):
    """A type of device."""

    dispatch_key: str

    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Tensor | None]) -> list[Tensor]:
        """Run an operation on canonical tensors and return what it writes (see `zeta_ops.adapters.operations`)."""

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        """Encode `points (n, dk)`."""

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        """Decode `codes (n,)`."""


class _Cpu:
    """Tensors are arrays of NumPy to the backend."""

    dispatch_key = "CPU"

    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Tensor | None]) -> list[Tensor]:
        specs = result_specs(backend, operation, shapes)
        results = [_empty(spec.shape, spec.dtype, _device(arguments)) for spec in specs]
        taken = [None if x is None else as_array(x) for x in arguments]
        run(backend, operation, shapes, taken, [as_array(x) for x in results])
        return results

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        return torch.from_numpy(backend.morton_encode(as_array(points), **options))

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        return torch.from_numpy(backend.morton_decode(as_array(codes), dims=dims, bits=bits))


class _Gpu:
    """Tensors are addresses to the backend, which launches kernels on torch's current stream of their device.

    torch's allocator gives all memory. It hands memory out again in the order of the stream, so that a workspace may be
    let go as soon as all is launched.
    """

    dispatch_key = "CUDA"

    def device_of(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make a device the current one: the dispatcher does not, for kernels written in Python."""
        return torch.cuda.device(device)

    def stream_of(self, device: torch.device) -> int:
        """Handle of the current stream; the thread that runs a backward pass has that of the forward pass."""
        return int(torch.cuda.current_stream(device).cuda_stream)

    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Tensor | None]) -> list[Tensor]:
        planned = plan(backend, operation, shapes, width_of(operation, arguments))
        device = _device(arguments)
        with self.device_of(device):
            try:
                strided = STRIDED[operation]
                taken = [_laid_out(x, n < strided) for n, x in enumerate(arguments)]
                results = [_empty(spec.shape, spec.dtype, device) for spec in planned.results]
                workspace = _empty((planned.workspace,), "uint8", device)
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(out_of_memory(operation, planned, device.index)) from error
            on = Execution(device.index, self.stream_of(device), workspace.data_ptr())
            run(backend, operation, shapes, [*map(_view, taken)], [*map(_view, results)], on=on)
        return results

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        wide = points.shape[1] * options["bits"] > 32
        points = points.to(torch.float64 if points.dtype == torch.float64 else torch.float32).contiguous()
        with self.device_of(points.device):
            codes = _empty(points.shape[:1], "uint64" if wide else "uint32", points.device)
            backend.morton_encode(_view(points), _view(codes), **options, on=self._without_workspace(points))
        return codes

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        codes = codes.contiguous()
        with self.device_of(codes.device):
            cells = _empty((codes.shape[0], dims), "uint32", codes.device)
            on = self._without_workspace(codes)
            backend.morton_decode(_view(codes), _view(cells), dims=dims, bits=bits, on=on)
        return cells

    def _without_workspace(self, x: Tensor) -> Execution:
        return Execution(_device([x]).index, self.stream_of(x.device), 0)


DEVICES: dict[str, Device] = {"cpu": _Cpu(), "cuda": _Gpu()}


def _device(tensors: Sequence[Tensor | None]) -> torch.device:
    return next(x.device for x in tensors if x is not None)


def _empty(shape: Sequence[int], dtype: str, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch_dtype(dtype), device=device)


def _laid_out(x: Tensor | None, strided: bool) -> Tensor | None:
    """Bring a tensor into a layout that the backend takes: contiguous, or with strides and a contiguous last axis."""
    if x is None or (strided and x.stride(-1) == 1):
        return x
    return x.contiguous()


@lru_cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _view(x: Tensor | None) -> DeviceArray | None:
    if x is None:
        return None
    return DeviceArray(x.data_ptr() if x.numel() else 0, x.shape, (*x.stride()[:-1], 1), _name(x.dtype))
