"""Whether this backend can run here, and what to install where it cannot."""

from __future__ import annotations

from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

__all__ = ["check_device", "describe_devices", "unavailable_reason"]

OLDEST = (7, 5)  # compute capability: what NVIDIA's current toolkits still compile for
OLDEST_NUMBA_CUDA = (0, 30)  # the first that was tried

INSTALL = "pip install 'zeta-ops[cuda13]' for CUDA 13, 'zeta-ops[cuda12]' for CUDA 12"


@cache
def unavailable_reason() -> str | None:
    """Say why the backend cannot run here, and what to install; None if it can."""
    found = _version()
    if found is None:
        return f"Numba's CUDA target, of the package numba-cuda, is not installed; {INSTALL}"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_NUMBA_CUDA:
        needed = ".".join(map(str, OLDEST_NUMBA_CUDA))
        return f"numba-cuda {found} is too old, {needed} or newer is needed; {INSTALL}"
    try:
        cuda, simulated = _numba_cuda()
    except Exception as error:  # of whatever kind: it depends on what numba-cuda needs and does not find
        hint = "pip install 'numpy<2.5', which numba-cuda 0.30 was made for" if "numpy" in str(error) else INSTALL
        return f"numba-cuda {found} cannot be used with the other packages here ({_first_line(error)}); {hint}"
    if simulated:
        return "Numba's CUDA simulator is on, which is for tests; unset NUMBA_ENABLE_CUDASIM"
    if not _has_compute():
        return f"cuda.compute, of the package cuda-cccl, is not installed; {INSTALL}"
    if not cuda.is_available():
        return f"no CUDA device can be used{_why(cuda)}; check with nvidia-smi that NVIDIA's driver works"
    if len(cuda.gpus) == 0:
        return "no CUDA device was found; check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES"
    reasons = [_device_reason(device) for device in range(len(cuda.gpus))]
    return None if None in reasons else "; ".join(reason for reason in reasons if reason is not None)


def check_device(device: int) -> None:
    """Check that one device among several is new enough.

    Raises
    ------
    ValueError
        If it is not.
    """
    reason = _device_reason(device)
    if reason is not None:
        raise ValueError(f"backend 'numba_cuda' cannot compute on arrays on this device: {reason}")


def describe_devices() -> list[str]:
    """Name every device, with its compute capability."""
    cuda, _ = _numba_cuda()
    return [
        f"{_text(gpu.name)}, compute capability {'.'.join(map(str, gpu.compute_capability))}" for gpu in list(cuda.gpus)
    ]


def _version() -> str | None:
    try:
        return metadata.version("numba-cuda")
    except metadata.PackageNotFoundError:
        return None


def _numba_cuda() -> tuple[Any, bool]:
    """Load Numba's CUDA target with all that it loads as late as for the first kernel; say whether it simulates."""
    from numba import cuda
    from numba.core import config

    if not config.ENABLE_CUDASIM:
        import_module("numba.cuda.cudaimpl")
    return cuda, bool(config.ENABLE_CUDASIM)


def _why(cuda: Any) -> str:
    error = cuda.cuda_error()
    return f" ({_first_line(error)})" if error else ""


def _has_compute() -> bool:
    try:
        return find_spec("cuda.compute") is not None
    except ModuleNotFoundError:  # not even the namespace `cuda`
        return False


@cache
def _device_reason(device: int) -> str | None:
    cuda, _ = _numba_cuda()
    capability = tuple(cuda.gpus[device].compute_capability)
    if capability >= OLDEST:
        return None
    found, oldest = (".".join(map(str, version)) for version in (capability, OLDEST))
    return f"CUDA device {device} has compute capability {found}, and {oldest} or newer is needed (Turing)"


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
