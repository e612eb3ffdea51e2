"""The public functions on JAX arrays: under jit, grad, vmap and scan, split over devices by batch and heads.

Arguments come here with valid shapes, dtypes and options; options are static. `ffi` calls the backends, `ops` makes JAX
functions of the calls, or `xla` of plain operations; this module makes their derivatives.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from zeta_ops.adapters.jax import ops, xla
from zeta_ops.adapters.jax.ffi import Place
from zeta_ops.adapters.numpy import ADAPTER as ON_CPU
from zeta_ops.adapters.numpy import recall_of
from zeta_ops.arguments import check_cu_seqlens, check_gamma, check_index_range, is_number
from zeta_ops.backends import xla as xla_backend
from zeta_ops.backends.xla.morton import join, split
from zeta_ops.options import Options, Problem, Shapes
from zeta_ops.registry import pick_backend

Array = jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(
    q: Array, k: Array, v: Array, gamma: Array, borders: tuple[Array, ...], options: Options, place: Place
) -> tuple[Array, Array]:
    return _attend_forward(q, k, v, gamma, borders, options, place)[0]


def _attend_forward(
    q: Array, k: Array, v: Array, gamma: Array, borders: tuple[Array, ...], options: Options, place: Place
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    arguments = q, k, v, gamma, *borders
    out, normalizer, *residuals = _operations(place).search_forward(
        *arguments, options=options, packed=bool(borders), place=place
    )
    return (out, normalizer), (*arguments, normalizer, *residuals)


def _attend_backward(options: Options, place: Place, kept: tuple[Array, ...], gradients: Any) -> Any:
    packed = kept[4].ndim == 1
    found = _operations(place).search_backward(gradients[0], *kept, options=options, packed=packed, place=place)
    return *found, tuple(np.zeros(x.shape, jax.dtypes.float0) for x in kept[4 : 4 + packed])


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_to_given(q: Array, k: Array, v: Array, indices: Array, gamma: Array, place: Place) -> Array:
    return _operations(place).given_forward(q, k, v, indices, gamma, place=place)[0]


def _given_forward(
    q: Array, k: Array, v: Array, indices: Array, gamma: Array, place: Place
) -> tuple[Array, tuple[Array, ...]]:
    out, normalizer = _operations(place).given_forward(q, k, v, indices, gamma, place=place)
    return out, (q, k, v, indices, gamma, normalizer)


def _given_backward(place: Place, kept: tuple[Array, ...], grad_out: Array) -> Any:
    grad_q, grad_k, grad_v, grad_gamma = _operations(place).given_backward(grad_out, *kept, place=place)
    return grad_q, grad_k, grad_v, np.zeros(kept[3].shape, jax.dtypes.float0), grad_gamma


_attend_to_given.defvjp(_given_forward, _given_backward)


def morton_encode(
    x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int, backend: str | None
) -> Array:
    """See `zeta_ops.morton_encode`.

    On a CPU not under jit, but with the backend `xla`. On other devices plain XLA makes the codes, which are the same
    bits, whatever the backend. Not for 64-bit codes while `jax_enable_x64` is off.
    """
    options: dict[str, Any] = {"bits": bits, "bounds": bounds, "num_curves": num_curves, "curve": curve}
    if _codes_by_xla(_place(backend, x)):
        if x.shape[-1] * bits > 32:
            _check_wide_codes()
        return join(xla.morton_encode(x, **options))
    codes = ON_CPU.morton_encode(_concrete("x", x), **options, backend=backend)
    if codes.dtype == np.uint64:
        _check_wide_codes()
    return jnp.asarray(codes)


def morton_decode(codes: Array, *, dims: int, bits: int, backend: str | None) -> Array:
    """See `zeta_ops.morton_decode`. On a CPU not under jit, but with the backend `xla`."""
    if _codes_by_xla(_place(backend, codes)):
        return xla.morton_decode(split(codes), dims=dims, bits=bits)
    return jnp.asarray(ON_CPU.morton_decode(_concrete("codes", codes), dims=dims, bits=bits, backend=backend))


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, backend: str | None) -> Array:
    """See `zeta_ops.causal_topk`."""
    place = _place(backend, q, k, cu_seqlens)
    _check_sequences(place, cu_seqlens, problem)
    q4, k4 = _points(problem, jax.lax.stop_gradient(q), jax.lax.stop_gradient(k))
    indices = _operations(place).select(q4, k4, _borders(cu_seqlens), problem.options, place)
    return indices.reshape(*q.shape[:-1], problem.options.top_k)


def selection_recall(
    problem: Problem, q: Array, k: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
) -> tuple[Array, Array]:
    """See `zeta_ops.selection_recall`. Not under jit; measured on the CPU."""
    points = _concrete("q", q), _concrete("k", k)
    width = _concrete("gamma", gamma) if isinstance(gamma, Array) else gamma
    if cu_seqlens is not None:
        _concrete("cu_seqlens", cu_seqlens)

    def select(problem: Problem) -> Any:
        return np.asarray(causal_topk(problem, q, k, cu_seqlens, backend))

    keys, mass = recall_of(select, problem, *points, width)
    return jnp.asarray(keys), jnp.asarray(mass)


def zeta_attention(
    problem: Problem,
    q: Array,
    k: Array,
    v: Array,
    gamma: float | Array,
    cu_seqlens: Array | None,
    backend: str | None,
    return_normalizer: bool,
) -> Any:
    """See `zeta_ops.zeta_attention`.

    While values are traced, those of `gamma` are not checked, and those of `cu_seqlens` are when the program runs; the
    backend `xla` cannot check them then, and for wrong ones its results are meaningless. On a GPU no values are
    checked, for reading them would wait for the device.
    """
    place = _place(backend, q, k, v, cu_seqlens)
    _check_sequences(place, cu_seqlens, problem)
    out, normalizer = _attend(
        *_points(problem, q, k),
        v.reshape(problem.v_shape),
        _gamma_per_head(place, gamma, problem),
        _borders(cu_seqlens),
        problem.options,
        place,
    )
    out = out.reshape(*q.shape[:-1], v.shape[-1])
    return (out, jax.lax.stop_gradient(normalizer).reshape(q.shape[:-1])) if return_normalizer else out


def cauchy_attention(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
) -> Array:
    """See `zeta_ops.cauchy_attention`. The values of traced `indices` are checked when the program runs.

    The backend `xla` cannot check them then, and takes those that are out of range for nothing. On a GPU no values are
    checked.
    """
    place = _place(backend, q, k, v, indices)
    if indices.size > 0 and _values_are_known(place, indices):
        values = np.asarray(indices)
        check_index_range(int(values.min()), int(values.max()), shapes.k_len)
    out = _attend_to_given(
        *_points(shapes, q, k),
        v.reshape(shapes.v_shape),
        indices.reshape(*shapes.normalizer_shape, indices.shape[-1]),
        _gamma_per_head(place, gamma, shapes),
        place,
    )
    return out.reshape(*q.shape[:-1], v.shape[-1])


def zeta_attention_vjp(*_: Any) -> NoReturn:
    """Refuse: JAX differentiates by itself."""
    raise TypeError("q must be a NumPy or CuPy array; got a JAX array: use jax.vjp with zeta_ops.zeta_attention")


def cauchy_attention_vjp(*_: Any) -> NoReturn:
    """Refuse: JAX differentiates by itself."""
    raise TypeError("q must be a NumPy or CuPy array; got a JAX array: use jax.vjp with zeta_ops.cauchy_attention")


def _place(backend: str | None, *arrays: Array | None) -> Place:
    """Find out where a call computes, and check that the backend can.

    Arrays that are traced do not say on which device they will be: the default one is expected.
    """
    place = Place(backend, _platform_of(*arrays))
    pick_backend(*place, "jax")
    return place


def _platform_of(*arrays: Array | None) -> str:
    """Name the platform that arrays are on, or will be once values are known."""
    given = [x for x in arrays if x is not None]
    if any(isinstance(x, jax.core.Tracer) for x in given):
        default = jax.config.jax_default_device  # type: ignore[attr-defined]
        name = jax.default_backend() if default is None else getattr(default, "platform", default)
    else:
        name = next(iter(given[0].devices())).platform
    return {"gpu": "cuda"}.get(name.lower(), name.lower())


def _operations(place: Place) -> ModuleType:
    """Find the module that makes JAX functions of a backend: foreign calls, or plain XLA."""
    return xla if pick_backend(*place, "jax") is xla_backend else ops


def _codes_by_xla(place: Place) -> bool:
    return place.platform != "cpu" or _operations(place) is xla


def _check_sequences(place: Place, cu_seqlens: Array | None, problem: Problem) -> None:
    if cu_seqlens is not None and _values_are_known(place, cu_seqlens):
        check_cu_seqlens(np.asarray(cu_seqlens).tolist(), problem.k_len)


def _values_are_known(place: Place, x: Any) -> bool:
    """Whether reading values is possible, outside of tracing, and costs no synchronisation, on a CPU."""
    return place.platform == "cpu" and not isinstance(x, jax.core.Tracer)


def _borders(cu_seqlens: Array | None) -> tuple[Array, ...]:
    return () if cu_seqlens is None else (cu_seqlens,)


def _points(shapes: Shapes, q: Array, k: Array) -> tuple[Array, Array]:
    """Bring queries and keys into canonical form, in the coordinate dtype."""
    dtype = shapes.coordinate_dtype
    return q.reshape(shapes.q_shape).astype(dtype), k.reshape(shapes.k_shape).astype(dtype)


def _gamma_per_head(place: Place, gamma: float | Array, shapes: Shapes) -> Array:
    if not is_number(gamma) and _values_are_known(place, gamma):
        values = np.asarray(gamma)
        for extreme in (values.min(), values.max()):
            check_gamma(float(extreme), shapes.coordinate_dtype)
    return jnp.broadcast_to(jnp.asarray(gamma, shapes.coordinate_dtype), (shapes.q_heads,))


def _concrete(name: str, x: Array) -> Any:
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{name} must hold values; got {x.aval} while tracing: call this function outside of jit")
    return np.asarray(x)


def _check_wide_codes() -> None:
    if not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "codes of more than 32 bits need 64-bit integers in JAX: set jax_enable_x64, or encode NumPy arrays"
        )
