"""The demo: points of suffixes, no leak, counts, and a run from end to end."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from zeta_ops.__main__ import main
from zeta_ops.demo.dense import numpy_attention, time_dense
from zeta_ops.demo.models import (
    Score,
    attend,
    attention_costs,
    one_hot,
    order_0_costs,
    order_0_shares,
    order_3_costs,
)
from zeta_ops.demo.run import context_lengths, num_scored
from zeta_ops.demo.text import overlapping_blocks, read_text, standard_library, suffix_points

RNG = np.random.default_rng(0)


def weights_of(blocks: np.ndarray, alphabet: int) -> np.ndarray:
    return attend(suffix_points(blocks), one_hot(blocks, alphabet), top_k=8)


def attention(blocks: np.ndarray, alphabet: int) -> tuple[np.ndarray, np.ndarray]:
    return attention_costs(blocks, weights_of(blocks, alphabet))


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
    before, after = weights_of(text, 4), weights_of(later, 4)
    assert (before[:, :201] == after[:, :201]).all()
    for costs in (attention, order_0_costs, order_3_costs):
        for first, second in zip(costs(text, 4), costs(later, 4), strict=True):
            assert (first[:, :200] == second[:, :200]).all()


def test_attention_learns_a_period() -> None:
    text = np.tile(RNG.integers(0, 16, 50, dtype=np.uint8), 20)[None]
    score = Score.of(*attention(text, 16), 500)
    assert score.accuracy == 1 and score.bits < 0.5


def test_attention_gives_distributions() -> None:
    weights = weights_of(RNG.integers(0, 4, (2, 100), dtype=np.uint8), 4)
    assert (weights[:, 0] == 0).all() and (weights >= 0).all()
    assert weights[:, 1:].sum(axis=-1) == pytest.approx(1, rel=1e-5)


def test_the_mixture_is_that_of_a_loop() -> None:
    """Bits and hits from whole distributions, mixed one byte at a time."""
    alphabet = 4
    blocks = RNG.integers(0, alphabet, (2, 200), dtype=np.uint8) & RNG.integers(0, alphabet, (2, 200), dtype=np.uint8)
    bits, hits = attention(blocks, alphabet)
    for row, (block, weights) in enumerate(zip(blocks, weights_of(blocks, alphabet), strict=True)):
        better = 0
        for i, byte in enumerate(block):
            order_0 = (np.bincount(block[:i], minlength=alphabet) + 1) / (i + alphabet)
            share = (better + 1) / (i + 1)
            mixed = (1 - share) * weights[i] + share * order_0
            assert mixed.sum() == pytest.approx(1, rel=1e-5)
            assert bits[row, i] == pytest.approx(-np.log2(mixed[byte]), abs=1e-5)
            assert hits[row, i] == (mixed.argmax() == byte) or np.ptp(np.sort(mixed)[-2:]) < 1e-6
            better += weights[i, byte] < order_0[byte]


def test_share_of_order_0_is_never_0() -> None:
    always, never = np.ones((1, 50)), np.zeros((1, 50))
    assert order_0_shares(never, always * 0.1) == pytest.approx(1)
    assert order_0_shares(always, always * 0.1)[0] == pytest.approx(1 / np.arange(1, 51))


@pytest.mark.parametrize("order", [0, 3])
def test_counts_are_those_of_dictionaries(order: int) -> None:
    alphabet = 5
    blocks = RNG.integers(0, alphabet, (2, 300), dtype=np.uint8)
    bits, hits = (order_0_costs if order == 0 else order_3_costs)(blocks, alphabet)
    for row, block in enumerate(blocks.tolist()):
        counts = Counter(range(alphabet))
        after = defaultdict(Counter)
        padded = [0, 0, 0, *block]
        for i, byte in enumerate(block):
            seen = after[tuple(padded[i : i + 3])]
            p = np.array([counts[b] / counts.total() for b in range(alphabet)])
            if order == 3:
                p = np.array([(seen[b] + p[b]) / (seen.total() + 1) for b in range(alphabet)])
            assert bits[row, i] == pytest.approx(-np.log2(p[byte]))
            assert hits[row, i] == (p.argmax() == byte)
            counts[byte] += 1
            seen[byte] += 1


def test_context_lengths() -> None:
    assert context_lengths(1 << 20) == [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20]
    assert context_lengths(5000) == [1024, 4096, 5000]


@pytest.mark.parametrize("num_bytes", [1024, 1025, 4096, 5000, 70_001, 1 << 17])
def test_every_context_scores_the_same_bytes(num_bytes: int) -> None:
    places = np.arange(num_bytes)  # each byte stands for its own place
    scored = num_scored(num_bytes)
    assert num_bytes / 5 < scored <= num_bytes / 2
    for context in context_lengths(num_bytes):
        blocks, end = overlapping_blocks(places, context, scored)
        assert blocks.shape[1] == context and end <= (context + 1) // 2
        assert blocks[:, -end:].reshape(-1).tolist() == places[-scored:].tolist()
        assert (np.diff(blocks) == 1).all()


def test_scores_are_of_the_ends_of_blocks() -> None:
    bits, hits = np.array([[9.0, 1, 2], [9, 3, 6]]), np.array([[1, 0, 1], [1, 1, 1]], bool)
    assert Score.of(bits, hits, 2) == (3, 0.75)


def test_numpy_attention_is_dense_causal_softmax() -> None:
    q, k, v = RNG.standard_normal((3, 300, 5))
    weights = np.tril(np.exp(q @ k.T / np.sqrt(5)))
    expected = weights @ v / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(numpy_attention(q, k, v), expected, rtol=1e-10, atol=1e-12)


def test_dense_attention_is_extrapolated_by_squares() -> None:
    dense = time_dense([64, 128, 512], 8, max_seconds=0)
    assert dense["measured"] == [True, False, False]
    assert dense["seconds"] == pytest.approx([dense["seconds"][0] * factor for factor in (1, 4, 64)])


def test_dense_attention_does_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeta_ops.demo.dense.util.find_spec", lambda name: None)
    dense = time_dense([64, 128], 8)
    assert dense["by"] == f"NumPy {np.__version__}" and dense["measured"] == [True, True]
    assert min(dense["seconds"]) > 0


def test_standard_library_is_the_same_each_time() -> None:
    assert standard_library(50_000) == standard_library(60_000)[:50_000]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "[bold]$_$"  # neither markup nor mathematics
    text.write_bytes(b"the quick brown fox jumps over the lazy dog; " * 150)
    assert main(["demo", "--text", str(text), "--bytes", "5000", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "demo.json").read_text())
    assert [row["context"] for row in result["rows"]] == [1024, 4096, 5000]
    assert result["rows"][-1]["accuracy"]["attention"] > 0.99
    assert result["text"] == {"source": "[bold]$_$", "bytes": 5000, "alphabet": 28, "scored": 2048}
    assert result["command"].startswith("python -m zeta_ops demo --text ")
    assert {"date", "versions", "machine", "protocol", "options", "dense", "recall"} <= result.keys()
    assert all(0 < share["keys"] <= 1 for share in result["recall"]["shares"])
    assert (tmp_path / "demo.png").read_bytes()[1:4] == b"PNG"
    out = capsys.readouterr().out
    assert "3 curves, window 64" in out and "Next byte of [bold]$_$" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "no such file"], "no such file"),
        (["--text", "."], "Is a directory"),
        (["--text", os.devnull], f"at least 1024 bytes; got 0 from {os.devnull}"),
        (["--bytes", "100"], "--bytes must be at least 1024; got 100"),
        (["--bytes", "-5000"], "--bytes must be at least 1024; got -5000"),
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
