"""The types of device that tensors can be on: how a backend gets their memory, and where a call runs.

One entry of `DEVICES` for each; the ops, and all that is registered with torch, are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from zeta_ops.adapters.operations import (
    STRIDED,
    Plan,
    has_residuals,
    out_of_memory,
    plan,
    residual_packing,
    result_specs,
    run,
    width_of,
)
from zeta_ops.adapters.torch.memory import as_array, pieces_of, torch_dtype
from zeta_ops.backends import ArraySpec, DeviceArray, Execution
from zeta_ops.options import Shapes

__all__ = ["APART", "DEVICES", "DROPPED", "PACKED", "Device"]

APART, PACKED, DROPPED = "apart", "packed", "dropped"  # what becomes of residuals

_NOTHING = nullcontext()


class Device(Protocol):
    """A type of device."""

    dispatch_key: str

    def compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        residuals: str = APART,
    ) -> list[Tensor]:
        """Run an operation on canonical tensors and return what it writes (see `zeta_ops.adapters.operations`).

        Residuals of a search are tensors (`APART`), or one tensor of bytes as `operations.residual_packing` lays them
        out (`PACKED`); one that nobody is going to read may have more behind them (`DROPPED`).
        """

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        """Encode `points (n, dk)`."""

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        """Decode `codes (n,)`."""


class _Cpu:
    """Tensors are arrays of NumPy to the backend."""

    dispatch_key = "CPU"

    def compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        residuals: str = APART,
    ) -> list[Tensor]:
        packing = residual_packing(backend, shapes) if residuals != APART and has_residuals(operation) else None
        specs = result_specs(backend, operation, shapes, packing)
        results = [_empty(spec.shape, torch_dtype(spec.dtype), _device(arguments)) for spec in specs]
        given: list[Any] = [*arguments]
        written: list[Any] = [*results]
        if packing is not None:
            holder = written if operation == "search_forward" else given
            holder.extend(pieces_of(holder.pop(), packing))
        taken = [None if x is None else as_array(x) for x in given]
        run(backend, operation, shapes, taken, [as_array(x) for x in written])
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
        return _NOTHING if torch.cuda.current_device() == device.index else torch.cuda.device(device)

    def stream_of(self, device: torch.device) -> int:
        """Handle of the current stream; the thread that runs a backward pass has that of the forward pass."""
        handle: int = torch._C._cuda_getCurrentRawStream(device.index)
        return handle

    def compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        residuals: str = APART,
    ) -> list[Tensor]:
        memory = _memory(backend, operation, shapes, width_of(operation, arguments), residuals)
        device = _device(arguments)
        with self.device_of(device):
            try:
                taken = [_laid_out(x, n < memory.strided) for n, x in enumerate(arguments)]
                results = [_empty(shape, dtype, device, view.strides) for shape, dtype, view in memory.results]
                workspace = _empty(memory.workspace, torch.uint8, device, (1,)) if memory.workspace else results[-1]
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(out_of_memory(operation, memory.planned, device.index)) from error
            on = Execution(device.index, self.stream_of(device), workspace.data_ptr() + memory.offset)
            given: list[Any] = [view for _, view in taken]
            written: list[Any] = [
                _moved(view, x.data_ptr()) for x, (_, _, view) in zip(results, memory.results, strict=True)
            ]
            if memory.pieces:
                holder = written if operation == "search_forward" else given
                start = holder.pop().address
                holder.extend([_moved(view, start + view.address) for view in memory.pieces])
            run(backend, operation, shapes, given, written, on=on)
        return results

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        wide = points.shape[1] * options["bits"] > 32
        points = points.to(torch.float64 if points.dtype == torch.float64 else torch.float32).contiguous()
        with self.device_of(points.device):
            codes = _empty(points.shape[:1], torch.uint64 if wide else torch.uint32, points.device)
            backend.morton_encode(_view(points), _view(codes), **options, on=self._without_workspace(points))
        return codes

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        codes = codes.contiguous()
        with self.device_of(codes.device):
            cells = _empty((codes.shape[0], dims), torch.uint32, codes.device)
            on = self._without_workspace(codes)
            backend.morton_decode(_view(codes), _view(cells), dims=dims, bits=bits, on=on)
        return cells

    def _without_workspace(self, x: Tensor) -> Execution:
        return Execution(_device([x]).index, self.stream_of(x.device), 0)


class _Memory(NamedTuple):
    """The memory that all calls alike take on a device.

    Attributes
    ----------
    strided : int
        So many arguments, from the first on, may have strides.
    results : tuple of (shape, dtype, DeviceArray)
        What to allocate, and how the backend sees it.
    pieces : tuple of DeviceArray
        Residuals in one piece, by their offsets in it; else nothing.
    workspace : tuple of int
        Its shape; empty where it lies in the last result.
    offset : int
        Where it begins.
    planned : Plan
        The same for messages.
    """

    strided: int
    results: tuple[tuple[tuple[int, ...], torch.dtype, DeviceArray], ...]
    pieces: tuple[DeviceArray, ...]
    workspace: tuple[int, ...]
    offset: int
    planned: Plan


@lru_cache(maxsize=1024)
def _memory(backend: Any, operation: str, shapes: Shapes, width: int, residuals: str) -> _Memory:
    planned = plan(backend, operation, shapes, width)
    packing = residual_packing(backend, shapes) if residuals != APART and has_residuals(operation) else None
    specs = result_specs(backend, operation, shapes, packing)
    offset = 0
    if residuals == DROPPED and packing is not None:  # one allocation less
        offset = packing.size
        specs = *specs[:-1], ArraySpec((packing.size + planned.workspace,), "uint8")
    return _Memory(
        strided=STRIDED[operation],
        results=tuple((spec.shape, torch_dtype(spec.dtype), _view_of_spec(spec, 0)) for spec in specs),
        pieces=tuple(_view_of_spec(spec, offset) for spec, offset, _ in packing.pieces) if packing else (),
        workspace=() if offset else (planned.workspace,),
        offset=offset,
        planned=planned,
    )


def _view_of_spec(spec: ArraySpec, address: int) -> DeviceArray:
    sizes = [max(1, size) for size in spec.shape]  # as torch counts strides of empty tensors
    strides = tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    return DeviceArray(address, spec.shape, strides, spec.dtype)


def _moved(view: DeviceArray, address: int) -> DeviceArray:
    _, shape, strides, dtype = view
    return DeviceArray(0 if 0 in shape else address, shape, strides, dtype)


DEVICES: dict[str, Device] = {"cpu": _Cpu(), "cuda": _Gpu()}


def _device(tensors: Sequence[Tensor | None]) -> torch.device:
    assert tensors[0] is not None
    return tensors[0].device


def _empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, strides: Sequence[int] | None = None
) -> Tensor:
    """Allocate; with strides, those of a contiguous tensor, in two thirds of the time."""
    if strides is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _laid_out(x: Tensor | None, strided: bool) -> tuple[Tensor | None, DeviceArray | None]:
    """Bring a tensor into a layout that the backend takes: contiguous, or with strides and a contiguous last axis.

    Returns
    -------
    (Tensor, DeviceArray)
        The memory and its owner, which has to live as long.
    """
    if x is None:
        return None, None
    strides = x.stride()
    if not ((strided and strides[-1] == 1) or x.is_contiguous()):
        x = x.contiguous()
        strides = x.stride()
    if strides[-1] != 1:  # of an axis of length 1
        strides = *strides[:-1], 1
    return x, DeviceArray(x.data_ptr() if x.numel() else 0, x.shape, strides, _name(x.dtype))


def _view(x: Tensor) -> DeviceArray:
    view = _laid_out(x, strided=False)[1]
    assert view is not None
    return view


@lru_cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
