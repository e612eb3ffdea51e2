"""Adaptive Cauchy-Softmax over given keys, with the history token; forward and backward of one row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zeta_ops.reference.selection import squared_distances

__all__ = ["attend_backward", "attend_forward"]

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def history_token(k: Floats, v: Floats, count: int) -> tuple[Floats, Floats]:
    """Means of the first `count` keys and values, `(1, dk)` and `(1, dv)`."""
    return k[:count].mean(axis=0, keepdims=True), v[:count].mean(axis=0, keepdims=True)


def attend_forward(
    q: Floats, k: Floats, v: Floats, gamma: float, attended: Sequence[Ints], history: Ints | None
) -> tuple[Floats, Floats]:
    """Compute outputs and normalizers of one row.

    With `u_ij = 1 / (|q_i - k_j|^2 + gamma^2)` and `Z_i = sum_j u_ij`, `out_i = sum_j u_ij v_j / Z_i`.

    Parameters
    ----------
    q : ndarray (Nq, dk), k : ndarray (Nk, dk), v : ndarray (Nk, dv)
        All in the dtype of the sums.
    gamma : float
    attended : sequence of ndarray
        For each query the positions of the keys it attends to.
    history : ndarray (Nq,) or None
        For each query the number of keys in the mean that is its history token; 0 is no token.

    Returns
    -------
    out : ndarray (Nq, dv)
        A query gets 0 if it attends to nothing, or to keys so far away that all weights underflow to 0.
    normalizer : ndarray (Nq,)
    """
    out = np.zeros((len(q), v.shape[1]), dtype=v.dtype)
    normalizer = np.zeros(len(q), dtype=v.dtype)
    for i in range(len(q)):
        keys, values = _terms(k, v, attended[i], history, i)
        u = 1 / (squared_distances(q[i], keys) + gamma * gamma)
        normalizer[i] = u.sum()
        if normalizer[i] != 0:
            out[i] = u @ values / normalizer[i]
    return out, normalizer


def attend_backward(
    grad_out: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    gamma: float,
    attended: Sequence[Ints],
    history: Ints | None,
) -> tuple[Floats, Floats, Floats, float]:
    """Compute the gradients of one row's `attend_forward`, given `grad_out (Nq, dv)`.

    With `g = dL/d out_i`, `D = g . out_i` and `p_ij = u_ij / Z_i`:
    `dv_j += p_ij g`; `e_ij = -u_ij^2 (g . v_j - D) / Z_i`; `dq_i += 2 e_ij (q_i - k_j)`;
    `dk_j -= 2 e_ij (q_i - k_j)`; `dgamma += 2 gamma e_ij`.
    What the history token receives goes in equal parts to every key of its mean.
    The selection is piecewise constant and has no gradient.

    Returns
    -------
    grad_q, grad_k, grad_v : ndarray
    grad_gamma : float
    """
    grad_q, grad_k, grad_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    grad_gamma = 0.0
    for i in range(len(q)):
        keys, values = _terms(k, v, attended[i], history, i)
        u = 1 / (squared_distances(q[i], keys) + gamma * gamma)
        z = u.sum()
        if z == 0:  # the output is 0 whatever the inputs are
            continue
        g = grad_out[i]
        p = u / z
        e = -u * u * (values @ g - g @ (p @ values)) / z
        pull = 2 * e[:, None] * (q[i] - keys)
        grad_q[i] = pull.sum(axis=0)
        grad_gamma += float(2 * gamma * e.sum())
        for term, j in enumerate(attended[i]):
            grad_k[j] -= pull[term]
            grad_v[j] += p[term] * g
        if history is not None and history[i] > 0:
            grad_k[: history[i]] -= pull[-1] / history[i]
            grad_v[: history[i]] += p[-1] * g / history[i]
    return grad_q, grad_k, grad_v, grad_gamma


def _terms(k: Floats, v: Floats, attended: Ints, history: Ints | None, i: int) -> tuple[Floats, Floats]:
    """Gather keys and values that query i attends to, its history token last."""
    keys, values = k[attended], v[attended]
    if history is None or history[i] == 0:
        return keys, values
    mean_key, mean_value = history_token(k, v, int(history[i]))
    return np.concatenate([keys, mean_key]), np.concatenate([values, mean_value])
