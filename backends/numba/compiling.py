"""How the kernels of this backend are compiled.

All are cached on disk and run without the GIL. Indices into hot arrays are unsigned: Numba gives signed ones
Python's meaning of negative numbers, and the test for it keeps loops from being vectorised.
"""

from __future__ import annotations

from numba import njit

from zeta_ops.backends.numba import scalars

__all__ = [
    "before_cut",
    "compiled",
    "compiled_for_sums",
    "interleave",
    "level_length",
    "level_of",
    "quantise_linear",
    "quantise_loglinear",
]

# IEEE to the letter: codes and distances decide which keys are selected.
compiled = njit(cache=True, nogil=True, error_model="numpy")
# Sums of values may use fused multiply-adds and several partial sums, always the same for the same machine.
compiled_for_sums = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})

before_cut = compiled(scalars.before_cut)
interleave = compiled(scalars.interleave)
level_length = compiled(scalars.level_length)
level_of = compiled(scalars.level_of)
quantise_linear = compiled(scalars.quantise_linear)
quantise_loglinear = compiled(scalars.quantise_loglinear)
