"""The CUDA backend, in parts: kernels in CUDA C++ (`kernels/`), and what says how they are launched.

So far these compute selections: codes, sorted keys, dyadic levels, ranges, re-ranking, exact search. The table of
backends does not list them before they attend too; the tests run them on a CPU, compiled for the host.
"""

from zeta_ops.backends.cupy.availability import unavailable_reason

__all__ = ["unavailable_reason"]
