"""The gradient of gamma: 2 gamma times the sum over a head's queries, in one order. One block a head."""

from __future__ import annotations

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import kernel
from zeta_ops.backends.numba_cuda.constants import BATCH, Q_HEADS, Q_LEN

__all__ = ["PARTS", "gamma_bwd_kernel"]

PARTS = 1024  # of a sum, one a thread; the simulator is run with fewer threads


@kernel
def gamma_bwd_kernel(table, gamma, squares, grad_gamma):
    """Add up in parts, then add the parts."""
    parts = cuda.shared.array(PARTS, np.float64)
    head = cuda.blockIdx.x
    for part in range(cuda.threadIdx.x, PARTS, cuda.blockDim.x):
        total = 0.0
        for batch in range(table[BATCH]):
            row = (batch * table[Q_HEADS] + head) * table[Q_LEN]
            for i in range(part, table[Q_LEN], PARTS):
                total += squares[row + i]
        parts[part] = total
    cuda.syncthreads()
    half = PARTS // 2
    while half > 0:
        for part in range(cuda.threadIdx.x, half, cuda.blockDim.x):
            parts[part] += parts[part + half]
        cuda.syncthreads()
        half //= 2
    if cuda.threadIdx.x == 0:
        grad_gamma[head] = 2 * gamma[head] * parts[0]
