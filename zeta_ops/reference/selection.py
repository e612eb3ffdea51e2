"""Causal candidates: which keys a query sees, and which of them it selects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zeta_ops.options import Options
from zeta_ops.reference.morton import morton_encode

__all__ = ["history_counts", "local_keys", "select", "squared_distances", "visible_counts"]

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def positions(num_queries: int, options: Options) -> Ints:
    """Absolute positions `pos(i) = q_offset + i` of the queries."""
    return options.q_offset + np.arange(num_queries)


def visible_counts(num_queries: int, num_keys: int, options: Options) -> Ints:
    """Numbers `t(i)`: query i searches among the keys at positions `j < t(i)`."""
    if not options.causal:
        return np.full(num_queries, num_keys)
    pos = positions(num_queries, options)
    past = pos + 1 if options.include_self else pos
    chunk = options.chunk_size
    t = np.minimum(chunk * (past // chunk), pos + 1 - options.local_window)
    return np.clip(t, 0, num_keys)


def history_counts(num_queries: int, num_keys: int, options: Options) -> Ints:
    """Numbers of keys, from the first on, whose mean is query i's history token."""
    if not options.causal:
        return np.full(num_queries, num_keys)
    pos = positions(num_queries, options)
    return np.clip(pos + 1 if options.include_self else pos, 0, num_keys)


def local_keys(i: int, num_keys: int, options: Options) -> Ints:
    """Positions `pos(i) - local_window + 1 .. pos(i)` that exist: attended whatever the search finds."""
    end = options.q_offset + i + 1
    return np.arange(max(0, end - options.local_window), min(end, num_keys))


def squared_distances(query: Floats, keys: Floats) -> Floats:
    """Squared distances from one `query (dk,)` to `keys (n, dk)`.

    Summed from the first coordinate to the last, each operation rounded for itself. Backends follow this
    order to the letter, because distances decide which keys are kept.
    """
    d = np.zeros(len(keys), dtype=keys.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for c in range(keys.shape[1]):
            difference = query[c] - keys[:, c]
            d = d + difference * difference
    return d


def nearest(query: Floats, k: Floats, candidates: Ints, count: int) -> Ints:
    """Keep the `count` candidates of smallest distance, ties to the most recent. NaN counts as infinite."""
    d = squared_distances(query, k[candidates])
    d = np.where(np.isnan(d), np.inf, d)
    order = np.lexsort((-candidates, d))
    return np.sort(candidates[order[:count]])


def curve_window(query_code: np.unsignedinteger, key_codes: npt.NDArray[np.unsignedinteger], window: int) -> Ints:
    """Window of one curve: positions of the visible keys around the query in (code, position) order.

    Parameters
    ----------
    query_code : unsigned integer
    key_codes : ndarray (n,)
        Codes of the visible keys, by position.
    window : int
        The window takes half on either side and slides at the ends.
    """
    n = len(key_codes)
    by_code = np.argsort(key_codes, kind="stable")
    r = int(np.count_nonzero(key_codes <= query_code))  # equal codes count as before the query
    lo = min(max(r - (window + 1) // 2, 0), max(0, n - window))
    hi = min(n, lo + window)
    return by_code[lo:hi]


def select(q: Floats, k: Floats, options: Options) -> list[Ints]:
    """Select for each query of one row.

    Parameters
    ----------
    q : ndarray (Nq, dk), k : ndarray (Nk, dk)
        In the coordinate dtype (float32 or float64).

    Returns
    -------
    list of ndarray
        For each query i the positions of `S(i)`, ascending.
    """
    t = visible_counts(len(q), len(k), options)
    if options.search == "exact":
        return [nearest(q[i], k, np.arange(t[i]), options.top_k) for i in range(len(q))]

    def encode(x: Floats, curve: int) -> npt.NDArray[np.unsignedinteger]:
        return morton_encode(x, bits=options.bits, bounds=options.bounds, num_curves=options.num_curves, curve=curve)

    curves = range(options.num_curves)
    q_codes = [encode(q, curve) for curve in curves]
    k_codes = [encode(k, curve) for curve in curves]
    selected = []
    for i in range(len(q)):
        windows = [curve_window(q_codes[c][i], k_codes[c][: t[i]], options.window) for c in curves]
        union = np.unique(np.concatenate(windows))
        selected.append(nearest(q[i], k, union, options.top_k) if len(union) > options.top_k else union)
    return selected
