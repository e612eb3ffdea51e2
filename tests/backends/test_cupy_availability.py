"""Why the CUDA backend cannot run, and what to install."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import zeta_ops
from zeta_ops.backends.cupy import availability


class CUDARuntimeError(Exception):
    pass


def fake_cupy(*capabilities: str, version: str = "14.2.0", error: str | None = None) -> Any:
    """As much of CuPy as is asked, on a machine with such devices."""

    def count() -> int:
        if error is not None:
            raise CUDARuntimeError(error)
        return len(capabilities)

    def properties(number: int) -> dict[str, Any]:
        major, minor = (int(part) for part in capabilities[number].split("."))
        name = b"NVIDIA " + str(number).encode()
        return {"name": name, "totalGlobalMem": 80 * 2**30, "major": major, "minor": minor}

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError, getDeviceProperties=properties)
    return SimpleNamespace(__version__=version, cuda=SimpleNamespace(runtime=runtime))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing is remembered from before, nor afterwards."""
    cached = availability.unavailable_reason, availability._device_reason
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def reason(monkeypatch: pytest.MonkeyPatch, cupy: Any, has_compute: bool = True) -> str | None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(availability, "_has_compute", lambda: has_compute)
    return availability.unavailable_reason()


@pytest.mark.parametrize(
    ("cupy", "has_compute", "words"),
    [
        (None, True, ["CuPy cannot be imported", "zeta-ops[cuda13]", "zeta-ops[cuda12]"]),
        (fake_cupy("9.0", version="13.6.0"), True, ["CuPy 13.6.0 is too old", "14", "zeta-ops[cuda13]"]),
        (fake_cupy("9.0"), False, ["cuda.compute", "cuda-cccl", "zeta-ops[cuda13]"]),
        (
            fake_cupy(error="cudaErrorInsufficientDriver: x\n y"),
            True,
            ["cudaErrorInsufficientDriver: x)", "nvidia-smi"],
        ),
        (fake_cupy(), True, ["no CUDA device was found", "CUDA_VISIBLE_DEVICES"]),
        (fake_cupy("7.5"), True, ["device 0 has compute capability 7.5", "8.0 or newer"]),
        (fake_cupy("7.5", "7.0"), True, ["device 0", "7.5", "device 1", "7.0"]),
    ],
    ids=["no CuPy", "old CuPy", "no sort", "no driver", "no device", "old device", "old devices"],
)
def test_reasons(cupy: Any, has_compute: bool, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = reason(monkeypatch, cupy, has_compute)
    assert text is not None
    for word in words:
        assert word in text


@pytest.mark.parametrize("capabilities", [("8.0",), ("9.0",), ("10.0",), ("12.1",), ("7.5", "9.0")], ids=str)
def test_available(capabilities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, fake_cupy(*capabilities)) is None


def test_one_old_device_among_several_is_refused_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy("7.5", "9.0"))
    with pytest.raises(ValueError, match=r"backend 'cupy' cannot .*: CUDA device 0 has compute capability 7.5"):
        availability.check_device(0)
    availability.check_device(1)


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy("9.0", "10.0"))
    first, second = availability.describe_devices()
    assert first == "NVIDIA 0, compute capability 9.0, 80 GiB"
    assert "10.0" in second


def test_importing_the_backend_does_not_import_cupy() -> None:
    code = "import sys, zeta_ops.backends.cupy; print('cupy' in sys.modules)"
    folder = Path(zeta_ops.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert run.stdout.strip() == "False"
