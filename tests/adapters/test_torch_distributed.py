"""DTensor, DDP and FSDP2 on two processes: what one process computes, with no more communication than needed.

The processes start once and run all of distributed_checks.py; each test reads what came of one check.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zeta_ops

torch = pytest.importorskip("torch", reason="torch is not installed")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this build of torch has no gloo, with which the processes communicate", allow_module_level=True)

from distributed_checks import CHECKS, RANKS  # noqa: E402

SECONDS = 150  # all checks take a tenth of it, unless something hangs


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """For each rank what came of each check that it ran."""
    folder = tmp_path_factory.mktemp("ranks")
    script, meeting = Path(__file__).with_name("distributed_checks.py"), folder / "meeting"
    environment = {**os.environ, "PYTHONPATH": str(Path(zeta_ops.__file__).parent.parent)}
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), meeting], env=environment, stderr=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    try:
        errors = [process.communicate(timeout=SECONDS)[1].decode() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    found = [folder / f"meeting.{rank}" for rank in range(RANKS)]
    assert all(path.exists() for path in found), errors
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.parametrize("name", CHECKS)
def test_on_every_rank(results: list[dict[str, str]], name: str) -> None:
    for rank, outcomes in enumerate(results):
        outcome = outcomes.get(name, "not run, because an earlier check failed")
        assert outcome == "passed", f"rank {rank}: {outcome}"
