"""Compiled CPU kernels."""


def unavailable_reason() -> str:
    """Say why the backend cannot run here."""
    return "its kernels are not written yet"
