"""Whether the CUDA backend can run here."""

from __future__ import annotations


def unavailable_reason() -> str | None:
    """Say why not, and what to install."""
    return None
