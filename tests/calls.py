"""The public functions as the shared tests call them: NumPy arrays in, NumPy arrays out, computed on any target.

`backend` is a `Target`, or the name of a backend, which is then called with NumPy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import Array, Case
from kinds import NUMPY, Pullback, Target

import zeta_ops
from zeta_ops.arguments import is_number

__all__ = [
    "attend",
    "attend_to",
    "cauchy_attention",
    "cauchy_attention_vjp",
    "causal_topk",
    "morton_decode",
    "morton_encode",
    "selection_recall",
    "zeta_attention",
    "zeta_attention_vjp",
]

Results = dict[str, Array]


def zeta_attention(*arrays: Any, backend: Target | str, **arguments: Any) -> Any:
    return _call("zeta_attention", arrays, arguments, backend)


def cauchy_attention(*arrays: Any, backend: Target | str, **arguments: Any) -> Array:
    return _call("cauchy_attention", arrays, arguments, backend)


def causal_topk(*arrays: Any, backend: Target | str, **arguments: Any) -> Array:
    return _call("causal_topk", arrays, arguments, backend)


def selection_recall(*arrays: Any, backend: Target | str, **arguments: Any) -> zeta_ops.SelectionRecall:
    return zeta_ops.SelectionRecall(*_call("selection_recall", arrays, arguments, backend, wide=True))


def morton_encode(*arrays: Any, backend: Target | str, **arguments: Any) -> Array:
    return _call("morton_encode", arrays, arguments, backend, wide=True)


def morton_decode(*arrays: Any, backend: Target | str, **arguments: Any) -> Array:
    return _call("morton_decode", arrays, arguments, backend, wide=True)


def zeta_attention_vjp(
    q: Array, k: Array, v: Array, gamma: Any = 1.0, *, backend: Target | str, **options: Any
) -> tuple[Array, Pullback]:
    return _differentiate("zeta_attention", {"q": q, "k": k, "v": v, "gamma": gamma}, options, backend)


def cauchy_attention_vjp(
    q: Array, k: Array, v: Array, indices: Array, gamma: Any = 1.0, *, backend: Target | str
) -> tuple[Array, Pullback]:
    inputs = {"q": q, "k": k, "v": v, "gamma": gamma}
    return _differentiate("cauchy_attention", inputs, {"indices": indices}, backend)


def attend(case: Case, backend: Target | str, grad_out: Array | None = None) -> Results:
    """Output of `zeta_attention` and the gradients of `(out * grad_out).sum()`, a random one by default."""
    arrays = case.q, case.k, case.v, case.gamma
    out, pullback = zeta_attention_vjp(*arrays, backend=backend, **case.options)
    return _named(out, pullback(_random_like(out) if grad_out is None else grad_out))


def attend_to(case: Case, indices: Array, backend: Target | str, grad_out: Array | None = None) -> Results:
    """The same of `cauchy_attention`; the options of `case` play no part."""
    arrays = case.q, case.k, case.v, indices, case.gamma
    out, pullback = cauchy_attention_vjp(*arrays, backend=backend)
    return _named(out, pullback(_random_like(out) if grad_out is None else grad_out))


def _call(name: str, arrays: tuple[Any, ...], arguments: dict[str, Any], backend: Any, wide: bool = False) -> Any:
    target = _target(backend)
    with target.kind.precision(wide or _has_wide(*arrays, *arguments.values())):
        given = [_given(target, x) for x in arrays]
        named = {key: _given(target, value) for key, value in arguments.items()}
        results = getattr(zeta_ops, name)(*given, **named, backend=target.backend)
        if isinstance(results, tuple):
            return tuple(target.kind.numpy(x) for x in results)
        return target.kind.numpy(results)


def _differentiate(name: str, inputs: dict[str, Any], options: dict[str, Any], backend: Any) -> tuple[Array, Pullback]:
    target = _target(backend)
    if not target.kind.differentiates:
        given = {key: _given(target, x) for key, x in (inputs | options).items()}
        out, pull = getattr(zeta_ops, f"{name}_vjp")(**given, backend=target.backend)
        return target.kind.numpy(out), lambda grad_out: tuple(
            target.kind.numpy(x) for x in pull(target.kind.array(grad_out))
        )
    if is_number(inputs["gamma"]):  # its gradient is asked for
        inputs["gamma"] = np.asarray(inputs["gamma"], np.float64 if inputs["q"].dtype == np.float64 else np.float32)
    wide = _has_wide(*inputs.values())

    def function(*arrays: Any) -> Any:
        return getattr(zeta_ops, name)(**dict(zip(inputs, arrays, strict=True)), **given, backend=target.backend)

    with target.kind.precision(wide):
        given = {key: _given(target, value) for key, value in options.items()}
        out, pull = target.kind.differentiate(function, [target.kind.array(x) for x in inputs.values()])

    def pullback(grad_out: Array) -> tuple[Array, ...]:
        with target.kind.precision(wide):
            return tuple(target.kind.numpy(x) for x in pull(target.kind.array(grad_out)))

    return target.kind.numpy(out), pullback


def _target(backend: Target | str) -> Target:
    return Target(backend, NUMPY) if isinstance(backend, str) else backend


def _given(target: Target, value: Any) -> Any:
    return target.kind.array(value) if isinstance(value, np.ndarray) else value


def _has_wide(*values: Any) -> bool:
    return any(isinstance(x, np.ndarray) and x.dtype.itemsize == 8 for x in values)


def _named(out: Array, gradients: tuple[Array, ...]) -> Results:
    names = (f"gradient of {name}" for name in ("q", "k", "v", "gamma"))
    return {"out": out, **dict(zip(names, gradients, strict=True))}


def _random_like(out: Array) -> Array:
    return np.random.default_rng(0).standard_normal(out.shape).astype(out.dtype)
