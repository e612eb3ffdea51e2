"""Parts of the xla backend, each against a plain definition: distances, the nearest, the tree that counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from zeta_ops.reference.selection import squared_distances as reference_distances

jax = pytest.importorskip("jax", reason="jax is not installed")

from zeta_ops.backends.xla import distances, wavelet  # noqa: E402 (they import jax)
from zeta_ops.backends.xla.candidates import nearest  # noqa: E402

SEEDS = st.integers(0, 2**32 - 1)


def float_pairs(seed: int, dtype: Any, n: int = 4096) -> tuple[Any, Any]:
    """Pairs of points `(dk, n)`: any bits at all; a few roundings apart; so small or large that squares do not fit."""
    rng = np.random.default_rng(seed)
    word = np.dtype(f"uint{np.dtype(dtype).itemsize * 8}")
    low, high = np.finfo(dtype).minexp, np.finfo(dtype).maxexp
    a, b = rng.integers(0, np.iinfo(word).max, (2, 3, n), dtype=word, endpoint=True).view(dtype)
    near = rng.standard_normal((3, n)).astype(dtype)
    others = (near.view(word) + rng.integers(0, 5, (3, n), dtype=word)).view(dtype)
    scales = np.array([0, low // 2 - 8, low // 2, low - 2, high // 2 - 1, high // 2])[rng.integers(0, 6, n)]
    small, large = np.ldexp(rng.standard_normal((2, 3, n)), scales).astype(dtype)
    return np.concatenate([a, near, small], axis=1), np.concatenate([b, others, large], axis=1)


@given(seed=SEEDS)
def test_distances_are_those_of_the_definition(seed: int) -> None:
    a, b = float_pairs(seed, np.float32)
    with np.errstate(all="ignore"):
        expected = np.array([reference_distances(x, y[None])[0] for x, y in zip(a.T[::16], b.T[::16], strict=True)])
    expected = np.where(np.isnan(expected), np.float32(np.inf), expected)
    assert (expected == 0).any() and (expected > 3e38).any()
    assert ((expected > 0) & (expected < np.finfo(np.float32).tiny)).any()  # what a device takes for zero
    found = np.asarray(jitted_distances(a, b))[::16]
    assert_same_bits(found, expected.view(np.uint32))


jitted_distances = jax.jit(distances.squared_distances)
jitted_nearest = jax.jit(nearest, static_argnums=(3, 4))


@given(seed=SEEDS)
def test_nearest_are_those_that_sorting_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distance = rng.integers(0, rng.integers(1, 2**32), (20, 70), dtype=np.uint32)
    distance[rng.random(distance.shape) < rng.random()] = distances.infinity("float32")
    position = np.stack([rng.permutation(1000)[:70] for _ in range(20)]).astype(np.int32)
    valid = rng.random(distance.shape) < rng.random()
    place, taken = map(np.asarray, jitted_nearest(distance, position, valid, 9, 1000))
    for i in range(20):
        order = [j for j in np.lexsort((-position[i], distance[i])) if valid[i, j]]
        assert place[i][taken[i]].tolist() == sorted(order[:9])


@pytest.mark.parametrize("n", [1, 31, 32, 100])
def test_tree_counts_and_finds(n: int) -> None:
    rng = np.random.default_rng(n)
    key = rng.permutation(n).astype(np.int32)
    visible = rng.integers(1, n + 1, 200, dtype=np.int32)
    nth, rank = rng.integers(0, visible, dtype=np.int32), rng.integers(0, n + 1, 200, dtype=np.int32)
    tree = jax.jit(wavelet.build)(key)
    found = np.asarray(jax.jit(wavelet.nth)(tree, nth, visible))
    counted = np.asarray(jax.jit(wavelet.count_below)(tree, rank, visible))
    for i in range(200):
        ranks = np.flatnonzero(key < visible[i])
        assert found[i] == ranks[nth[i]]
        assert counted[i] == (ranks < rank[i]).sum()
