"""Associative recall: what the generator draws, and a short run from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import recall
from examples.recall_data import NO_TARGET, recall_batch

TASK: dict[str, Any] = {"length": 32, "num_pairs": 6, "vocab_size": 256}


def draw(seed: int, count: int = 500, **changes: Any) -> tuple[Any, Any]:
    return recall_batch(np.random.default_rng(seed), count, **{**TASK, **changes})


def test_every_pair_is_asked_for_once_and_can_be_answered() -> None:
    tokens, targets = draw(0)
    assert tokens.shape == targets.shape == (500, 32)
    for row, target in zip(tokens, targets, strict=True):
        pairs = dict(zip(row[0:12:2], row[1:12:2], strict=True))
        asked = np.flatnonzero(target != NO_TARGET)
        assert len(pairs) == 6 and asked.min() >= 12
        assert sorted(row[asked]) == sorted(pairs)
        assert [pairs[key] for key in row[asked]] == target[asked].tolist()
        others = np.setdiff1d(np.arange(32), [*range(0, 12, 2), *asked])
        assert (row[others] >= 128).all() and (row[asked] < 128).all()


def test_the_order_of_queries_says_nothing() -> None:
    tokens, targets = draw(1, 4000)
    first = (targets != NO_TARGET).argmax(axis=1)
    pair = (tokens[:, 0:12:2] == tokens[np.arange(4000), first][:, None]).argmax(axis=1)
    assert np.bincount(pair, minlength=6).min() > 4000 / 6 * 0.8


def test_short_gaps_are_more_frequent() -> None:
    asked = draw(2, 4000)[1][:, 12::2] != NO_TARGET
    shares = asked.mean(axis=0)
    assert shares[0] > 0.9 and shares[-1] < 0.5 and shares.sum() == pytest.approx(6)


def test_the_whole_vocabulary_is_used_and_seeds_differ() -> None:
    tokens, _ = draw(3)
    assert np.unique(tokens).tolist() == list(range(256))
    assert (tokens == draw(3)[0]).all() and (tokens != draw(4)[0]).any()


def test_the_least_room() -> None:
    _, targets = draw(0, 10, length=24, vocab_size=12)
    assert (targets[:, 12::2] != NO_TARGET).all()


@pytest.mark.parametrize("changes", [{"length": 23}, {"vocab_size": 11}], ids=["length", "vocab_size"])
def test_tasks_without_room_are_refused(changes: dict[str, int]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name}|num_pairs"):
        draw(0, **changes)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    threads = torch.get_num_threads()
    files = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    assert recall.main(["--steps", "30", "--dim", "16", *files]) == 1  # nothing is learned so soon
    torch.set_num_threads(threads)
    assert "zeta, seed 0: less than 0.99" in capsys.readouterr().err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["command"].startswith("python -m examples.recall --steps 30")
    assert [run["attention"] for run in result["runs"]] == ["standard", "zeta"]
    for run in result["runs"]:
        assert run["steps"] == 30 and [step for step, _ in run["validation_curve"]] == [25, 30]
        assert 0 <= run["test_accuracy"] < 0.99
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert recall.main(["--json", str(tmp_path / "none" / "r.json")]) == 2
    assert "must be an existing folder" in capsys.readouterr().err
