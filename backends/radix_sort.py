"""A stable sort on a GPU: the radix sort of NVIDIA's CCCL, through `cuda.compute` of the package cuda-cccl.

It takes temporary storage and a stream from the caller, and sorts by the bits that are in use. No array library has a
sort that does all of this.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

__all__ = ["Sort", "Stream", "sort_bytes", "sort_keys", "sort_pairs"]

_SOMEWHERE = 256  # stands for an address where nothing is read; 0 would mean that there are no values to sort


class _Memory:
    """Elements at an address of the device, as `cuda.compute` takes them."""

    __slots__ = ("address", "nbytes", "type")

    def __init__(self, address: int, nbytes: int = 8, type: str = "<u8") -> None:
        self.address, self.nbytes, self.type = address, nbytes, type

    def data_ptr(self) -> int:
        """Say where the elements lie: asked for first at every call, since tensors have it."""
        return self.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        shape = (self.nbytes // int(self.type[2:]),)
        return {"data": (self.address, False), "shape": shape, "strides": None, "typestr": self.type, "version": 3}


class Stream:
    """A stream by its handle, as other libraries take it."""

    __slots__ = ("handle",)

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class Sort(NamedTuple):
    """What is sorted: so many keys of a dtype, "uint32" or "uint64", with int32 values if they are pairs."""

    length: int
    dtype: str = "uint64"
    pairs: bool = True


@cache
def _sorter(device: int, dtype: str, pairs: bool) -> Any:
    """Build a sort for a device that is current."""
    from cuda.compute import SortOrder, make_radix_sort

    keys, values = _stand_ins(dtype, pairs)
    return make_radix_sort(
        d_in_keys=keys, d_out_keys=keys, d_in_values=values, d_out_values=values, order=SortOrder.ASCENDING
    )


def _stand_ins(dtype: str, pairs: bool) -> tuple[_Memory, _Memory | None]:
    """Make keys of a dtype, and values if there are any, that lie somewhere."""
    keys = _Memory(_SOMEWHERE, 8, "<u8") if dtype == "uint64" else _Memory(_SOMEWHERE, 4, "<u4")
    return keys, _Memory(_SOMEWHERE, 4, "<i4") if pairs else None


@lru_cache(maxsize=256)
def sort_bytes(device: int, count: int, dtype: str = "uint64", pairs: bool = True) -> int:
    """Size of the temporary storage of a sort; 0 where nothing is sorted."""
    if count == 0:
        return 0
    keys, values = _stand_ins(dtype, pairs)
    return int(
        _sorter(device, dtype, pairs)(
            temp_storage=None,
            d_in_keys=keys,
            d_out_keys=keys,
            d_in_values=values,
            d_out_values=values,
            num_items=count,
        )
    )


def sort_keys(
    device: int,
    stream: Stream,
    storage: int,
    storage_bytes: int,
    keys: int,
    sorted_keys: int,
    count: int,
    first_bit: int,
    bits: int,
) -> None:
    """Sort uint64 keys stably by `bits` bits from `first_bit`: what is below them travels along.

    See `sort_pairs`; the size of the storage is that for keys alone.
    """
    _sorter(device, "uint64", False)(
        temp_storage=_Memory(storage, storage_bytes, "|u1"),
        d_in_keys=_Memory(keys),
        d_out_keys=_Memory(sorted_keys),
        d_in_values=None,
        d_out_values=None,
        num_items=count,
        begin_bit=first_bit,
        end_bit=first_bit + bits,
        stream=stream,
    )


def sort_pairs(
    device: int,
    stream: Stream,
    storage: int,
    storage_bytes: int,
    keys: int,
    values: int,
    sorted_keys: int,
    sorted_values: int,
    count: int,
    bits: int,
    dtype: str = "uint64",
) -> None:
    """Sort keys with int32 values stably by the keys' lowest bits.

    Parameters
    ----------
    device : int
        It is current.
    stream : Stream
    storage, storage_bytes : int
        Address and size of temporary storage: see `sort_bytes`.
    keys, values, sorted_keys, sorted_values : int
        Addresses of arrays of `count`.
    count, bits : int
    dtype : str
        Of the keys: "uint32" or "uint64".
    """
    _sorter(device, dtype, True)(
        temp_storage=_Memory(storage, storage_bytes, "|u1"),
        d_in_keys=_Memory(keys),
        d_out_keys=_Memory(sorted_keys),
        d_in_values=_Memory(values),
        d_out_values=_Memory(sorted_values),
        num_items=count,
        begin_bit=0,
        end_bit=bits,
        stream=stream,
    )
