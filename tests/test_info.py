"""What `python -m zeta_ops info` says."""

from __future__ import annotations

import pytest

import zeta_ops
from zeta_ops import info
from zeta_ops.__main__ import main


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"zeta-ops {zeta_ops.__version__}" in text
    for name, reason in zeta_ops.available_backends().items():
        assert name in text
        assert reason is None or reason in text
    assert "threads" in text


def test_info_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info.metadata, "distributions", list)
    assert "pip install 'zeta-ops[torch]'" in info.describe()
