"""What only the numba backend has: threads, forks, layouts, and bounded work on hostile keys."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checks import assert_same_bits

import zeta_ops
from zeta_ops.arguments import attention_shapes, search_problem
from zeta_ops.backends import numba as backend
from zeta_ops.backends.numba.layout import BLOCK, LEVELS, layout_of
from zeta_ops.backends.numba.sums import dots


def problem(n: int, top_k: int = 8, heads: int = 2, cu_seqlens: np.ndarray | None = None):
    x, v = np.zeros((1, heads, n, 3), np.float32), np.zeros((1, heads, n, 4), np.float32)
    options = {
        "top_k": top_k, "window": None, "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1,
        "include_self": True, "local_window": 0, "bits": None, "bounds": None, "q_offset": None,
    }  # fmt: skip
    return search_problem(attention_shapes(x, x, v, 1.0), cu_seqlens, **options)


def everything(seed: int = 0, n: int = 700) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 2, n, 3)).astype(np.float32)
    v = rng.standard_normal((1, 2, n, 32)).astype(np.float32)
    options = {"top_k": 8, "num_curves": 2, "history_mean": True, "local_window": 4}
    out, pullback = zeta_ops.zeta_attention_vjp(q, k, v, 0.5, backend="numba", **options)
    exact, exact_pullback = zeta_ops.zeta_attention_vjp(q, k, v, 0.5, top_k=8, search="exact", backend="numba")
    indices = zeta_ops.causal_topk(q, k, top_k=8, backend="numba")
    at_indices, given_pullback = zeta_ops.cauchy_attention_vjp(q, k, v, indices, 0.5, backend="numba")
    return out, *pullback(v), exact, *exact_pullback(v), indices, at_indices, *given_pullback(v)


@pytest.fixture
def threads():
    before = backend.get_num_threads()
    yield backend.set_num_threads
    backend.set_num_threads(before)


def test_same_bits_on_any_number_of_threads(threads) -> None:
    threads(1)
    expected = everything()
    for count in (2, 3, 8):
        threads(count)
        for mine, theirs in zip(everything(), expected, strict=True):
            assert_same_bits(mine, theirs)


def test_number_of_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        backend.set_num_threads(0)


def test_concurrent_calls(threads) -> None:
    threads(2)
    expected = [everything(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for mine, theirs in zip(pool.map(everything, range(4)), expected, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert_same_bits(a, b)


def _in_child(queue) -> None:
    queue.put(everything())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_after_a_fork(threads) -> None:
    threads(2)
    expected = everything()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    for mine, theirs in zip(queue.get(timeout=60), expected, strict=True):
        assert_same_bits(mine, theirs)
    child.join()


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 1000, 4097])
def test_levels_have_fewer_than_two_entries_a_key(n: int) -> None:
    layout = layout_of(problem(n), None)
    levels = int(layout.rows[0, LEVELS])
    assert layout.entries <= 2 * (2 * n + levels * BLOCK)  # two heads; each level is padded to whole blocks
    assert (layout.level_slot[:, -1] == n).all()


def test_memory_is_linear() -> None:
    def bytes_kept(n: int) -> int:
        specs = backend.residual_specs(problem(n, top_k=32, heads=1))
        return sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in specs)

    assert bytes_kept(1 << 16) <= 16 * (1 << 16)
    assert bytes_kept(1 << 17) <= 2.01 * bytes_kept(1 << 16)


def test_walks_step_over_what_is_invisible() -> None:
    # All that a query sees is far, all that is near comes later: without a skip index, thousands of steps each.
    n = 1 << 14
    time_of = np.arange(n, dtype=np.float32)[:, None] / n
    noise = np.random.default_rng(0).standard_normal((2, 1, n, 3)).astype(np.float32)
    q, k = 0.01 * noise[0] + 60 * time_of, 0.01 * noise[1] + 40 * time_of
    indices = zeta_ops.causal_topk(q, k, top_k=8, backend="numba")
    for i in (100, 5000, 9000, 16000):
        alone = zeta_ops.causal_topk(q[:, i : i + 1], k[:, : i + 1], top_k=8, backend="numpy")
        assert_same_bits(indices[:, i : i + 1], alone)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 7, 16, 24, 33, 64, 100])
def test_a_product_is_the_same_in_every_place_of_a_list(dtype: type, dim: int) -> None:
    """Which place that is depends on keys of the future too. How a compiler sums depends on the machine."""
    g, row = np.random.default_rng(dim).standard_normal((2, dim)).astype(dtype)
    found = []
    for count in range(1, 10):
        results = np.full(count + 1, 7, dtype)
        dots(g, 0, row, np.zeros(count, np.uint64), count, dim, results)
        assert results[count] == 7
        found.extend(results[:count])
    assert len({x.tobytes() for x in found}) == 1
