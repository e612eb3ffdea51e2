"""The two tables of the library: kinds of array and backends.

Dispatch and `available_backends` read them and nothing else. To add a backend or a kind of array, add a row.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from zeta_ops.arguments import is_number

__all__ = [
    "ARRAY_KINDS",
    "BACKENDS",
    "ArrayKind",
    "BackendEntry",
    "adapter_of",
    "array_kind",
    "available_backends",
    "named_arrays",
    "pick_backend",
    "unavailable_reason",
]

_LOGGER = logging.getLogger("zeta_ops")


ANY = "any"  # platforms of a backend that has kernels for none


@dataclass(frozen=True)
class ArrayKind:
    """A kind of array that users pass, and the adapter that serves it.

    Attributes
    ----------
    framework : str
        The module that defines the array type. It is never imported: an array of that type can only exist
        where somebody else has imported it.
    protocol : str
        An attribute by which arrays of any other type are known, too; "" where there is none.
    type_names : tuple of str
        Names of the array types in that module, dotted where they are deeper.
    """

    name: str
    framework: str
    type_names: tuple[str, ...]
    load_adapter: Callable[[], Any]
    protocol: str = ""


@dataclass(frozen=True)
class BackendEntry:
    """A backend, by the name that users pass as `backend=`, and what it computes on.

    Attributes
    ----------
    platforms : tuple of str
        "cpu", "cuda", or ANY.
    kinds : tuple of str
        Names of the kinds of array.
    """

    name: str
    module: str
    platforms: tuple[str, ...]
    summary: str
    kinds: tuple[str, ...] = ("numpy", "torch", "jax")

    def serves(self, platform: str) -> bool:
        """Whether it computes on arrays that are on `platform`."""
        return platform in self.platforms or ANY in self.platforms


# Written as import statements, because torch.compile traces these and no call of `import_module`.
def _numpy_adapter() -> Any:
    from zeta_ops.adapters.numpy import ADAPTER

    return ADAPTER


def _cupy_adapter() -> Any:
    from zeta_ops.adapters.cupy import ADAPTER

    return ADAPTER


def _numba_cuda_adapter() -> Any:
    from zeta_ops.adapters.numba_cuda import ADAPTER

    return ADAPTER


def _torch_adapter() -> Any:
    from zeta_ops.adapters import torch

    return torch


def _jax_adapter() -> Any:
    from zeta_ops.adapters import jax

    return jax


ARRAY_KINDS = (
    ArrayKind("numpy", "numpy", ("ndarray",), _numpy_adapter),
    ArrayKind("cupy", "cupy", ("ndarray",), _cupy_adapter),
    ArrayKind("torch", "torch", ("Tensor",), _torch_adapter),
    ArrayKind("jax", "jax", ("Array",), _jax_adapter),
    ArrayKind(
        "numba_cuda",
        "numba.cuda.cudadrv.devicearray",
        ("DeviceNDArray",),
        _numba_cuda_adapter,
        protocol="__cuda_array_interface__",
    ),
)

# In order of preference for each platform: dispatch takes the first that is available.
BACKENDS = (
    BackendEntry("numba", "zeta_ops.backends.numba", ("cpu",), "compiled CPU kernels, O(N log N), parallel"),
    BackendEntry(
        "cupy",
        "zeta_ops.backends.cupy",
        ("cuda",),
        "CUDA C++ kernels, compiled by CuPy, O(N log N)",
        ("cupy", "torch", "jax", "numba_cuda"),
    ),
    BackendEntry(
        "numba_cuda",
        "zeta_ops.backends.numba_cuda",
        ("cuda",),
        "CUDA kernels in Python, compiled by Numba, to read and to change; `cupy` is faster",
        ("cupy", "torch", "jax", "numba_cuda"),
    ),
    BackendEntry(
        "xla", "zeta_ops.backends.xla", (ANY,), "plain XLA, for JAX arrays on devices without kernels", ("jax",)
    ),
    BackendEntry("numpy", "zeta_ops.backends.numpy", ("cpu",), "the reference, O(N^2), for checking"),
)


def array_kind(arrays: dict[str, Any]) -> ArrayKind:
    """Find the one kind of all `arrays`, given by argument name.

    Raises
    ------
    TypeError
        If one of them is no array of a known kind or has a mask, or if they are of several kinds.
    """
    kinds: dict[str, ArrayKind] = {}
    kind: ArrayKind | None = None
    types: tuple[type, ...] = ()
    for name, value in arrays.items():
        if kind is None or not isinstance(value, types):  # most calls have arrays of one kind only
            kind = _kind_of(value)
            types = () if kind is None else _types_of(kind)
        if kind is None:
            known = ", ".join(f"{kind.name} ({' or '.join(kind.type_names)})" for kind in ARRAY_KINDS)
            raise TypeError(f"{name} must be an array of one of these kinds: {known}; got {_type_name(value)}")
        if kind.name == "numpy" and _is_masked(value):
            raise TypeError(f"{name} must be an array without a mask, which would be ignored; got {_type_name(value)}")
        kinds[name] = kind
    if any(other is not kind for other in kinds.values()):
        found = ", ".join(f"{name}: {kind.name}" for name, kind in kinds.items())
        raise TypeError(f"all arrays must be of one kind; got {found}")
    assert kind is not None
    return kind


def _kind_of(value: object) -> ArrayKind | None:
    for kind in ARRAY_KINDS:
        if isinstance(value, _types_of(kind)):
            return kind
    return next((kind for kind in ARRAY_KINDS if kind.protocol and hasattr(type(value), kind.protocol)), None)


def named_arrays(*, gamma: Any = 1.0, cu_seqlens: Any = None, **arrays: Any) -> dict[str, Any]:
    """Collect the arguments that are arrays; `gamma` may be a number and `cu_seqlens` None instead."""
    if not is_number(gamma):
        arrays["gamma"] = gamma
    if cu_seqlens is not None:
        arrays["cu_seqlens"] = cu_seqlens
    return arrays


def adapter_of(kind: ArrayKind) -> Any:
    """Load the adapter that serves a kind of array."""
    return kind.load_adapter()


def _types_of(kind: ArrayKind) -> tuple[type, ...]:
    framework = sys.modules.get(kind.framework)
    return tuple(getattr(framework, name) for name in kind.type_names if hasattr(framework, name))


def _is_masked(value: object) -> bool:
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(value, masked.MaskedArray)


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


@cache
def unavailable_reason(name: str) -> str | None:
    """Say why a backend of the table cannot run here; None if it can."""
    entry = next(entry for entry in BACKENDS if entry.name == name)
    try:
        backend = import_module(entry.module)
    except ImportError as error:
        return f"{entry.module} cannot be imported: {error}"
    reason: str | None = backend.unavailable_reason()
    return reason


def available_backends() -> dict[str, str | None]:
    """List the backends with the reason for each that is not available.

    Returns
    -------
    dict of str to (str or None)
        For each backend's name, in order of preference, None if it can be used, else the reason and what
        to install.

    Examples
    --------
    >>> import zeta_ops
    >>> zeta_ops.available_backends()["numpy"] is None
    True
    """
    return {entry.name: unavailable_reason(entry.name) for entry in BACKENDS}


def pick_backend(name: str | None, platform: str, kind: str = "numpy") -> Any:
    """Load the backend called `name`, or the preferred one for arrays of a kind on a platform if it is None.

    What it offers depends on the platform: a `Backend` computes on the CPU, a `DeviceBackend` has kernels for "cuda".

    Parameters
    ----------
    name : str or None
    platform : str
        "cpu", "cuda", or whatever a framework calls its device.
    kind : str
        Name of the kind of array that the backend gets.

    Raises
    ------
    ValueError
        If the name is unknown, or if the backend is not available or does not compute on such arrays.
    """
    if name is not None:
        return _load_named(name, platform, kind)
    reasons = []
    for entry in BACKENDS:
        general = ANY in entry.platforms
        if kind not in entry.kinds or not (general or platform in entry.platforms):
            continue
        reason = unavailable_reason(entry.name)
        if reason is None:
            if general:
                _log_general_backend(entry.name, platform)
            return _module_of(entry)
        _LOGGER.warning("backend %r is not available: %s", entry.name, reason)
        reasons.append(f"{entry.name}: {reason}")
    raise ValueError(f"backend: none is available for arrays on {platform!r} ({'; '.join(reasons) or 'none exists'})")


@cache
def _log_general_backend(name: str, platform: str) -> None:
    """Log, once, that no kernels compute."""
    _LOGGER.warning("no backend has kernels for arrays on %r here: %r computes, more slowly", platform, name)


def _load_named(name: str, platform: str, kind: str) -> Any:
    entry = next((entry for entry in BACKENDS if entry.name == name), None)
    if entry is None:
        known = ", ".join(repr(entry.name) for entry in BACKENDS)
        raise ValueError(f"backend must be None or one of {known}; got {name!r}")
    if kind not in entry.kinds:
        raise ValueError(f"backend {name!r} computes on {' and '.join(entry.kinds)} arrays only; got {kind} arrays")
    if not entry.serves(platform):
        raise ValueError(f"backend {name!r} computes on {' and '.join(entry.platforms)}; got arrays on {platform!r}")
    reason = unavailable_reason(name)
    if reason is not None:
        raise ValueError(f"backend {name!r} is not available: {reason}")
    return _module_of(entry)


def _module_of(entry: BackendEntry) -> Any:
    """Load a backend: `import_module` alone takes a microsecond or two of every call."""
    return sys.modules.get(entry.module) or import_module(entry.module)
