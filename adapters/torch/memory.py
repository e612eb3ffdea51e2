"""Tensors as the arrays that a CPU backend computes on, and the other way round; never a copy.

`Tensor.numpy()` is avoided: it marks a storage as not resizable, which breaks frameworks that shard parameters.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zeta_ops.adapters.operations import Packing

__all__ = ["as_array", "numpy_dtype", "pieces_of", "torch_dtype"]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Find NumPy's dtype of a name.

    Raises
    ------
    TypeError
        If the dtype is bfloat16 and `ml_dtypes`, which brings it to NumPy, is not installed.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise TypeError("v is bfloat16, which needs ml_dtypes on a CPU: pip install ml_dtypes") from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@lru_cache
def _array_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return numpy_dtype(str(dtype).removeprefix("torch."))


def torch_dtype(name: str) -> torch.dtype:
    """Find torch's dtype of a name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def pieces_of(memory: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """View residuals that are one tensor of bytes as a tensor each."""
    return [
        memory[offset : offset + size].view(torch_dtype(spec.dtype)).view(spec.shape)
        for spec, offset, size in packing.pieces
    ]


def as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """View a CPU tensor as an array, with its strides. The tensor has to outlive the array."""
    dtype, shape = _array_dtype(tensor.dtype), tuple(tensor.shape)
    if tensor.numel() == 0:
        return np.empty(shape, dtype)
    if tensor.is_contiguous():
        memory: Any = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
        return np.ndarray(shape, dtype, memory)
    strides = tuple(stride * dtype.itemsize for stride in tensor.stride())
    reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + dtype.itemsize
    memory = (ctypes.c_char * reach).from_address(tensor.data_ptr())
    return np.ndarray(shape, dtype, memory, strides=strides)
