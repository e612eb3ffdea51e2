"""Strategies that draw problems: points of many kinds, shapes, and every option."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Array = npt.NDArray[Any]

FINITE_KINDS = ("random", "ties", "duplicates", "lattice", "drift", "equal")
KINDS = (*FINITE_KINDS, "wild")
LAYOUTS = ("square", "square", "unequal", "offset", "packed")  # square twice, because it is the common case


def points(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw float32 points `(..., n, dk)` of one kind."""
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "ties":  # many equal codes, few equal points
        return (np.float32(1e-6) * x + rng.integers(-1, 2, shape)).astype(np.float32)
    if kind == "duplicates":  # many equal points
        return rng.integers(-1, 2, shape).astype(np.float32)
    if kind == "lattice":  # points on the borders of cells, many equal distances
        return (rng.integers(-8, 9, shape) / 4).astype(np.float32)
    if kind == "drift":
        return x + np.linspace(-9, 9, max(1, shape[-2]), dtype=np.float32)[:, None]
    if kind == "equal":
        return np.full(shape, 0.25, np.float32)
    if kind == "wild":  # random bits: subnormals, huge and tiny numbers, infinities and NaN
        return rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    return x


@dataclass(repr=False)
class Case:
    """Arguments of one call; `drawn` says how a strategy made the arrays, which are too long to print."""

    q: Array
    k: Array
    v: Array
    gamma: Array
    options: dict[str, Any] = field(default_factory=dict)
    drawn: str = ""

    def __repr__(self) -> str:
        return f"Case({self.drawn}, {self.options})"

    @property
    def selection_options(self) -> dict[str, Any]:
        """Options without those that only attention has."""
        return {name: value for name, value in self.options.items() if name != "history_mean"}

    @property
    def wide(self) -> Case:
        """The same with float64 values: the same selection, in the coordinates' own dtype, but sums in float64."""
        return replace(self, v=self.v.astype(np.float64))


@st.composite
def option_sets(draw: Any, key_dim: int, kind: str, causal: tuple[bool, ...]) -> dict[str, Any]:
    """Draw options that are valid together."""
    options: dict[str, Any] = {"top_k": draw(st.integers(1, 12))}
    options["num_curves"] = draw(st.integers(1, 3))
    options["search"] = draw(st.sampled_from(["zorder", "zorder", "zorder", "exact"]))
    least = options["top_k"] if options["num_curves"] == 1 else 1
    options["window"] = draw(st.none() | st.integers(least, 24))
    options["bits"] = draw(st.none() | st.integers(1, min(27, 64 // key_dim)))
    if kind != "wild":
        options["bounds"] = draw(st.sampled_from([None, None, (-2.0, 2.0), (0, 1)]))
    options["causal"] = draw(st.sampled_from(causal))
    if options["causal"]:
        options["chunk_size"] = draw(st.sampled_from([1, 1, 2, 7, 16]))
        options["include_self"] = draw(st.booleans())
        options["local_window"] = draw(st.sampled_from([0, 0, 1, 5]))
    options["history_mean"] = draw(st.booleans())
    return options


@st.composite
def cases(
    draw: Any,
    dtype: type = np.float32,
    kinds: tuple[str, ...] = FINITE_KINDS,
    layouts: tuple[str, ...] = LAYOUTS,
    causal: tuple[bool, ...] = (True, True, True, False),
    longest: int = 90,
) -> Case:
    """Draw a whole problem: grouped heads, unequal lengths or packed sequences, any number of batch axes."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(kinds))
    key_dim = draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5, 8]))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    k_len = draw(st.integers(0, longest))
    options = draw(option_sets(key_dim, kind, causal))
    batch: tuple[int, ...] = draw(st.sampled_from([(), (2,), (1, 2)]))
    q_len = k_len
    layout = draw(st.sampled_from(layouts))
    if layout == "unequal":
        q_len = draw(st.integers(0, longest))
    elif layout == "offset":
        q_len = draw(st.integers(0, longest))
        options["q_offset"] = draw(st.integers(-5, k_len + 5))
    elif layout == "packed":
        batch = ()
        borders = draw(st.lists(st.integers(0, k_len), max_size=4))
        options["cu_seqlens"] = np.array([0, *sorted(borders), k_len], np.int32)
    heads = kv_heads * group
    q_shape, k_shape = (*batch, heads, q_len, key_dim), (*batch, kv_heads, k_len, key_dim)
    return Case(
        q=points(kind, q_shape, rng).astype(dtype),
        k=points(kind, k_shape, rng).astype(dtype),
        v=rng.standard_normal((*k_shape[:-1], draw(st.sampled_from([0, 1, 3, 16, 20, 33])))).astype(dtype),
        gamma=rng.uniform(0.1, 1, heads).astype(dtype),
        options=options,
        drawn=f"{kind} points, seed {seed}, q {q_shape}, k {k_shape}",
    )


def example(length: int = 96, dtype: Any = np.float64, heads: int = 2, dim: int = 16, **options: Any) -> Case:
    """Make a fixed problem of two batch items."""
    rng = np.random.default_rng(7)
    q, k = rng.standard_normal((2, 2, heads, length, 3)).astype(dtype)
    v = rng.standard_normal((2, heads, length, dim)).astype(dtype)
    return Case(q, k, v, np.linspace(0.3, 0.8, heads).astype(dtype), {"top_k": 8, **options})
