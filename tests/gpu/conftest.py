"""Every test in this folder needs a GPU that torch sees, and the backend that computes on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeta_ops.registry import available_backends

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> str:
    """Name of the device that tensors are made on."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    reason = available_backends().get("cupy", "there is no such backend")
    if reason is not None:
        pytest.skip(f"backend cupy is not available: {reason}")
    return "cuda"
