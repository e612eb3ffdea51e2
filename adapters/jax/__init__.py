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
from zeta_ops.arguments import check_cu_seqlens, check_gamma, check_index_range, is_number
from zeta_ops.backends import xla as xla_backend
from zeta_ops.backends.xla.morton import join, split
from zeta_ops.options import Options, Problem, Shapes
from zeta_ops.registry import adapter_named, pick_backend

Array = jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(
    q: Array, k: Array, v: Array, gamma: Array, borders: tuple[Array, ...], options: Options, backend: str | None
) -> tuple[Array, Array]:
    return _attend_forward(q, k, v, gamma, borders, options, backend)[0]


def _attend_forward(
    q: Array, k: Array, v: Array, gamma: Array, borders: tuple[Array, ...], options: Options, backend: str | None
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    arguments = q, k, v, gamma, *borders
    out, normalizer, *residuals = _operations(backend).search_forward(
        *arguments, options=options, packed=bool(borders), backend=backend
    )
    return (out, normalizer), (*arguments, normalizer, *residuals)


def _attend_backward(options: Options, backend: str | None, kept: tuple[Array, ...], gradients: Any) -> Any:
    packed = kept[4].ndim == 1
    found = _operations(backend).search_backward(gradients[0], *kept, options=options, packed=packed, backend=backend)
    return *found, tuple(np.zeros(x.shape, jax.dtypes.float0) for x in kept[4 : 4 + packed])


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_to_given(q: Array, k: Array, v: Array, indices: Array, gamma: Array, backend: str | None) -> Array:
    return _operations(backend).given_forward(q, k, v, indices, gamma, backend=backend)[0]


def _given_forward(
    q: Array, k: Array, v: Array, indices: Array, gamma: Array, backend: str | None
) -> tuple[Array, tuple[Array, ...]]:
    out, normalizer = _operations(backend).given_forward(q, k, v, indices, gamma, backend=backend)
    return out, (q, k, v, indices, gamma, normalizer)


def _given_backward(backend: str | None, kept: tuple[Array, ...], grad_out: Array) -> Any:
    grad_q, grad_k, grad_v, grad_gamma = _operations(backend).given_backward(grad_out, *kept, backend=backend)
    return grad_q, grad_k, grad_v, np.zeros(kept[3].shape, jax.dtypes.float0), grad_gamma


_attend_to_given.defvjp(_given_forward, _given_backward)


def morton_encode(
    x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int, backend: str | None
) -> Array:
    """See `zeta_ops.morton_encode`.

    Not under jit, but with the backend `xla`. Not for 64-bit codes while `jax_enable_x64` is off.
    """
    if _operations(backend) is xla:
        if x.shape[-1] * bits > 32:
            _check_wide_codes()
        return join(xla.morton_encode(x, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve))
    codes = adapter_named("numpy").morton_encode(
        _concrete("x", x), bits=bits, bounds=bounds, num_curves=num_curves, curve=curve, backend=backend
    )
    if codes.dtype == np.uint64:
        _check_wide_codes()
    return jnp.asarray(codes)


def morton_decode(codes: Array, *, dims: int, bits: int, backend: str | None) -> Array:
    """See `zeta_ops.morton_decode`. Not under jit, but with the backend `xla`."""
    if _operations(backend) is xla:
        return xla.morton_decode(split(codes), dims=dims, bits=bits)
    return jnp.asarray(
        adapter_named("numpy").morton_decode(_concrete("codes", codes), dims=dims, bits=bits, backend=backend)
    )


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, backend: str | None) -> Array:
    """See `zeta_ops.causal_topk`."""
    _check(backend, cu_seqlens, problem)
    q4 = jax.lax.stop_gradient(q).reshape(problem.q_shape).astype(problem.coordinate_dtype)
    k4 = jax.lax.stop_gradient(k).reshape(problem.k_shape).astype(problem.coordinate_dtype)
    indices = _operations(backend).select(q4, k4, _borders(cu_seqlens), problem.options, backend)
    return indices.reshape(*q.shape[:-1], problem.options.top_k)


def selection_recall(
    problem: Problem, q: Array, k: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
) -> tuple[Array, Array]:
    """See `zeta_ops.selection_recall`. Not under jit; measured on the CPU."""
    borders = None if cu_seqlens is None else _concrete("cu_seqlens", cu_seqlens)
    width = _concrete("gamma", gamma) if isinstance(gamma, Array) else gamma
    points = _concrete("q", q), _concrete("k", k)
    on_cpu = adapter_named("numpy")
    if _operations(backend) is not xla:
        keys, mass = on_cpu.selection_recall(problem, *points, width, borders, backend)
    else:
        _check(backend, cu_seqlens, problem)

        def select(problem: Problem) -> Any:
            return np.asarray(causal_topk(problem, q, k, cu_seqlens, backend)).reshape(*problem.normalizer_shape, -1)

        keys, mass = on_cpu.recall_of(select, problem, *points, width)
    return jnp.asarray(keys), jnp.asarray(mass)


def zeta_attention(
    problem: Problem,
    q: Array,
    k: Array,
    v: Array,
    gamma: float | Array,
    cu_seqlens: Array | None,
    backend: str | None,
) -> tuple[Array, Array]:
    """See `zeta_ops.zeta_attention`.

    While values are traced, those of `gamma` are not checked, and those of `cu_seqlens` are when the program runs; the
    backend `xla` cannot check them then, and for wrong ones its results are meaningless.
    """
    _check(backend, cu_seqlens, problem)
    coordinates = problem.coordinate_dtype
    out, normalizer = _attend(
        q.reshape(problem.q_shape).astype(coordinates),
        k.reshape(problem.k_shape).astype(coordinates),
        v.reshape(problem.v_shape),
        _gamma_per_head(gamma, problem),
        _borders(cu_seqlens),
        problem.options,
        backend,
    )
    return out.reshape(*q.shape[:-1], v.shape[-1]), jax.lax.stop_gradient(normalizer).reshape(q.shape[:-1])


def cauchy_attention(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
) -> Array:
    """See `zeta_ops.cauchy_attention`. The values of traced `indices` are checked when the program runs.

    The backend `xla` cannot check them then, and takes those that are out of range for nothing.
    """
    _check(backend, None, shapes)
    if indices.size > 0 and not isinstance(indices, jax.core.Tracer):
        values = np.asarray(indices)
        check_index_range(int(values.min()), int(values.max()), shapes.k_len)
    out = _attend_to_given(
        q.reshape(shapes.q_shape).astype(shapes.coordinate_dtype),
        k.reshape(shapes.k_shape).astype(shapes.coordinate_dtype),
        v.reshape(shapes.v_shape),
        indices.reshape(*shapes.normalizer_shape, indices.shape[-1]),
        _gamma_per_head(gamma, shapes),
        backend,
    )
    return out.reshape(*q.shape[:-1], v.shape[-1])


def zeta_attention_vjp(*_: Any) -> NoReturn:
    """Refuse: JAX differentiates by itself."""
    raise TypeError("q must be a NumPy array; got a JAX array: use jax.vjp with zeta_ops.zeta_attention")


def cauchy_attention_vjp(*_: Any) -> NoReturn:
    """Refuse: JAX differentiates by itself."""
    raise TypeError("q must be a NumPy array; got a JAX array: use jax.vjp with zeta_ops.cauchy_attention")


def _check(backend: str | None, cu_seqlens: Array | None, shapes: Shapes) -> None:
    _operations(backend)
    if cu_seqlens is not None and not isinstance(cu_seqlens, jax.core.Tracer):
        check_cu_seqlens(np.asarray(cu_seqlens).tolist(), shapes.k_len)


def _operations(backend: str | None) -> ModuleType:
    """Find the module that makes JAX functions of a backend: foreign calls, or plain XLA."""
    platform = jax.default_backend().lower()
    chosen: object = pick_backend(backend, {"gpu": "cuda"}.get(platform, platform), "jax")
    return xla if chosen is xla_backend else ops


def _borders(cu_seqlens: Array | None) -> tuple[Array, ...]:
    return () if cu_seqlens is None else (cu_seqlens,)


def _gamma_per_head(gamma: float | Array, shapes: Shapes) -> Array:
    if not is_number(gamma) and not isinstance(gamma, jax.core.Tracer):
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
