"""What `pytest -m gpu --gpu-report FILE` writes: machine, versions, and what each test came to."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

__all__ = ["GpuReport"]


class GpuReport:
    """A plugin that collects outcomes and saves them in the end."""

    def __init__(self, path: Path, arguments: Sequence[str]) -> None:
        self.path, self.arguments = path, arguments
        self.tests: dict[str, dict[str, Any]] = {}
        self.start = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of a test's setup, call and teardown, and its time over all three."""
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 3)
        if report.outcome == "passed":
            return
        test["outcome"] = "error" if report.failed and report.when != "call" else report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            test["reason"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            test["reason"] = report.longreprtext.splitlines()[-1]

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        from benchmarks.environment import PACKAGES, describe

        packages = (*PACKAGES, "cupy-cuda13x", "cupy-cuda12x", "cuda-cccl", "hypothesis", "pytest")
        totals = Counter(test["outcome"] for test in self.tests.values())
        result = {
            **describe(packages),
            "command": f"pytest {shlex.join(self.arguments)}",
            "device": _device(),
            "totals": dict(sorted(totals.items())),
            "seconds": round(time.monotonic() - self.start, 1),
            "tests": self.tests,
        }
        self.path.write_text(json.dumps(result, indent=1) + "\n")


def _device() -> dict[str, Any] | None:
    """Describe the first GPU as torch sees it, else as CuPy does; None if there is none."""
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0)
            capability = f"{found.major}.{found.minor}"
            return {
                "name": found.name,
                "capability": capability,
                "bytes": found.total_memory,
                "cuda": torch.version.cuda,
            }
    if find_spec("cupy") is not None:
        import cupy

        if cupy.is_available():
            found = cupy.cuda.runtime.getDeviceProperties(0)
            capability = f"{found['major']}.{found['minor']}"
            return {"name": found["name"].decode(), "capability": capability, "bytes": found["totalGlobalMem"]}
    return None
