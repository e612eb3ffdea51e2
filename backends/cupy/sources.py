"""The CUDA C++ sources, and for which configuration they are compiled."""

from __future__ import annotations

from pathlib import Path

__all__ = ["KERNELS", "all_kernels", "definitions"]

KERNELS = Path(__file__).parent / "kernels"

_C_TYPES = {"float32": "float", "float64": "double"}


def all_kernels() -> str:
    """Source that includes every kernel."""
    return "".join(f'#include "{path.name}"\n' for path in sorted(KERNELS.glob("*.cu")))


def definitions(coordinate_dtype: str, key_dim: int, num_curves: int) -> tuple[str, ...]:
    """Compiler options that say for which configuration kernels are compiled."""
    coordinate = _C_TYPES[coordinate_dtype]
    return f"-DZETA_COORDINATE={coordinate}", f"-DZETA_DK={key_dim}", f"-DZETA_CURVES={num_curves}"
