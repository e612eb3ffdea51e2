"""How XLA calls a backend: one handler of its foreign function interface (FFI), written with ctypes.

XLA hands over a call frame with pointers to the buffers of arguments and results; the handler views them as NumPy
arrays, without a copy, and calls the backend. It takes the interpreter's lock only for that; kernels run without it.
The layout of the frame is that of `xla/ffi/api/c_api.h`, version 0.1; a test compares it with the header that jaxlib
ships.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from zeta_ops.arguments import check_cu_seqlens, check_index_range
from zeta_ops.backends import ArraySpec
from zeta_ops.options import Options, Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["API_VERSION", "TARGET", "Call", "specs_of_results"]

TARGET = "zeta_ops_cpu"
API_VERSION = (0, 1)

# Offsets in 8-byte words; every struct begins with its size and a pointer to extensions.
FRAME_EXTENSION, FRAME_API, FRAME_ARGUMENTS, FRAME_RESULTS, FRAME_ATTRIBUTES = 1, 2, 9, 14, 20
BUFFER_DATA, BUFFER_RANK, BUFFER_DIMS = 3, 4, 5
EXTENSION_TYPE, EXTENSION_METADATA = 2, 3
METADATA_EXTENSION = 1  # XLA asks which version of the interface a handler was written for
API_CREATE_ERROR = 6
INTERNAL_ERROR, INVALID_ARGUMENT = 13, 3


@dataclass(frozen=True)
class Call:
    """What a call of the handler computes: an operation on canonical arrays, with shapes, options and backend.

    It travels to the handler as text, so that compiled programs can be cached across processes.
    """

    operation: str
    backend: str | None
    shapes: Shapes
    width: int = 0  # of given indices

    def encode(self) -> str:
        """Write as text."""
        return json.dumps(asdict(self))


@lru_cache(maxsize=512)
def decode(text: str) -> Call:
    """Read what `Call.encode` wrote."""
    fields = json.loads(text)
    shapes = fields["shapes"]
    options = shapes.get("options")
    if options is None:
        return Call(**{**fields, "shapes": Shapes(**shapes)})
    if options["bounds"] is not None:
        options["bounds"] = tuple(options["bounds"])
    return Call(**{**fields, "shapes": Problem(**{**shapes, "options": Options(**options)})})


def specs_of_arguments(call: Call) -> tuple[ArraySpec, ...]:
    """List the arrays that an operation takes."""
    s = call.shapes
    coordinates, sums = s.coordinate_dtype, s.sum_dtype
    q, k = ArraySpec(s.q_shape, coordinates), ArraySpec(s.k_shape, coordinates)
    v, out = ArraySpec(s.v_shape, s.value_dtype), ArraySpec(s.out_shape, s.value_dtype)
    gamma, normalizer = ArraySpec((s.q_heads,), coordinates), ArraySpec(s.normalizer_shape, sums)
    if call.operation in ("given_forward", "given_backward"):
        given = ArraySpec((*s.normalizer_shape, call.width), "int32")
        forward = q, k, v, given, gamma
        return forward if call.operation == "given_forward" else (out, *forward, normalizer)
    assert isinstance(s, Problem)
    borders = () if s.num_sequences is None else (ArraySpec((s.num_sequences + 1,), "int32"),)
    if call.operation == "select":
        return q, k, *borders
    forward = q, k, v, gamma, *borders
    if call.operation == "search_forward":
        return forward
    return out, *forward, normalizer, *pick_backend(call.backend, "cpu").residual_specs(s)


def specs_of_results(call: Call) -> tuple[ArraySpec, ...]:
    """List the arrays that an operation returns."""
    s = call.shapes
    if call.operation == "select":
        assert isinstance(s, Problem)
        return (ArraySpec((*s.normalizer_shape, s.options.top_k), "int32"),)
    if call.operation.endswith("backward"):
        coordinates = s.coordinate_dtype
        return (
            ArraySpec(s.q_shape, coordinates),
            ArraySpec(s.k_shape, coordinates),
            ArraySpec(s.v_shape, s.value_dtype),
            ArraySpec((s.q_heads,), coordinates),
        )
    outputs = ArraySpec(s.out_shape, s.value_dtype), ArraySpec(s.normalizer_shape, s.sum_dtype)
    if call.operation == "given_forward":
        return outputs
    assert isinstance(s, Problem)
    return *outputs, *pick_backend(call.backend, "cpu").residual_specs(s)


_LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
_FENV_BYTES = 128  # at least the size of fenv_t on any platform
_ieee_environment = ctypes.create_string_buffer(_FENV_BYTES)
_LIBM.fegetenv(_ieee_environment)  # that of Python's threads


@contextmanager
def _subnormals() -> Iterator[None]:
    """Compute with subnormal numbers. XLA's threads take them for 0, which moves codes and distances."""
    before = ctypes.create_string_buffer(_FENV_BYTES)
    _LIBM.fegetenv(before)
    _LIBM.fesetenv(_ieee_environment)
    try:
        yield
    finally:
        _LIBM.fesetenv(before)


def execute(call: Call, arguments: list[Any], results: list[Any]) -> None:
    """Run an operation on arrays. What only its values can show is checked first: they were unknown to the caller."""
    backend, shapes = pick_backend(call.backend, "cpu"), call.shapes
    if call.operation in ("given_forward", "given_backward"):
        indices = arguments[3 if call.operation == "given_forward" else 4]
        if indices.size > 0:
            check_index_range(int(indices.min()), int(indices.max()), shapes.k_len)
        run = backend.cauchy_forward if call.operation == "given_forward" else backend.cauchy_backward
        run(shapes, *arguments, *results)
        return
    assert isinstance(shapes, Problem)
    place = {"select": 2, "search_forward": 4, "search_backward": 5}[call.operation]
    packed = shapes.num_sequences is not None
    borders = arguments.pop(place) if packed else None
    if borders is not None:
        check_cu_seqlens(borders.tolist(), shapes.k_len)
    arguments.insert(place, borders)
    if call.operation == "select":
        backend.causal_topk(shapes, *arguments, *results)
    elif call.operation == "search_forward":
        taken: Any = *arguments, *results[:2], tuple(results[2:])
        backend.attention_forward(shapes, *taken)
    else:
        taken = *arguments[:7], tuple(arguments[7:]), *results
        backend.attention_backward(shapes, *taken)


def _word(address: int, place: int) -> int:
    return ctypes.c_int64.from_address(address + 8 * place).value


def _view(buffer: int, spec: ArraySpec) -> npt.NDArray[Any]:
    rank, dims = _word(buffer, BUFFER_RANK), _word(buffer, BUFFER_DIMS)
    shape = tuple(_word(dims, axis) for axis in range(rank))
    if shape != spec.shape:
        raise ValueError(f"XLA passed a buffer of shape {shape} where {spec.shape} was expected")
    dtype = np.dtype(jax.numpy.dtype(spec.dtype))
    size = int(np.prod(shape)) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    memory: Any = (ctypes.c_char * size).from_address(_word(buffer, BUFFER_DATA))
    return np.ndarray(shape, dtype, memory)


def _answer_metadata(frame: int) -> bool:
    """Tell XLA the version of the interface, if that is what it asks."""
    extension = _word(frame, FRAME_EXTENSION)
    if extension == 0 or _word(extension, EXTENSION_TYPE - 1) & 0xFFFFFFFF != METADATA_EXTENSION:
        return False
    version = _word(extension, EXTENSION_METADATA)
    words = (ctypes.c_int32 * 10).from_address(version)
    words[6], words[7], words[8] = *API_VERSION, 0
    return True


def _error(frame: int, message: str, code: int) -> int:
    api = _word(frame, FRAME_API)
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_word(api, API_CREATE_ERROR))
    text = ctypes.create_string_buffer(message.encode())
    arguments = (ctypes.c_int64 * 5)(40, 0, ctypes.addressof(text), code, 0)
    return int(create(ctypes.addressof(arguments)))


def _handle(frame: int) -> int | None:
    try:
        if _answer_metadata(frame):
            return None
        attribute = _word(_word(frame, FRAME_ATTRIBUTES), 0)
        text = ctypes.string_at(_word(attribute, 0), _word(attribute, 1)).decode()
        call = decode(text)
        arguments, results = (
            [_view(_word(_word(frame, list_at), n), spec) for n, spec in enumerate(specs)]
            for list_at, specs in (
                (FRAME_ARGUMENTS, specs_of_arguments(call)),
                (FRAME_RESULTS, specs_of_results(call)),
            )
        )
        with _subnormals():
            execute(call, arguments, results)
    except (TypeError, ValueError) as error:
        return _error(frame, str(error), INVALID_ARGUMENT)
    except Exception as error:
        return _error(frame, f"{type(error).__name__}: {error}", INTERNAL_ERROR)
    return None


# Kept for good: XLA calls it as long as the process lives.
_handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_handle)
jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(ctypes.cast(_handler, ctypes.c_void_p).value), platform="cpu")
