"""As much of CuPy as the adapter uses, in the CPU's memory: what a machine without a GPU can check of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["as_module"]

STREAMS = {0: 70, 1: 71}  # the current stream of each device


class OutOfMemoryError(MemoryError):
    pass


class Device:
    """Devices are entered as CuPy's are; `entered` is the stack of those that are current."""

    entered: list[int] = [0]  # noqa: RUF012 - state of the whole stand-in, as CuPy's is of the process

    def __init__(self, number: int | None = None) -> None:
        self.id = self.entered[-1] if number is None else number

    def __enter__(self) -> Device:
        self.entered.append(self.id)
        return self

    def __exit__(self, *_: Any) -> None:
        self.entered.pop()


class ndarray:  # noqa: N801 - CuPy's name
    """An array of a device, made of NumPy's; it is none of NumPy's itself."""

    def __init__(self, array: Any, device: int | None = None) -> None:
        self.array = np.asarray(array)
        self.device = Device(device)

    def __getattr__(self, name: str) -> Any:
        assert name in ("shape", "dtype", "ndim", "size", "itemsize", "strides", "flags"), name
        return getattr(self.array, name)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.array.ctypes.data)

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self.array.reshape(*shape), self.device.id)

    def astype(self, dtype: Any, copy: bool) -> ndarray:
        return ndarray(self.array.astype(dtype, copy=copy), self.device.id)

    def sum(self) -> ndarray:
        return ndarray(self.array.sum(), self.device.id)

    def __setitem__(self, key: Any, value: Any) -> None:
        assert self.device.id == Device().id
        self.array[key] = value.array if isinstance(value, ndarray) else value


def empty(shape: Any, dtype: Any) -> ndarray:
    """Make an array on the current device, full of NaN or of another poison."""
    x = np.empty(shape, dtype)
    x.reshape(-1).view(np.uint8)[...] = 0xFF
    return ndarray(x)


def asarray(x: Any, dtype: Any = None) -> ndarray:
    return ndarray(np.asarray(asnumpy(x), dtype))


def asnumpy(x: Any) -> Any:
    return x.array if isinstance(x, ndarray) else x


def ascontiguousarray(x: ndarray) -> ndarray:
    return ndarray(np.ascontiguousarray(x.array), x.device.id)


def as_module() -> Any:
    """Make what stands in for the module `cupy`."""

    def get_current_stream() -> Any:
        return SimpleNamespace(ptr=STREAMS[Device().id])

    cuda = SimpleNamespace(
        Device=Device,
        get_current_stream=get_current_stream,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    return SimpleNamespace(
        ndarray=ndarray,
        empty=empty,
        asarray=asarray,
        asnumpy=asnumpy,
        ascontiguousarray=ascontiguousarray,
        cuda=cuda,
        __name__="cupy",
    )


@contextmanager
def on(device: int) -> Iterator[None]:
    """Make a device the current one."""
    with Device(device):
        yield
