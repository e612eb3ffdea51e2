"""What every result file says about where it comes from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["describe"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "jax", "jaxlib")


def describe(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Describe machine, versions, commit and command of this run."""
    versions = {"python": platform.python_version(), "zeta-ops": _commit()}
    # The first of a name is the one that is imported.
    installed = {found.name.lower(): found.version for found in reversed([*metadata.distributions()])}
    versions |= {package: installed[package] for package in packages if package in installed}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": versions,
        "command": " ".join(["python", *sys.argv]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
