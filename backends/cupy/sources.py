"""The CUDA C++ sources, and for which configuration they are compiled."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from zeta_ops.options import Shapes

__all__ = [
    "GROUP",
    "KERNELS",
    "TILE_THREADS",
    "Configuration",
    "configuration_of",
    "has_tiles",
    "kernel_names",
    "source_of",
]

KERNELS = Path(__file__).parent / "kernels"

_C_TYPES = {"float16": "Half", "bfloat16": "Bfloat16", "float32": "float", "float64": "double"}
_MOST_LANE_COLUMNS = 8  # of a warp's lane; wider values take several passes
_WIDEST_TILE = 256
GROUP, TILE_THREADS = 64, 128  # entries, slots, queries or keys of a block on tensor cores, and its threads


@dataclass(frozen=True)
class Configuration:
    """What kernels are compiled for.

    Attributes
    ----------
    coordinate_dtype, value_dtype : str
    key_dim : int
    lane_columns : int
        Columns of values that a lane of a warp holds.
    tile_dim : int
        Columns of values on tensor cores; 0 where they cannot serve.
    """

    coordinate_dtype: str
    value_dtype: str
    key_dim: int
    lane_columns: int
    tile_dim: int

    @property
    def definitions(self) -> tuple[str, ...]:
        """Options of the compiler."""
        return (
            f"-DZETA_COORDINATE={_C_TYPES[self.coordinate_dtype]}",
            f"-DZETA_VALUE={_C_TYPES[self.value_dtype]}",
            f"-DZETA_DK={self.key_dim}",
            f"-DZETA_LANE_COLUMNS={self.lane_columns}",
            f"-DZETA_TILE_DIM={self.tile_dim}",
        )

    def of_file(self, name: str) -> Configuration:
        """Keep what a file depends on: selections do not depend on values."""
        included = _included(name)
        if "tensor.cuh" in included:
            return replace(self, lane_columns=1)
        if "values.cuh" in included:
            return replace(self, tile_dim=0)
        return replace(self, value_dtype="float32", lane_columns=1, tile_dim=0)

    def compiles(self, name: str) -> bool:
        """Whether a file belongs to this configuration."""
        return self.tile_dim > 0 or "tensor.cuh" not in _included(name)


def configuration_of(shapes: Shapes) -> Configuration:
    """Find the configuration of a problem, or of attention to given indices."""
    columns = min(-(-max(shapes.value_dim, 1) // 32), _MOST_LANE_COLUMNS)
    return Configuration(
        coordinate_dtype=shapes.coordinate_dtype,
        value_dtype=shapes.value_dtype,
        key_dim=shapes.key_dim,
        lane_columns=columns,
        tile_dim=shapes.value_dim if has_tiles(shapes) else 0,
    )


def has_tiles(shapes: Shapes) -> bool:
    """Whether tensor cores can serve: values of 16 bits, 16 to 256 columns in steps of 16, float32 coordinates."""
    narrow = shapes.value_dtype in ("float16", "bfloat16") and shapes.coordinate_dtype == "float32"
    return narrow and 0 < shapes.value_dim <= _WIDEST_TILE and shapes.value_dim % 16 == 0


@cache
def kernel_names() -> dict[str, str]:
    """Find the file of each kernel."""
    files = sorted(KERNELS.glob("*.cu"))
    return {name: path.name for path in files for name in re.findall(r"^ZETA_KERNEL\((\w+),", path.read_text(), re.M)}


def source_of(file: str) -> str:
    """Make the source that compiles one file. It changes with all of them: CuPy's cache ignores what is included."""
    return f'// {_digest()}\n#include "{file}"\n'


@cache
def _digest() -> str:
    text = b"".join(path.read_bytes() for path in sorted(KERNELS.iterdir()))
    return hashlib.sha256(text).hexdigest()


@cache
def _included(file: str) -> frozenset[str]:
    """Names of the headers that a file includes, at any depth."""
    direct = re.findall(r'^#include "(\w+\.cuh)"', (KERNELS / file).read_text(), re.M)
    return frozenset(direct).union(*(_included(name) for name in direct))
