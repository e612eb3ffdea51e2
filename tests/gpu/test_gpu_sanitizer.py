"""compute-sanitizer finds no access outside of an allocation, no uninitialised shared memory, no race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import zeta_ops

HERE = Path(__file__).parent
FOUND = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.skipif(FOUND is None, reason="compute-sanitizer, of the CUDA toolkit, is not installed")
@pytest.mark.parametrize("check", ["memcheck", "racecheck", "synccheck"])
def test_sanitizer_is_content(device: str, check: str) -> None:
    pytest.importorskip("cupy", reason="cupy is not installed")
    script = str(HERE / "sanitized.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(zeta_ops.__file__).parents[1]), *sys.path])}
    # Compiled first, without the sanitizer, which would slow that down.
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=200)
    run = subprocess.run(
        [str(FOUND), "--tool", check, "--report-api-errors", "no", "--error-exitcode", "9", sys.executable, script],
        capture_output=True, text=True, check=False, env=environment, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert "finished" in run.stdout
