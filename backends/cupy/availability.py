"""Whether the CUDA backend can run here, and what to install where it cannot."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

__all__ = ["check_device", "describe_devices", "unavailable_reason"]

OLDEST = 80  # compute capability 8.0: what the kernels' asynchronous copies and bfloat16 tensor cores need
OLDEST_CUPY = 14  # the first that takes other libraries' streams by handle

INSTALL = "pip install 'zeta-ops[cuda13]' for CUDA 13, 'zeta-ops[cuda12]' for CUDA 12"


@cache
def unavailable_reason() -> str | None:
    """Say why the backend cannot run here, and what to install; None if it can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({_first_line(error)}); {INSTALL}"
    if int(cupy.__version__.partition(".")[0]) < OLDEST_CUPY:
        return f"CuPy {cupy.__version__} is too old, {OLDEST_CUPY} or newer is needed; {INSTALL}"
    if not _has_compute():
        return f"cuda.compute, of the package cuda-cccl, is not installed; {INSTALL}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no CUDA device can be used ({_first_line(error)}); check with nvidia-smi that NVIDIA's driver works"
    if count == 0:
        return "no CUDA device was found; check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES"
    reasons = [_device_reason(device) for device in range(count)]
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
        raise ValueError(f"backend 'cupy' cannot compute on arrays on this device: {reason}")


def describe_devices() -> list[str]:
    """Name every device, with its compute capability and memory."""
    import cupy

    lines = []
    for device in range(cupy.cuda.runtime.getDeviceCount()):
        found = cupy.cuda.runtime.getDeviceProperties(device)
        memory = found["totalGlobalMem"] / 2**30
        lines.append(f"{found['name'].decode()}, compute capability {_capability(device)}, {memory:.0f} GiB")
    return lines


def _has_compute() -> bool:
    try:
        return find_spec("cuda.compute") is not None
    except ModuleNotFoundError:  # not even the namespace `cuda`
        return False


@cache
def _device_reason(device: int) -> str | None:
    major, minor = (int(part) for part in _capability(device).split("."))
    if 10 * major + minor >= OLDEST:
        return None
    oldest = f"{OLDEST // 10}.{OLDEST % 10}"
    return f"CUDA device {device} has compute capability {major}.{minor}, and {oldest} or newer is needed (Ampere)"


def _capability(device: int) -> str:
    import cupy

    properties: dict[str, Any] = cupy.cuda.runtime.getDeviceProperties(device)
    return f"{properties['major']}.{properties['minor']}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
