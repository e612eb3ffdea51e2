"""Arrays on a device with the few methods that adapters use, which Numba's device arrays do not have."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numba import cuda

from zeta_ops.backends import DeviceArray, Execution
from zeta_ops.backends.numba_cuda.calls import kept_as
from zeta_ops.backends.numba_cuda.casts import copy_kernel, fill_kernel, sum_kernel
from zeta_ops.backends.numba_cuda.compiling import Kernel, Memory
from zeta_ops.backends.numba_cuda.runner import runner_of
from zeta_ops.backends.numba_cuda.values import value_kind

__all__ = ["Array", "array_of", "asarray", "contiguous", "empty"]

THREADS = 256


class Array:
    """Memory with a shape, on Numba's current device and default stream.

    Attributes
    ----------
    owner : DeviceNDArray, or any array with `__cuda_array_interface__`
        What holds the memory: of the same shape, where it was made here.
    address : int
    shape, strides : tuple of int
        In elements.
    dtype : dtype
    """

    def __init__(self, owner: Any, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> None:
        self.owner, self.address, self.shape, self.strides, self.dtype = owner, address, shape, strides, np.dtype(dtype)

    @property
    def is_contiguous(self) -> bool:
        """Whether elements follow one another in order."""
        return self.strides == _strides(self.shape) or prod(self.shape) <= 1

    def view(self) -> DeviceArray:
        """Take it as backends do."""
        return DeviceArray(self.address if prod(self.shape) else 0, self.shape, self.strides, self.dtype.name)

    def reshape(self, *shape: Any) -> Array:
        """Give it another shape: a copy where it is not contiguous."""
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if -1 in wanted:
            rest = prod(n for n in wanted if n != -1)
            wanted = tuple(prod(self.shape) // max(rest, 1) if n == -1 else n for n in wanted)
        if wanted == self.shape:
            return self
        x = contiguous(self)
        return Array(_reshaped(x.owner, wanted), x.address, wanted, _strides(wanted), x.dtype)

    def astype(self, dtype: Any, copy: bool = False) -> Array:
        """Convert; only float16 and what is wider."""
        return self if self.dtype == dtype else self._copy(np.dtype(dtype))

    def sum(self) -> Array:
        """Add all up."""
        total = empty((), self.dtype)
        _launch(sum_kernel, 1, _memory(contiguous(self)), _memory(total), prod(self.shape))
        return total

    def __setitem__(self, where: object, value: Any) -> None:
        """Write a number, or the one or the same many numbers of an array, everywhere."""
        count = prod(self.shape)
        if not isinstance(value, Array):
            _launch(fill_kernel, count, _memory(self), count, float(value))
            return
        strides = value.strides if value.shape == self.shape else (0,) * len(self.shape)
        _copy(Array(value.owner, value.address, self.shape, strides, value.dtype), self)

    def _copy(self, dtype: Any) -> Array:
        made = empty(self.shape, dtype)
        _copy(self, made)
        return made


def array_of(x: Any) -> Array:
    """Take an array with `__cuda_array_interface__`, in the order of its stream.

    Raises
    ------
    TypeError
        If it has a mask, or strides that are no whole elements.
    """
    described = x.__cuda_array_interface__
    if described.get("mask") is not None:
        raise TypeError("arrays with a mask are not taken, because it would be ignored")
    dtype, shape = np.dtype(described["typestr"]), tuple(described["shape"])
    given = described.get("strides")
    if given is not None and any(stride % dtype.itemsize for stride in given):
        raise TypeError(f"strides must be whole elements of {dtype.itemsize} bytes; got {tuple(given)}")
    strides = _strides(shape) if given is None else tuple(stride // dtype.itemsize for stride in given)
    stream = described.get("stream")
    if stream is not None and stream > 1:  # 1 is the stream on which everything runs here
        event = cuda.event(timing=False)
        event.record(cuda.external_stream(stream))
        event.wait(cuda.default_stream())
    return Array(x, described["data"][0], shape, strides, dtype)


def empty(shape: Any, dtype: Any) -> Array:
    """Make an array."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    owner = cuda.device_array(shape, np.dtype(dtype))
    return Array(owner, owner.__cuda_array_interface__["data"][0], shape, _strides(shape), dtype)


def asarray(x: Array, dtype: Any) -> Array:
    """Convert."""
    return x.astype(dtype)


def contiguous(x: Any, *, strided: bool = False) -> Any:
    """Bring an array into a layout that the backend takes: contiguous, or with strides and a contiguous last axis."""
    if x is None or x.is_contiguous:
        return x
    return x if strided and (x.strides[-1] == 1 or x.shape[-1] == 1) else x._copy(x.dtype)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _reshaped(owner: Any, shape: tuple[int, ...]) -> Any:
    """Give an owner another shape; where it is none of Numba's arrays, it only keeps the memory."""
    if not isinstance(owner, cuda.cudadrv.devicearray.DeviceNDArray):
        return owner
    return owner.reshape(shape) if prod(shape) > 0 else cuda.device_array(shape, owner.dtype)


def _memory(x: Array) -> Memory:
    reach = 1 + sum((length - 1) * stride for length, stride in zip(x.shape, x.strides, strict=True))
    return Memory(x.address, reach, kept_as(x.dtype.name))


def _copy(source: Array, to: Array) -> None:
    count = prod(to.shape)
    shape, strides = source.shape or (1,), source.strides or (0,)
    kernel = copy_kernel(value_kind(source.dtype.name), value_kind(to.dtype.name))
    _launch(kernel, count, _memory(source), _memory(to), count, shape, strides)


def _launch(kernel: Kernel, items: int, *arguments: Any) -> None:
    if items > 0:
        run = runner_of(Execution(int(cuda.get_current_device().id), 0, 0))
        run.launch(kernel, -(-items // THREADS), THREADS, arguments)
