"""Selections: against an oracle of tuples, between backends, and their quality."""

from __future__ import annotations

from itertools import pairwise

import calls
import numpy as np
import oracle
import pytest
from cases import KINDS, Case, cases, points
from checks import assert_same_bits
from hypothesis import given
from kinds import Target

from zeta_ops.options import DEFAULT_BITS


@given(case=cases(kinds=KINDS, longest=40))
def test_reference_is_the_oracle(case: Case) -> None:
    indices = calls.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    defaults = {
        "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1, "include_self": True, "local_window": 0,
        "bounds": None,
    }  # fmt: skip
    options = defaults | {name: value for name, value in case.selection_options.items() if value is not None}
    options.setdefault("window", options["top_k"])
    options.setdefault("bits", DEFAULT_BITS[case.q.shape[-1]])
    borders = options.pop("cu_seqlens", np.array([0, case.k.shape[-2]]))
    options.setdefault("q_offset", case.k.shape[-2] - case.q.shape[-2])
    group = case.q.shape[-3] // case.k.shape[-3]
    for row in np.ndindex(case.q.shape[:-2]):
        q, k = case.q[row], case.k[(*row[:-1], row[-1] // group)]
        for start, stop in pairwise(borders.tolist()):
            queries = range(stop - start) if "cu_seqlens" in case.options else range(len(q))
            for i in queries:
                mine = oracle.selected(q[start:], k[start:stop], i, options)
                found = indices[row][start + i]
                assert [j - start for j in found if j >= 0] == mine


@given(case=cases(kinds=KINDS))
def test_backends_select_the_same(backend: Target, case: Case) -> None:
    reference = calls.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    assert_same_bits(calls.causal_topk(case.q, case.k, backend=backend, **case.selection_options), reference)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_curves", [1, 3])
def test_backends_select_the_same_over_several_levels(backend: Target, kind: str, num_curves: int) -> None:
    rng = np.random.default_rng(1)
    length, step = (30000, 611) if backend.kind.on_gpu else (3000, 61)
    q, k = (points(kind, (2, length, 3), rng) for _ in range(2))
    options = {"top_k": 6, "window": 6, "num_curves": num_curves}
    found = calls.causal_topk(q, k, backend=backend, **options)
    for i in range(0, length, step):  # the reference takes a while for each
        alone = calls.causal_topk(q[:, i : i + 1], k[:, : i + 1], backend="numpy", **options)
        assert_same_bits(found[:, i : i + 1], alone)


def test_lists_are_ascending_and_padded(backend: Target) -> None:
    q, k = (points("random", (1, 50, 3), np.random.default_rng(s)) for s in (0, 1))
    indices = calls.causal_topk(q, k, top_k=8, backend=backend)
    for i in range(50):
        row = indices[0, i].tolist()
        count = min(i + 1, 8)
        assert row[count:] == [-1] * (8 - count)
        assert row[:count] == sorted(set(row[:count]))
        assert max(row) <= i


def test_exact_search_has_full_recall(backend: Target) -> None:
    q, k = (points("random", (2, 200, 3), np.random.default_rng(s)) for s in (0, 1))
    keys, mass = calls.selection_recall(q, k, 0.3, top_k=8, search="exact", backend=backend)
    assert_same_bits(keys, np.ones(2))
    assert_same_bits(mass, np.ones(2))


def test_recall_counts_what_is_found(backend: Target) -> None:
    q, k = (points("random", (2, 150, 3), np.random.default_rng(s)) for s in (0, 1))
    gamma = np.array([0.2, 0.7], np.float32)
    keys, mass = calls.selection_recall(q, k, gamma, top_k=6, backend=backend)
    selected = calls.causal_topk(q, k, top_k=6, backend="numpy")
    nearest = calls.causal_topk(q, k, top_k=6, search="exact", backend="numpy")
    for head in range(2):
        shares, masses = [], []
        for i in range(150):
            mine, true = (set(lists[head, i].tolist()) - {-1} for lists in (selected, nearest))
            u = 1 / (((q[head, i].astype(float) - k[head].astype(float)) ** 2).sum(-1) + float(gamma[head]) ** 2)
            shares.append(len(mine & true) / len(true))
            masses.append(u[list(mine)].sum() / u[list(true)].sum())
        assert keys[head] == pytest.approx(np.mean(shares))
        assert mass[head] == pytest.approx(np.mean(masses))


def test_recall_of_nothing_is_nan(backend: Target) -> None:
    x = np.zeros((1, 1, 3), np.float32)
    keys, mass = calls.selection_recall(x, x, include_self=False, backend=backend)
    assert np.isnan(keys).all() and np.isnan(mass).all()


def test_three_curves_find_more() -> None:
    q, k = (points("random", (1, 2000, 3), np.random.default_rng(s)) for s in (0, 1))
    one = calls.selection_recall(q, k, top_k=16, window=32, backend="numba")
    three = calls.selection_recall(q, k, top_k=16, window=32, num_curves=3, backend="numba")
    assert one.keys[0] < 0.8 < three.keys[0] <= 1
