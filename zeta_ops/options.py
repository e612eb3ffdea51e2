"""The options of a call, its shapes, and the problem that they make together.

All are frozen and hashable: adapters use them as static arguments of compiled code, backends as keys of
what they have planned or compiled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

__all__ = ["DEFAULT_BITS", "MAX_BITS", "MAX_KEY_DIM", "Options", "Problem", "Shapes"]

MAX_KEY_DIM = 8
MAX_BITS = 27  # the quantiser's resolution
DEFAULT_BITS = {1: 24, 2: 16, 3: 10, 4: 8, 5: 6, 6: 5, 7: 4, 8: 4}  # by key dimension; 32-bit codes throughout


class _HashedOnce:
    """Remembers its hash: calls look up by it, several times each."""

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hash"}  # strings' differ by process


@dataclass(frozen=True)
class Options:
    """Every option of `zeta_ops.zeta_attention`, validated, with its defaults filled in.

    `zeta_ops.zeta_attention` documents the fields.
    """

    top_k: int
    window: int
    num_curves: int
    search: str
    causal: bool
    chunk_size: int
    include_self: bool
    local_window: int
    history_mean: bool
    bits: int
    bounds: tuple[float, float] | None
    q_offset: int
    deterministic: bool

    @property
    def reranks(self) -> bool:
        """Whether a selection by curves can hold more than `top_k` keys and has to be cut to the nearest."""
        return self.search == "zorder" and self.num_curves * self.window > self.top_k


@dataclass(frozen=True)
class Shapes(_HashedOnce):
    """Shapes and dtypes of one attention call in canonical form.

    Canonical arrays have exactly one batch axis: `q (batch, q_heads, q_len, key_dim)`,
    `k (batch, kv_heads, k_len, key_dim)`, `v (batch, kv_heads, k_len, value_dim)`, `gamma (q_heads,)`.

    Attributes
    ----------
    coordinate_dtype : str
        "float32" or "float64": in what `q`, `k` and `gamma` are used.
    value_dtype : str
        "float16", "bfloat16", "float32" or "float64": the dtype of `v` and of the output.
    """

    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    k_len: int
    key_dim: int
    value_dim: int
    coordinate_dtype: str
    value_dtype: str

    def __hash__(self) -> int:
        return self._hash

    @property
    def group_size(self) -> int:
        """Query heads that read one key head."""
        return self.q_heads // self.kv_heads

    @property
    def sum_dtype(self) -> str:
        """Dtype of the sums and of the normalizer: float64 if a coordinate or a value is, else float32."""
        return "float64" if "float64" in (self.coordinate_dtype, self.value_dtype) else "float32"

    @property
    def q_shape(self) -> tuple[int, int, int, int]:
        """Shape of the queries."""
        return self.batch, self.q_heads, self.q_len, self.key_dim

    @property
    def k_shape(self) -> tuple[int, int, int, int]:
        """Shape of the keys."""
        return self.batch, self.kv_heads, self.k_len, self.key_dim

    @property
    def v_shape(self) -> tuple[int, int, int, int]:
        """Shape of the values."""
        return self.batch, self.kv_heads, self.k_len, self.value_dim

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the output."""
        return self.batch, self.q_heads, self.q_len, self.value_dim

    @property
    def normalizer_shape(self) -> tuple[int, int, int]:
        """Shape of the normalizer."""
        return self.batch, self.q_heads, self.q_len

    def searched(self, num_sequences: int | None, options: Options) -> Problem:
        """Make the problem that these shapes and a search are. Spelled out, because torch.compile traces this."""
        return Problem(
            batch=self.batch,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            q_len=self.q_len,
            k_len=self.k_len,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            coordinate_dtype=self.coordinate_dtype,
            value_dtype=self.value_dtype,
            num_sequences=num_sequences,
            options=options,
        )


@dataclass(frozen=True)
class Problem(Shapes):
    """Shapes, dtypes and options of one call that searches.

    Attributes
    ----------
    num_sequences : int or None
        Number of packed sequences along the one batch item; None where nothing is packed.
    """

    num_sequences: int | None
    options: Options

    __hash__ = Shapes.__hash__  # a dataclass would make another
