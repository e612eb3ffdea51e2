"""What is installed, what can be used, and what to install for the rest."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from zeta_ops import __version__
from zeta_ops.registry import BACKENDS, available_backends

__all__ = ["describe"]

# What to install, by package; of several names of one package, the first that is installed.
INSTALL = {
    "numpy": "pip install zeta-ops",
    "numba": "pip install zeta-ops",
    "ml_dtypes": "pip install ml_dtypes",
    "cupy-cuda13x, cupy-cuda12x, cupy": "pip install 'zeta-ops[cuda13]', or [cuda12]",
    "cuda-cccl": "pip install 'zeta-ops[cuda13]', or [cuda12]",
    "numba-cuda": "pip install 'zeta-ops[cuda13]', or [cuda12]",
    "torch": "pip install 'zeta-ops[torch]'",
    "jax": "pip install 'zeta-ops[jax]'",
    "rich": "pip install 'zeta-ops[demo]'",
    "matplotlib": "pip install 'zeta-ops[demo]'",
}
PURPOSE = {
    "ml_dtypes": "bfloat16 in NumPy and CuPy",
    "cupy-cuda13x, cupy-cuda12x, cupy": "NVIDIA GPUs",
    "cuda-cccl": "NVIDIA GPUs",
    "numba-cuda": "NVIDIA GPUs, by the backend numba_cuda; cupy is preferred",
    "rich": "the demo",
    "matplotlib": "the demo's plot",
}


def describe() -> str:
    """Describe versions, backends and threads as text, with what to install for what is missing."""
    lines = [f"zeta-ops {__version__}, Python {platform.python_version()}, {platform.platform()}", "", "Packages"]
    for names, command in INSTALL.items():
        purpose = f" ({PURPOSE[names]})" if names in PURPOSE else ""
        found = {name: _version(name) for name in names.split(", ")}
        name = next((name for name, version in found.items() if version is not None), names.rpartition(" ")[2])
        lines.append(f"  {name:13s}{found[name] or f'not installed{purpose}: {command}'}")
    lines += ["", "Backends, in order of preference"]
    reasons = available_backends()
    for entry in BACKENDS:
        state = "available" if reasons[entry.name] is None else f"not available: {reasons[entry.name]}"
        lines.append(f"  {entry.name:13s}{' and '.join(entry.platforms)}: {entry.summary}; {state}")
    lines += ["", "Devices", f"  {'cpu':13s}{os.cpu_count()} cores"]
    if reasons["cupy"] is None:
        from zeta_ops.backends.cupy.availability import describe_devices

        lines += [f"  {f'cuda:{number}':13s}{device}" for number, device in enumerate(describe_devices())]
    elif reasons["numba_cuda"] is None:
        from zeta_ops.backends.numba_cuda import availability

        devices = availability.describe_devices()
        lines += [f"  {f'cuda:{number}':13s}{device}" for number, device in enumerate(devices)]
    if reasons["numba"] is None:
        threads, cache = _numba_setting()
        lines += [
            "",
            "Settings of numba",
            f"  {'threads':13s}{threads} (NUMBA_NUM_THREADS sets it)",
            f"  {'cache':13s}{cache} (NUMBA_CACHE_DIR sets it)",
        ]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numba_setting() -> tuple[int, str]:
    """Threads of a call, and the folder where compiled kernels are kept."""
    from zeta_ops.backends.numba import get_num_threads
    from zeta_ops.backends.numba.compiling import interleave

    return get_num_threads(), interleave.stats.cache_path
