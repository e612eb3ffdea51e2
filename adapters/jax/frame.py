"""The call frame of XLA's foreign function interface (FFI), read with ctypes.

XLA hands a handler the address of a frame with pointers to the buffers of arguments and results, to the call's
attribute, and to a table of XLA's own functions. The layout is that of `xla/ffi/api/c_api.h`, version 0.1; a test
compares it with the header that jaxlib ships.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

__all__ = ["INTERNAL", "INVALID_ARGUMENT", "Frame", "RefusedByXlaError"]

API_VERSION = (0, 1)

# Offsets in 8-byte words; every struct begins with its size and a pointer to extensions.
FRAME_EXTENSION, FRAME_API, FRAME_CONTEXT, FRAME_ARGUMENTS, FRAME_RESULTS, FRAME_ATTRIBUTES = 1, 2, 3, 9, 14, 20
BUFFER_DATA, BUFFER_RANK, BUFFER_DIMS = 3, 4, 5
EXTENSION_TYPE, EXTENSION_METADATA = 1, 3
METADATA_EXTENSION = 1  # XLA asks which version of the interface a handler was written for
API_CREATE_ERROR, API_GET_STREAM, API_GET_DEVICE = 6, 10, 23
# Sizes in bytes of the structs that XLA's functions take.
CREATE_ERROR_BYTES, GET_STREAM_BYTES, GET_DEVICE_BYTES = 28, 32, 28
INVALID_ARGUMENT, INTERNAL = 3, 13  # codes of errors
_METADATA_VERSION, _METADATA_TRAITS = 6, 8  # places of 4-byte integers in the metadata
# Not COMMAND_BUFFER_COMPATIBLE (1): a first call compiles and loads kernels, which XLA's captures do not allow.
_TRAITS = 0

_function = lru_cache(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p))  # by address


class RefusedByXlaError(Exception):
    """A function of XLA returned an error, whose address the handler hands on."""

    def __init__(self, error: int) -> None:
        super().__init__(error)
        self.error = error


class Frame:
    """One call of a handler.

    Parameters
    ----------
    address : int
        What XLA calls the handler with.
    """

    def __init__(self, address: int) -> None:
        self._words = (ctypes.c_int64 * (FRAME_ATTRIBUTES + 1)).from_address(address)

    def answer_metadata(self) -> bool:
        """Tell XLA the version of the interface, if that is what it asks."""
        extension = self._words[FRAME_EXTENSION]
        if extension == 0 or _word(extension, EXTENSION_TYPE) & 0xFFFFFFFF != METADATA_EXTENSION:
            return False
        numbers = (ctypes.c_int32 * 10).from_address(_word(extension, EXTENSION_METADATA))
        numbers[_METADATA_VERSION], numbers[_METADATA_VERSION + 1] = API_VERSION
        numbers[_METADATA_TRAITS] = _TRAITS
        return True

    def attribute(self) -> str:
        """Read the call's one attribute, a text."""
        text, size = _words(_word(self._words[FRAME_ATTRIBUTES], 0), 2)
        return ctypes.string_at(text, size).decode()

    def argument(self, place: int, shape: tuple[int, ...]) -> int:
        """Read the address of an argument's memory, after a check of its shape."""
        return _address(_word(self._words[FRAME_ARGUMENTS], place), shape)

    def result(self, place: int, shape: tuple[int, ...]) -> int:
        """Read the address of a result's memory, after a check of its shape."""
        return _address(_word(self._words[FRAME_RESULTS], place), shape)

    def stream(self) -> int:
        """Read the handle of the stream that the call runs on; on devices with streams only."""
        return self._ask(API_GET_STREAM, GET_STREAM_BYTES)

    def device(self) -> int:
        """Read the number of the device that the call runs on."""
        return self._ask(API_GET_DEVICE, GET_DEVICE_BYTES) & 0xFFFFFFFF

    def error(self, message: str, code: int) -> int:
        """Make an error for XLA, which the handler returns."""
        text = ctypes.create_string_buffer(message.encode())
        return int(self._call(API_CREATE_ERROR, (CREATE_ERROR_BYTES, 0, ctypes.addressof(text), code))[0])

    def _ask(self, function: int, size: int) -> int:
        error, answer = self._call(function, (size, 0, self._words[FRAME_CONTEXT], 0))
        if error:
            raise RefusedByXlaError(error)
        return answer

    def _call(self, function: int, fields: tuple[int, int, int, int]) -> tuple[Any, int]:
        """Call a function of XLA with a struct of four words; return its result and the last word."""
        struct = (ctypes.c_int64 * 4)(*fields)
        found = _function(_word(self._words[FRAME_API], function))(ctypes.addressof(struct))
        return found, struct[3]


def _words(address: int, count: int) -> list[int]:
    return (ctypes.c_int64 * count).from_address(address)[:]


def _word(address: int, place: int) -> int:
    return ctypes.c_int64.from_address(address + 8 * place).value


def _address(buffer: int, expected: tuple[int, ...]) -> int:
    words = _words(buffer, BUFFER_DIMS + 1)
    rank = words[BUFFER_RANK]
    shape = tuple(_words(words[BUFFER_DIMS], rank)) if rank else ()
    if shape != expected:
        raise ValueError(f"XLA passed a buffer of shape {shape} where {expected} was expected")
    return words[BUFFER_DATA]
