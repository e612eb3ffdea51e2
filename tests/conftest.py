"""One fixture runs a test on every target: a backend and a kind of array; hypothesis profiles."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from gpu_report import GpuReport
from hypothesis import HealthCheck, settings
from kinds import NUMPY, TARGETS, Target

from zeta_ops.registry import unavailable_reason

# Examples and benchmarks are not installed: they are found in the checkout, after the package under test.
sys.path.append(str(Path(__file__).parents[1]))

# JAX would take three quarters of a GPU's memory, of which others need some; it reads this when it is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

REQUIRED = ("numpy", "numba")  # core dependencies: a suite without them proves nothing

common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", derandomize=True, max_examples=80, **common)
settings.register_profile("explore", max_examples=500, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu-report", type=Path, metavar="FILE", help="write what each test came to, how long it took, and on what"
    )


def pytest_configure(config: pytest.Config) -> None:
    in_worker = hasattr(config, "workerinput")  # of pytest-xdist, whose main process collects all outcomes
    if config.option.gpu_report is not None and not in_worker:
        config.pluginmanager.register(GpuReport(config.option.gpu_report, config.invocation_params.args))


MARKED = [pytest.param(target, marks=pytest.mark.gpu) if target.kind.on_gpu else target for target in TARGETS]


@pytest.fixture(params=MARKED, ids=str, scope="session")
def backend(request: pytest.FixtureRequest) -> Target:
    """A backend and a kind of array, for the functions of `calls`."""
    return _usable(request.param)


@pytest.fixture(params=[target for target in TARGETS if target.kind is NUMPY], ids=str, scope="session")
def backend_name(request: pytest.FixtureRequest) -> str:
    """Name of a backend that computes on NumPy arrays, for tests that call its functions themselves."""
    return _usable(request.param).backend


def _usable(target: Target) -> Target:
    missing = target.kind.missing()
    if missing is not None and target.kind is not NUMPY:
        pytest.skip(missing)
    reason = unavailable_reason(target.backend)
    if reason is not None and target.backend not in REQUIRED:
        pytest.skip(f"backend {target.backend} is not available: {reason}")
    assert reason is None, reason
    return target


@pytest.fixture(autouse=True)
def examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer examples for kinds of array that only convert what a backend computes."""
    parameters = getattr(request.node, "callspec", None)
    target = parameters.params.get("backend") if parameters else None
    attribute = "_hypothesis_internal_use_settings"
    if isinstance(target, Target) and target.kind.most_examples and hasattr(request.function, "hypothesis"):
        drawn = getattr(request.function, attribute)
        fewer = settings(drawn, max_examples=min(drawn.max_examples, target.kind.most_examples))
        monkeypatch.setattr(request.function, attribute, fewer)
