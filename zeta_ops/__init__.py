"""ZETA attention: causal top-k attention found along Z-order curves.

Each query attends to the few keys that are nearest to it. They are found by sorting Morton codes of
low-dimensional keys and looking at a window of the sorted order, so the cost is O(N log N).
Source: *ZETA: Leveraging Z-order Curves for Efficient Top-k Attention*, ICLR 2025, arXiv 2501.14577.

The public names load on first use (PEP 562): importing this package loads no other package.
"""

from __future__ import annotations

import os.path
from importlib import import_module

TYPE_CHECKING = False  # type checkers read it as True; importing `typing` for it would take longer than the rest
if TYPE_CHECKING:
    from zeta_ops.attention import (
        cauchy_attention,
        cauchy_attention_vjp,
        zeta_attention,
        zeta_attention_vjp,
    )
    from zeta_ops.morton import morton_decode, morton_encode
    from zeta_ops.registry import available_backends
    from zeta_ops.selection import SelectionRecall, causal_topk, selection_recall

__version__ = "0.1.0"

__all__ = [
    "SelectionRecall",
    "available_backends",
    "cauchy_attention",
    "cauchy_attention_vjp",
    "causal_topk",
    "morton_decode",
    "morton_encode",
    "selection_recall",
    "zeta_attention",
    "zeta_attention_vjp",
]

_MODULE_OF = {
    "SelectionRecall": "zeta_ops.selection",
    "available_backends": "zeta_ops.registry",
    "causal_topk": "zeta_ops.selection",
    "cauchy_attention": "zeta_ops.attention",
    "cauchy_attention_vjp": "zeta_ops.attention",
    "morton_decode": "zeta_ops.morton",
    "morton_encode": "zeta_ops.morton",
    "selection_recall": "zeta_ops.selection",
    "zeta_attention": "zeta_ops.attention",
    "zeta_attention_vjp": "zeta_ops.attention",
}

# In a checkout `backends` and `adapters` lie beside this folder. The links inside it lead there; where a
# checkout was made without symbolic links, searching the parent folder finds them as well.
_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "backends")):
    __path__.append(os.path.dirname(_HERE))


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)  # so that this is asked only once
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
