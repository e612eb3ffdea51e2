"""What stands between a figure and its aim on a GPU, by the beginning of its name; `benchmarks/NOTES.md` says more."""

from __future__ import annotations

__all__ = ["limit_of"]

_LIMITS = {
    "faster dense / ZETA at": (
        "forward, the search: 0.30 of 0.53 ms, half of it the library's sort of 34 bits in five passes, and tiles that"
        " wait for rows of 128 bytes from the second cache (0.22); backward, float32 rows of upper levels that are"
        " written and read again, 0.34 of 1.7 ms"
    ),
    "ZETA / window of 256": (
        "the search is 0.30 of 0.53 ms: the sort's five passes (0.15), levels (0.06), ranges (0.06), encoding (0.02);"
        " attention alone takes half of what the window does"
    ),
    "faster dense, extrapolated": "as at 65 536 tokens, sort, levels and ranges are more than half of the time",
    "crossover": (
        "the host: it needs 0.16 to 0.28 ms for a forward pass and 0.77 to 1.08 with backward, depending on the"
        " machine, and dense attention takes 0.34 and 1.2 at 8 192 tokens"
    ),
    "peak extra memory": "entries of all levels, and float32 rows of the upper ones",
    "largest time(2N)": "at the keys, rows of upper levels and of grad_out no longer come from the second cache",
    "clustered / random": (
        "keys of a cluster share the leading bits of their codes: tiles have longer slices, and select less of them"
    ),
    "drifting / random": (
        "slices hold fifteen entries for each that is selected, and all of them are looked at; ranges walk through the"
        " skip index"
    ),
    "three curves of": (
        "choosing among some 264 entries of each query takes 1.1 ms and three searches 0.75, against 0.53 for all that"
        " one curve takes; attention over lists, 0.63, reads 186 rows for 16 queries instead of 81"
    ),
    "host time": (
        "the sort's call takes 50 us (14 launches of the library), five launches 20, allocations 15, look-ups the rest;"
        " the host is shared: runs of the same code took 154 to 390 us"
    ),
    "numba_cuda / cupy": (
        "no tensor cores; what is done once for an entry or a query is repeated by the eight threads of its team"
    ),
}


def limit_of(name: str, device: str) -> str | None:
    """Find what is in the way of a figure's aim; None where nothing is known to be."""
    if device != "cuda":
        return None
    return next((limit for beginning, limit in _LIMITS.items() if name.startswith(beginning)), None)
