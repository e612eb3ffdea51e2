"""Plain XLA: the operations as JAX functions, for devices that no kernel backend serves (TPU, Metal, any other).

JAX is to this backend what NumPy is to `numpy`: the library that computes, not a framework that is adapted. That is
why it stands here, beside the other backends, and not in the JAX adapter, which gives it what it gives every backend:
checks, canonical arrays, derivatives. It differs from `zeta_ops.backends.Backend` where JAX arrays do: they cannot be
written, so that its functions, `morton`, `selection.select`, and the four of `attention`, return what others write.

Selections are exactly those of the definition on every device, although XLA fuses multiplications with additions and
flushes subnormal numbers as it likes: codes, distances and ranks that decide a selection are computed in integers
(`distances`), and windows are found by counting (`wavelet`), which takes the same time wherever the keys lie.
"""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["unavailable_reason"]


def unavailable_reason() -> str | None:
    """Say that JAX is missing; it is not imported before somebody passes one of its arrays."""
    if find_spec("jax") is None:
        return "jax is not installed: pip install 'zeta-ops[jax]' (Python 3.11 or newer)"
    return None
