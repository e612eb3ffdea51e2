"""What executes the steps of a call on a GPU: kernels compiled by CuPy, on a given stream, and cuda.compute's sort.

The sort is the radix sort of NVIDIA's CCCL, through its package cuda-cccl: it is stable, takes temporary storage and a
stream from the caller, and sorts by the bits that are in use. CuPy's own sort does none of the three.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.sources import KERNELS, all_kernels, definitions

__all__ = ["DeviceRunner", "sort_bytes"]

_SOMEWHERE = 256  # stands for an address where nothing is read; 0 would mean that there are no values to sort


class _Memory:
    """Elements at an address of the device, as other libraries take them."""

    def __init__(self, address: int, count: int, dtype: str) -> None:
        self.nbytes = count * np.dtype(dtype).itemsize
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "strides": None,
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }


class _Stream:
    """A stream by its handle, as `cuda.compute` takes it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


@cache
def _module(device: int, coordinate_dtype: str, key_dim: int, num_curves: int) -> Any:
    import cupy

    options = "-std=c++17", f"-I{KERNELS}", *definitions(coordinate_dtype, key_dim, num_curves)
    with cupy.cuda.Device(device):
        return cupy.RawModule(code=all_kernels(), options=options)


@cache
def _sorter(device: int) -> Any:
    from cuda.compute import SortOrder, make_radix_sort

    keys, values = _Memory(_SOMEWHERE, 1, "uint64"), _Memory(_SOMEWHERE, 1, "int32")
    return make_radix_sort(
        d_in_keys=keys, d_out_keys=keys, d_in_values=values, d_out_values=values, order=SortOrder.ASCENDING
    )


def sort_bytes(device: int, count: int) -> int:
    """Size of the temporary storage of a sort of `count` pairs."""
    keys, values = _Memory(_SOMEWHERE, count, "uint64"), _Memory(_SOMEWHERE, count, "int32")
    return int(
        _sorter(device)(
            temp_storage=None,
            d_in_keys=keys,
            d_out_keys=keys,
            d_in_values=values,
            d_out_values=values,
            num_items=count,
        )
    )


class DeviceRunner:
    """Executes steps on one stream.

    Parameters
    ----------
    device, stream : int
        Number of the device and handle of the stream.
    storage : int
        Address of `storage_bytes` bytes for the sorts.
    """

    def __init__(
        self,
        device: int,
        stream: int,
        storage: int,
        storage_bytes: int,
        coordinate_dtype: str,
        key_dim: int,
        num_curves: int,
    ) -> None:
        from cupy.cuda import Stream

        self._module = _module(device, coordinate_dtype, key_dim, num_curves)
        self._sorter = _sorter(device)
        self._stream, self._handle = Stream.from_external(_Stream(stream)), _Stream(stream)
        self._storage = _Memory(storage, storage_bytes, "uint8")

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; the driver copies `args`."""
        self._module.get_function(kernel)((blocks,), (threads,), (np.void(bytes(args)),), stream=self._stream)

    def sort(self, keys: int, values: int, sorted_keys: int, sorted_values: int, count: int, bits: int) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        self._sorter(
            temp_storage=self._storage,
            d_in_keys=_Memory(keys, count, "uint64"),
            d_out_keys=_Memory(sorted_keys, count, "uint64"),
            d_in_values=_Memory(values, count, "int32"),
            d_out_values=_Memory(sorted_values, count, "int32"),
            num_items=count,
            begin_bit=0,
            end_bit=bits,
            stream=self._handle,
        )
