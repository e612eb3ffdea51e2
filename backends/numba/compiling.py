"""How the kernels of this backend are compiled.

All are cached on disk and run without the GIL. Indices into hot arrays are unsigned: Numba gives signed ones
Python's meaning of negative numbers, and the test for it keeps loops from being vectorised.
"""

from __future__ import annotations

from numba import njit

from zeta_ops.backends import scalars

__all__ = [
    "before_cut",
    "compiled",
    "compiled_fused",
    "compiled_reduction",
    "interleave",
    "level_length",
    "level_of",
    "quantise_linear",
    "quantise_loglinear",
]

# IEEE to the letter: codes and distances decide which keys are selected.
compiled = njit(cache=True, nogil=True, error_model="numpy")
# Products may be fused with the additions that follow them.
compiled_fused = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
# Sums may be taken in several parts as well. Only for functions that store nothing in the loop that sums: before a
# loop that loads and stores, the compiler tests how near to each other the arrays lie and runs another loop if they
# are close, and then the bits of a sum would depend on addresses.
compiled_reduction = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})

before_cut = compiled(scalars.before_cut)
interleave = compiled(scalars.interleave)
level_length = compiled(scalars.level_length)
level_of = compiled(scalars.level_of)
quantise_linear = compiled(scalars.quantise_linear)
quantise_loglinear = compiled(scalars.quantise_loglinear)
