"""What `python -m zeta_ops info` says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import zeta_ops
from zeta_ops import info
from zeta_ops.__main__ import main
from zeta_ops.backends.numba import get_num_threads


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"zeta-ops {zeta_ops.__version__}" in text
    for name, reason in zeta_ops.available_backends().items():
        assert name in text
        assert reason is None or reason in text
    assert f"numpy        {np.__version__}" in text
    assert f"threads      {get_num_threads()} " in text
    assert "__pycache__" in text or os.environ["NUMBA_CACHE_DIR"] in text


def test_info_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(package: str) -> str:
        raise info.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(info.metadata, "version", nothing_installed)
    assert "torch        not installed: pip install 'zeta-ops[torch]'" in info.describe()


def test_info_shows_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from zeta_ops.backends.cupy import availability

    usable = {**zeta_ops.available_backends(), "cupy": None}
    monkeypatch.setattr(info, "available_backends", lambda: usable)
    monkeypatch.setattr(availability, "describe_devices", lambda: ["NVIDIA H200", "NVIDIA H100"])
    monkeypatch.setattr(info.metadata, "version", {"cupy-cuda12x": "14.2.0"}.__getitem__)
    monkeypatch.setattr(info.metadata, "PackageNotFoundError", KeyError)
    text = info.describe()
    assert "  cuda:0       NVIDIA H200\n  cuda:1       NVIDIA H100" in text
    assert "  cupy-cuda12x 14.2.0" in text
    assert "  cuda-cccl    not installed (NVIDIA GPUs): pip install 'zeta-ops[cuda13]', or [cuda12]" in text


def test_info_does_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "available_backends", lambda: {**zeta_ops.available_backends(), "numba": "it is broken"})
    text = info.describe()
    assert "not available: it is broken" in text and "threads" not in text


def test_info_imports_no_framework() -> None:
    code = "import sys; from zeta_ops.info import describe; describe(); print(*{'torch', 'jax'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
