"""The text, and the points that its suffixes are."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_BYTES", "OPTIONS", "overlapping_blocks", "read_text", "standard_library", "suffix_points"]

MIN_BYTES = 1024  # a shorter text has too little to predict from

OPTIONS: dict[str, Any] = {"bounds": (0, 1), "bits": 16, "include_self": False}
"""Options of attention that go with `suffix_points`: a byte does not see itself, and 16 bits tell all apart."""


def standard_library(num_bytes: int) -> bytes:
    """Concatenate the running Python's own sources, in order of their paths, up to `num_bytes`."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
    parts, size = [], 0
    for path in sorted(root.rglob("*.py")):
        if size >= num_bytes:
            break
        if not left_out.intersection(path.relative_to(root).parts):
            parts.append(path.read_bytes())
            size += len(parts[-1])
    return b"".join(parts)[:num_bytes]


def read_text(path: Path | None, num_bytes: int) -> npt.NDArray[np.uint8]:
    """Read the first `num_bytes` of a file, or of the standard library if there is none.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the text is shorter than `MIN_BYTES`.
    """
    if path is None:
        text = standard_library(num_bytes)
    else:
        with path.open("rb") as file:
            text = file.read(num_bytes)
    if len(text) < MIN_BYTES:
        source = path or "the standard library"
        raise ValueError(f"text must have at least {MIN_BYTES} bytes; got {len(text)} from {source}")
    return np.frombuffer(text, np.uint8)


def overlapping_blocks(text: npt.NDArray[np.uint8], context: int, scored: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Cut `text (n,)` into blocks of one context whose ends, one after another, are its last `scored` bytes.

    Returns
    -------
    blocks : ndarray (batch, context)
        Each begins half a context after the one before it; the whole text is one block.
    end : int
        How many bytes at the end of each block are to be scored: half the context, or `scored` of the whole text.
    """
    end = scored if context == len(text) else context // 2
    first = len(text) - scored + end - context
    return np.lib.stride_tricks.sliding_window_view(text, context)[first::end].copy(), end


def suffix_points(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Place the six bytes before each position of `text (..., n)` at a point `(..., n, 3)` in the unit cube.

    Coordinate c is the 16-bit number whose upper byte is byte -(c + 1) and whose lower byte is byte -(c + 4),
    divided by 65 536. So equal suffixes are equal points, and the Morton code orders by the last byte's leading
    bits first. Bytes before the start are 0.
    """
    length = text.shape[-1]
    padded = np.concatenate([np.zeros((*text.shape[:-1], 6), np.uint8), text], axis=-1).astype(np.float32)
    before = [padded[..., 6 - back : 6 - back + length] for back in range(1, 7)]
    cell = np.float32(2**-16)  # NumPy 1 would divide by the integer 65 536 in float64
    return np.stack([(before[c] * 256 + before[c + 3]) * cell for c in range(3)], axis=-1)
