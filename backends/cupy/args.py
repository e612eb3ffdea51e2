"""The one argument of all kernels, as a structure that Python fills: read from `kernels/args.cuh`."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from zeta_ops.backends.cupy.sources import KERNELS

__all__ = ["Args"]

_TYPES: dict[str, Any] = {
    "void*": ctypes.c_void_p,
    "i64": ctypes.c_int64,
    "int": ctypes.c_int32,
    "float": ctypes.c_float,
}
_FIELD = re.compile(r"^  (?:const )?(void\*|i64|int|float) (\w+);", re.MULTILINE)


class Args(ctypes.Structure):
    """Pointers, strides, sizes and options of a call; `kernels/args.cuh` says what each is."""

    _fields_ = [(name, _TYPES[kind]) for kind, name in _FIELD.findall((KERNELS / "args.cuh").read_text())]
