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


def random_options(rng: np.random.Generator, key_dim: int, kind: str, causal: tuple[bool, ...]) -> dict[str, Any]:
    """Choose options that are valid together."""

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    top_k, num_curves = int(rng.integers(1, 13)), int(rng.integers(1, 4))
    options: dict[str, Any] = {
        "top_k": top_k,
        "num_curves": num_curves,
        "search": one_of("zorder", "zorder", "zorder", "exact"),
        "window": one_of(None, int(rng.integers(top_k if num_curves == 1 else 1, 25))),
        "bits": one_of(None, int(rng.integers(1, min(27, 64 // key_dim) + 1))),
        "causal": one_of(*causal),
        "history_mean": one_of(True, False),
    }
    if kind != "wild":
        options["bounds"] = one_of(None, None, (-2.0, 2.0), (0, 1))
    if options["causal"]:
        options["chunk_size"] = one_of(1, 1, 2, 7, 16)
        options["include_self"] = one_of(True, False)
        options["local_window"] = one_of(0, 0, 1, 5)
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
    """Draw a whole problem: grouped heads, unequal lengths or packed sequences, any number of batch axes.

    Only lengths are drawn, so that they shrink; all else follows from a seed. Drawn one by one, options would come
    in runs of near-duplicates, because hypothesis prefers to vary what it has already drawn.
    """
    seed = draw(st.integers(0, 2**32 - 1))
    k_len, q_len = draw(st.integers(0, longest)), draw(st.integers(0, longest))
    rng = np.random.default_rng(seed)
    kind, layout = str(rng.choice(kinds)), str(rng.choice(layouts))
    key_dim, dim = int(rng.choice([1, 2, 3, 3, 3, 4, 5, 8])), int(rng.choice([0, 1, 3, 16, 20, 33]))
    kv_heads, group = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    batch = ((), (2,), (1, 2))[rng.integers(3)]
    options = random_options(rng, key_dim, kind, causal)
    if layout in ("square", "packed"):
        q_len = k_len
    if layout == "offset":
        options["q_offset"] = int(rng.integers(-5, k_len + 6))
    if layout == "packed":
        batch = ()
        borders = rng.integers(0, k_len + 1, rng.integers(0, 5))
        options["cu_seqlens"] = np.array([0, *np.sort(borders), k_len], np.int32)
    heads = kv_heads * group
    q_shape, k_shape = (*batch, heads, q_len, key_dim), (*batch, kv_heads, k_len, key_dim)
    return Case(
        q=points(kind, q_shape, rng).astype(dtype),
        k=points(kind, k_shape, rng).astype(dtype),
        v=rng.standard_normal((*k_shape[:-1], dim)).astype(dtype),
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
