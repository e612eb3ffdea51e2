"""How XLA calls a backend: one handler of its foreign function interface for each platform, written in Python.

A handler views the buffers of arguments and results as arrays, or as memory of a device, without a copy, and calls the
backend. On the CPU kernels run within the call and without the interpreter's lock; on a device they are launched on
XLA's stream, and nothing waits for them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from zeta_ops.adapters.jax.frame import INTERNAL, INVALID_ARGUMENT, Frame, RefusedByXlaError
from zeta_ops.adapters.operations import launch, plan, residual_specs, result_specs, run
from zeta_ops.arguments import check_cu_seqlens, check_index_range
from zeta_ops.backends import ArraySpec, DeviceArray, Execution
from zeta_ops.options import Options, Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["BORDERS", "TARGET", "Call", "Place", "register", "specs_of_results"]

TARGET = "zeta_ops"
_ALIGNMENT = 256  # of workspace
BORDERS = {"select": 2, "search_forward": 4, "search_backward": 5}  # place of cu_seqlens


class Place(NamedTuple):
    """Where a call computes: the name of a backend, None for the preferred one, and the platform of the arrays."""

    backend: str | None
    platform: str


@dataclass(frozen=True)
class Call:
    """What a call of the handler computes: an operation on canonical arrays, with shapes, options and place.

    It travels to the handler as text, so that compiled programs can be cached across processes.
    """

    operation: str
    place: Place
    shapes: Shapes
    width: int = 0  # of given indices

    def encode(self) -> str:
        """Write as text."""
        return json.dumps(asdict(self))

    @property
    def backend(self) -> Any:
        """The backend that computes."""
        return pick_backend(*self.place, "jax")


@lru_cache(maxsize=512)
def decode(text: str) -> Call:
    """Read what `Call.encode` wrote."""
    fields = json.loads(text)
    shapes = fields["shapes"]
    options = shapes.get("options")
    place = Place(*fields["place"])
    if options is None:
        return Call(**{**fields, "place": place, "shapes": Shapes(**shapes)})
    if options["bounds"] is not None:
        options["bounds"] = tuple(options["bounds"])
    problem = Problem(**{**shapes, "options": Options(**options)})
    return Call(**{**fields, "place": place, "shapes": problem})


@lru_cache(maxsize=512)
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
    return out, *forward, normalizer, *residual_specs(call.backend, call.operation, s)


@lru_cache(maxsize=512)
def specs_of_results(call: Call) -> tuple[ArraySpec, ...]:
    """List the arrays that an operation returns; on a device the last one is its workspace."""
    if call.place.platform == "cpu":
        return result_specs(call.backend, call.operation, call.shapes)
    planned = plan(call.backend, call.operation, call.shapes, call.width)
    # More than is asked for, so that an aligned part of it is enough.
    workspace = planned.workspace + _ALIGNMENT if planned.workspace else 0
    return *planned.results, ArraySpec((workspace,), "uint8")


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


def _array(address: int, spec: ArraySpec) -> npt.NDArray[Any]:
    dtype = np.dtype(jax.numpy.dtype(spec.dtype))
    size = math.prod(spec.shape) * dtype.itemsize
    if size == 0:
        return np.empty(spec.shape, dtype)
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.ndarray(spec.shape, dtype, memory)


@lru_cache(maxsize=4096)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _device_array(address: int, spec: ArraySpec) -> DeviceArray:
    return DeviceArray(0 if 0 in spec.shape else address, spec.shape, _strides(spec.shape), spec.dtype)


def _views(frame: Frame, call: Call, view: Callable[[int, ArraySpec], Any]) -> tuple[list[Any], list[Any]]:
    """View all arguments and results; None stands for `cu_seqlens` where nothing is packed."""
    arguments = [view(frame.argument(n, spec.shape), spec) for n, spec in enumerate(specs_of_arguments(call))]
    if isinstance(call.shapes, Problem) and call.shapes.num_sequences is None:
        arguments.insert(BORDERS[call.operation], None)
    return arguments, [view(frame.result(n, spec.shape), spec) for n, spec in enumerate(specs_of_results(call))]


def _compute_on_cpu(frame: Frame, call: Call) -> None:
    """Run an operation. What only its values can show is checked first: they were unknown to the caller."""
    arguments, results = _views(frame, call, _array)
    if call.operation in ("given_forward", "given_backward"):
        indices = arguments[3 if call.operation == "given_forward" else 4]
        if indices.size > 0:
            check_index_range(int(indices.min()), int(indices.max()), call.shapes.k_len)
    elif arguments[BORDERS[call.operation]] is not None:
        check_cu_seqlens(arguments[BORDERS[call.operation]].tolist(), call.shapes.k_len)
    run(call.backend, call.operation, call.shapes, arguments, results)


def _launch_on_device(frame: Frame, call: Call) -> None:
    """Launch an operation on XLA's stream. Values are on the device and are not checked."""
    arguments, (*results, workspace) = _views(frame, call, _device_array)
    aligned = -(-workspace.address // _ALIGNMENT) * _ALIGNMENT
    on = Execution(frame.device(), frame.stream(), aligned)
    launch(call.backend, call.operation, call.shapes, [*arguments, *results], on)


_COMPUTE = {"cpu": _compute_on_cpu, "cuda": _launch_on_device}


def _handle(platform: str, address: int) -> int | None:
    frame = Frame(address)
    try:
        if frame.answer_metadata():
            return None
        call = decode(frame.attribute())
        if call.place.platform != platform:
            raise ValueError(
                f"a program with zeta_ops was traced for {call.place.platform!r} and runs on {platform!r};"
                " trace it under jax.default_device with the device that it runs on"
            )
        with _subnormals():
            _COMPUTE[platform](frame, call)
    except RefusedByXlaError as refused:
        return refused.error
    except (TypeError, ValueError) as error:
        return frame.error(str(error), INVALID_ARGUMENT)
    except Exception as error:
        return frame.error(f"{type(error).__name__}: {error}", INTERNAL)
    return None


_handlers: list[Any] = []  # kept for good: XLA calls them as long as the process lives


def register(target: str, platform: str, xla_platform: str) -> None:
    """Let XLA call the handler of a platform."""
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(partial(_handle, platform))
    _handlers.append(handler)
    capsule = jax.ffi.pycapsule(ctypes.cast(handler, ctypes.c_void_p).value)
    jax.ffi.register_ffi_target(target, capsule, platform=xla_platform)


register(TARGET, "cpu", "cpu")
register(TARGET, "cuda", "CUDA")
