"""The demo: points of suffixes, no leak, counts, and a run from end to end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from zeta_ops.__main__ import main
from zeta_ops.demo.models import (
    Score,
    attention_costs,
    attention_distribution,
    order_0_costs,
    order_0_tables,
    order_3_costs,
    previous_equal,
)
from zeta_ops.demo.run import context_lengths
from zeta_ops.demo.text import read_text, standard_library, suffix_points

RNG = np.random.default_rng(0)


def test_points_hold_six_bytes() -> None:
    text = RNG.integers(0, 256, 200, dtype=np.uint8)
    cells = (suffix_points(text) * 65536).astype(np.int64)
    assert suffix_points(text).dtype == np.float32
    for i in range(6, 200):
        high, low = cells[i] >> 8, cells[i] & 255
        assert [*high, *low] == text[i - 6 : i][::-1].tolist()
    assert (cells[0] == 0).all()


def test_equal_suffixes_are_equal_points() -> None:
    text = np.frombuffer(b"..abcdef??abcdef!!", np.uint8)
    points = suffix_points(text)
    assert (points[8] == points[16]).all() and (points[7] != points[15]).any()


def test_blocks_are_placed_one_by_one() -> None:
    blocks = RNG.integers(0, 256, (3, 40), dtype=np.uint8)
    for block, points in zip(blocks, suffix_points(blocks), strict=True):
        assert (suffix_points(block) == points).all()


def test_the_future_is_not_seen() -> None:
    text = RNG.integers(0, 4, (2, 300), dtype=np.uint8)
    later = text.copy()
    later[:, 200:] = RNG.integers(0, 4, (2, 100))
    before, after = (attention_distribution(x, 4, top_k=8) for x in (text, later))
    assert (before[:, :201] == after[:, :201]).all()
    for costs in (order_0_costs, order_3_costs):
        for first, second in zip(costs(text, 4), costs(later, 4), strict=True):
            assert (first[:, :200] == second[:, :200]).all()


def test_attention_learns_a_period() -> None:
    text = np.tile(RNG.integers(0, 16, 50, dtype=np.uint8), 20)[None]
    score = Score.of(*attention_costs(text, 16, top_k=8))
    assert score.accuracy == 1 and score.bits < 0.1


def test_previous_equal_counts() -> None:
    keys = RNG.integers(0, 5, 100)
    assert previous_equal(keys).tolist() == [keys[:i].tolist().count(keys[i]) for i in range(100)]


@pytest.mark.parametrize("order", [0, 3])
def test_counts_are_those_of_dictionaries(order: int) -> None:
    alphabet = 5
    blocks = RNG.integers(0, alphabet, (2, 300), dtype=np.uint8)
    bits, hits = (order_0_costs if order == 0 else order_3_costs)(blocks, alphabet)
    for row, block in enumerate(blocks.tolist()):
        of_byte, of_context = Counter(), defaultdict(Counter)
        best: dict[tuple, int] = {}
        padded = [0, 0, 0, *block]
        for i, byte in enumerate(block):
            context = tuple(padded[i + 3 - order : i + 3])
            seen = of_context[context]
            p = (of_byte[byte] + 1) / (i + alphabet)
            if order == 3:
                p = (seen[byte] + p) / (sum(seen.values()) + 1)
            assert bits[row, i] == pytest.approx(-np.log2(p))
            assert hits[row, i] == (best.get(context) == byte)
            of_byte[byte] += 1
            seen[byte] += 1
            if seen[byte] > seen[best.get(context, -1)]:
                best[context] = byte
        tables = order_0_tables(np.array(block), alphabet, 100, 200)
        for i in (100, 150, 199):
            expected = (np.bincount(block[:i], minlength=alphabet) + 1) / (i + alphabet)
            assert tables[i - 100] == pytest.approx(expected, rel=1e-5)


def test_context_lengths() -> None:
    assert context_lengths(1 << 20) == [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20]
    assert context_lengths(5000) == [1024, 4096, 5000]


def test_standard_library_is_the_same_each_time() -> None:
    assert standard_library(50_000) == standard_library(60_000)[:50_000]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog; " * 150)
    assert main(["demo", "--text", str(text), "--bytes", "5000", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "demo.json").read_text())
    assert [row["context"] for row in result["rows"]] == [1024, 4096, 5000]
    assert result["rows"][-1]["accuracy"]["attention"] > 0.99
    assert result["dense"]["measured"] == [True, True, False]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert "three curves" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "no such file"], "no such file"),
        (["--bytes", "100"], "at least 1024 bytes; got 100"),
        (["--output", "no such folder"], "existing folder; got no such folder"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'zeta-ops[demo]'" in capsys.readouterr().err


def test_read_text_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(range(256)) * 8)
    assert read_text(path, 1500).tobytes() == (bytes(range(256)) * 8)[:1500]
