"""One fixture runs a test on every backend; hypothesis profiles."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from zeta_ops.registry import BACKENDS, unavailable_reason

REQUIRED = ("numpy", "numba")  # core dependencies: a suite without them proves nothing

common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", derandomize=True, max_examples=80, **common)
settings.register_profile("explore", max_examples=500, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=[entry.name for entry in BACKENDS if "cpu" in entry.platforms], scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a backend that computes on NumPy arrays."""
    reason = unavailable_reason(request.param)
    if reason is not None and request.param not in REQUIRED:
        pytest.skip(f"backend {request.param} is not available: {reason}")
    assert reason is None, reason
    return str(request.param)
