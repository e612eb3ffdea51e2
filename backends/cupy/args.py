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
_FIELD = re.compile(r"^  (?:const )?(void\*|i64|int|float) (\w+)(?:\[(\d+)\])?;", re.MULTILINE)


def _type(kind: str, length: str) -> Any:
    return _TYPES[kind] * int(length) if length else _TYPES[kind]


class Args(ctypes.Structure):
    """Pointers, strides, sizes and options of a call; `kernels/args.cuh` says what each is."""

    _fields_ = [
        (name, _type(kind, length)) for kind, name, length in _FIELD.findall((KERNELS / "args.cuh").read_text())
    ]
