"""What stands between a figure and its aim on a GPU, by the beginning of its name; `benchmarks/NOTES.md` says more."""

from __future__ import annotations

__all__ = ["limit_of"]

_LIMITS = {
    "faster dense / ZETA at": (
        "forward, tiles that wait for rows of 128 bytes from the second cache, 0.22 ms, and as long for the search;"
        " backward, float32 rows of upper levels that are written and read again, 0.34 ms"
    ),
    "ZETA / window of 256": (
        "half of the time is the search: sort, levels, ranges, encoding; attention alone takes half of what the window"
        " does"
    ),
    "faster dense, extrapolated": "as at 65 536 tokens, sort, levels and ranges are half of the time",
    "crossover": (
        "the host, and at the least lengths what it takes to launch one kernel after another; dense attention takes"
        " 0.14 and 0.5 ms at 4 096 tokens"
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
        "choosing among the entries of three ranges takes nearly as long as all that one curve takes, and attention"
        " over lists, which names 186 keys for 16 queries instead of 81 and finds them by hashing, longer"
    ),
    "host time": (
        "launches and allocations, which take 3 to 10 us each depending on the machine, and checks and look-ups"
        " in Python; the host is shared: runs of the same code differ by half"
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
