"""Checks of arguments, before any work is done. Every error names the argument, what it got, what it expected.

Only shapes, dtypes and plain numbers are looked at, so that one set of checks serves every kind of array, and
tracing too. What needs the values of an array is checked by the adapter, where reading them costs nothing.
"""

from __future__ import annotations

import math
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from zeta_ops.options import DEFAULT_BITS, MAX_BITS, MAX_KEY_DIM, Options, Problem, Shapes

__all__ = [
    "attention_shapes",
    "check_bool",
    "check_code_array",
    "check_cu_seqlens",
    "check_curve",
    "check_gamma",
    "check_index_range",
    "check_indices",
    "check_int",
    "check_points",
    "code_options",
    "dtype_name",
    "is_number",
    "search_problem",
]

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Within 2**-e and 2**e, both the square of gamma and the largest weight, 1 over it, are normal numbers.
GAMMA_EXPONENT = {"float32": 63, "float64": 511}


def dtype_name(array: Any) -> str:
    """Name of an array's dtype, the same for every framework."""
    return str(array.dtype).removeprefix("torch.")


def is_number(value: object) -> bool:
    """Whether `value` is one real number and no array (NumPy's scalars are numbers)."""
    return isinstance(value, Real) and not isinstance(value, bool)


def attention_shapes(q: Any, k: Any, v: Any, gamma: Any) -> Shapes:
    """Check the arrays of an attention call against each other and bring their shapes into canonical form.

    `v` is None where a function takes no values. `gamma` is a number or an array.
    """
    coordinate_dtype = _check_coordinates(q, k)
    *batch, q_heads, q_len, key_dim = _check_rank("q", q, "(..., heads, length, dk)")
    *k_batch, kv_heads, k_len, k_dim = _check_rank("k", k, "(..., heads, length, dk)")
    if k_batch != batch:
        raise ValueError(f"k must have the leading dimensions of q, {tuple(batch)}; got {tuple(k_batch)}")
    if k_dim != key_dim:
        raise ValueError(f"k must have the last dimension of q, dk = {key_dim}; got {k_dim}")
    if not 1 <= key_dim <= MAX_KEY_DIM:
        raise ValueError(f"q and k must have 1 to {MAX_KEY_DIM} coordinates (dk, the last dimension); got {key_dim}")
    if kv_heads == 0 or q_heads % kv_heads != 0:
        if q_heads != kv_heads:
            raise ValueError(f"q must have a multiple of k's heads; got {q_heads} heads in q and {kv_heads} heads in k")
        raise ValueError(f"q and k must have at least one head; got q of shape {tuple(q.shape)}")
    value_dim, value_dtype = 0, coordinate_dtype
    if v is not None:
        value_dtype = _check_float("v", v)
        *v_front, value_dim = _check_rank("v", v, "(..., heads, length, dv)")
        if v_front != [*k_batch, kv_heads, k_len]:
            expected = (*k_batch, kv_heads, k_len)
            raise ValueError(f"v must have the shape of k up to dv, {(*expected, 'dv')}; got {tuple(v.shape)}")
    _check_gamma_form(gamma, q_heads, coordinate_dtype)
    return Shapes(
        batch=math.prod(batch),
        q_heads=q_heads,
        kv_heads=kv_heads,
        q_len=q_len,
        k_len=k_len,
        key_dim=key_dim,
        value_dim=value_dim,
        coordinate_dtype=coordinate_dtype,
        value_dtype=value_dtype,
    )


def search_problem(
    shapes: Shapes,
    cu_seqlens: Any,
    *,
    top_k: int,
    window: int | None,
    num_curves: int,
    search: str,
    causal: bool,
    chunk_size: int,
    include_self: bool,
    local_window: int,
    bits: int | None,
    bounds: tuple[float, float] | None,
    q_offset: int | None,
    history_mean: bool = False,
    deterministic: bool = False,
) -> Problem:
    """Check the options, fill in defaults and join them with the shapes."""
    top_k = check_int("top_k", top_k, 1)
    window = top_k if window is None else check_int("window", window, 1)
    bits, bounds, num_curves = code_options(shapes.key_dim, bits, bounds, num_curves)
    if search not in ("zorder", "exact"):
        raise ValueError(f"search must be 'zorder' or 'exact'; got {search!r}")
    if window < top_k and num_curves == 1:
        raise ValueError(
            f"window must be at least top_k = {top_k} with one curve, or top_k keys cannot be found; got {window}"
        )
    causal = check_bool("causal", causal)
    local_window = check_int("local_window", local_window, 0)
    if local_window > 0 and not causal:
        raise ValueError(
            f"local_window must be 0 with causal=False, where the search sees those keys already; got {local_window}"
        )
    options = Options(
        top_k=top_k,
        window=window,
        num_curves=num_curves,
        search=search,
        causal=causal,
        chunk_size=check_int("chunk_size", chunk_size, 1),
        include_self=check_bool("include_self", include_self),
        local_window=local_window,
        history_mean=check_bool("history_mean", history_mean),
        bits=bits,
        bounds=bounds,
        q_offset=shapes.k_len - shapes.q_len if q_offset is None else check_int("q_offset", q_offset),
        deterministic=check_bool("deterministic", deterministic),
    )
    return shapes.searched(_count_sequences(cu_seqlens, shapes), options)


def code_options(key_dim: int, bits: Any, bounds: Any, num_curves: Any) -> tuple[int, tuple[float, float] | None, int]:
    """Check the options of Morton codes and fill in the default number of bits."""
    num_curves = check_int("num_curves", num_curves, 1)
    if num_curves > 3:
        raise ValueError(f"num_curves must be 1, 2 or 3; got {num_curves}")
    most = min(MAX_BITS, 64 // key_dim)
    bits = DEFAULT_BITS[key_dim] if bits is None else check_int("bits", bits, 1)
    if bits > most:
        raise ValueError(
            f"bits must be at most {most} with {key_dim} coordinates (dk * bits <= 64, bits <= {MAX_BITS}); got {bits}"
        )
    return bits, None if bounds is None else _check_bounds(bounds), num_curves


def check_gamma(gamma: float, dtype: str) -> None:
    """Check one value of `gamma`, which is squared in `dtype`, that of the coordinates."""
    if not gamma > 0 or math.isinf(gamma):
        raise ValueError(f"gamma must be positive and finite; got {gamma}")
    exponent = GAMMA_EXPONENT[dtype]
    if not 2.0**-exponent <= gamma <= 2.0**exponent:
        raise ValueError(
            f"gamma must lie between 2**-{exponent} and 2**{exponent}, or {dtype} cannot hold its square; got {gamma}"
        )


def check_cu_seqlens(borders: list[int], length: int) -> None:
    """Check the values of `cu_seqlens`."""
    ascending = all(a <= b for a, b in pairwise(borders))
    if borders[0] != 0 or borders[-1] != length or not ascending:
        raise ValueError(
            f"cu_seqlens must ascend from 0 to the length {length}; got {borders if len(borders) < 9 else '...'}"
            f" from {borders[0]} to {borders[-1]}"
        )


def check_indices(indices: Any, shapes: Shapes) -> None:
    """Check form and dtype of given `indices (..., H, Nq, K)`."""
    if dtype_name(indices) != "int32":
        raise TypeError(f"indices must be int32; got {dtype_name(indices)}")
    front = [shapes.batch, shapes.q_heads, shapes.q_len]
    *batch, heads, length, _ = _check_rank("indices", indices, "(..., heads, length, K)")
    if [math.prod(batch), heads, length] != front:
        raise ValueError(
            f"indices must have the shape of q up to the last dimension, (..., {shapes.q_heads}, {shapes.q_len}, K);"
            f" got {tuple(indices.shape)}"
        )


def check_index_range(lowest: int, highest: int, k_len: int) -> None:
    """Check the values of given indices."""
    if lowest < -1 or highest >= k_len:
        raise ValueError(f"indices must be in [-1, {k_len}), -1 for nothing; got values in [{lowest}, {highest}]")


def _check_rank(name: str, array: Any, form: str) -> list[int]:
    if array.ndim < 3:
        raise ValueError(f"{name} must have at least 3 dimensions {form}; got shape {tuple(array.shape)}")
    return list(array.shape)


def _check_float(name: str, array: Any) -> str:
    dtype: str = dtype_name(array)
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(FLOAT_DTYPES)}; got {dtype}")
    return dtype


def _check_coordinates(q: Any, k: Any) -> str:
    dtypes = _check_float("q", q), _check_float("k", k)
    if (dtypes[0] == "float64") != (dtypes[1] == "float64"):
        raise TypeError(f"q and k must both be float64 or neither; got q {dtypes[0]} and k {dtypes[1]}")
    return "float64" if dtypes[0] == "float64" else "float32"


def check_points(x: Any) -> int:
    """Check points `x (..., dk)` to encode and return dk."""
    _check_float("x", x)
    if x.ndim < 1 or not 1 <= x.shape[-1] <= MAX_KEY_DIM:
        raise ValueError(
            f"x must have 1 to {MAX_KEY_DIM} coordinates in its last dimension; got shape {tuple(x.shape)}"
        )
    return int(x.shape[-1])


def check_curve(curve: Any, num_curves: int) -> int:
    """Check the number of one curve among several."""
    number = check_int("curve", curve, 0)
    if number >= num_curves:
        raise ValueError(f"curve must be less than num_curves = {num_curves}; got {number}")
    return number


def check_code_array(codes: Any, dims: Any, bits: Any) -> int:
    """Check codes to decode into `dims` coordinates and return the bits of each."""
    dims = check_int("dims", dims, 1)
    if dims > MAX_KEY_DIM:
        raise ValueError(f"dims must be 1 to {MAX_KEY_DIM}; got {dims}")
    num_bits, _, _ = code_options(dims, bits, None, 1)
    if dtype_name(codes) not in ("uint32", "uint64"):
        raise TypeError(f"codes must be uint32 or uint64; got {dtype_name(codes)}")
    if dims * num_bits > 32 and dtype_name(codes) == "uint32":
        raise TypeError(f"codes must be uint64 for dims * bits = {dims * num_bits}; got uint32")
    return num_bits


def _check_gamma_form(gamma: Any, heads: int, coordinate_dtype: str) -> None:
    if is_number(gamma):
        check_gamma(float(gamma), coordinate_dtype)
        return
    if not hasattr(gamma, "dtype") or dtype_name(gamma) not in FLOAT_DTYPES:
        got = dtype_name(gamma) if hasattr(gamma, "dtype") else type(gamma).__name__
        raise TypeError(f"gamma must be a positive number or a float array of shape ({heads},); got {got}")
    if tuple(gamma.shape) not in ((), (heads,)):
        raise ValueError(
            f"gamma must be a number or have one value per query head, ({heads},); got {tuple(gamma.shape)}"
        )


def check_int(name: str, value: Any, minimum: int | None = None) -> int:
    """Check an integer option that fits in 32 bits."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got {value!r} ({type(value).__name__})")
    if minimum is not None and int(value) < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if not -(2**31) <= int(value) < 2**31:
        raise ValueError(f"{name} must fit in 32 bits; got {value}")
    return int(value)


def check_bool(name: str, value: object) -> bool:
    """Check an option that is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r} ({type(value).__name__})")
    return value


def _check_bounds(bounds: Any) -> tuple[float, float]:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2 or not all(map(is_number, bounds)):
        raise TypeError(f"bounds must be None or two numbers (lo, hi); got {bounds!r}")
    lo, hi = map(float, bounds)
    # The scale 2**27 / (hi - lo) has to be a normal float32 on every backend.
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi and 1e-30 < hi - lo < 1e38):
        raise ValueError(f"bounds must be finite with lo < hi, between 1e-30 and 1e38 apart; got {(lo, hi)}")
    if max(abs(lo), abs(hi)) > 1e38:
        raise ValueError(f"bounds must lie within float32's range; got {(lo, hi)}")
    return lo, hi


def _count_sequences(cu_seqlens: Any, shapes: Shapes) -> int | None:
    if cu_seqlens is None:
        return None
    if dtype_name(cu_seqlens) != "int32":
        raise TypeError(f"cu_seqlens must be int32; got {dtype_name(cu_seqlens)}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens must have shape (number of sequences + 1,); got {tuple(cu_seqlens.shape)}")
    if shapes.batch != 1:
        raise ValueError(f"q must have a batch of one where cu_seqlens packs sequences; got {shapes.batch}")
    if shapes.q_len != shapes.k_len:
        raise ValueError(
            f"q and k must have equal lengths where cu_seqlens packs sequences; got {shapes.q_len} and {shapes.k_len}"
        )
    return int(cu_seqlens.shape[0]) - 1
