"""Morton codes of points: the public functions."""

from __future__ import annotations

from typing import Any

from zeta_ops.arguments import check_code_array, check_curve, check_points, code_options
from zeta_ops.registry import adapter_of, array_kind

__all__ = ["morton_decode", "morton_encode"]

Array = Any


def morton_encode(
    x: Array,
    *,
    bits: int | None = None,
    bounds: tuple[float, float] | None = None,
    num_curves: int = 1,
    curve: int = 0,
    backend: str | None = None,
) -> Array:
    """Encode points to Morton codes: their places along a Z-order curve.

    Codes are the same bits on every backend and machine. They are monotone along each axis.

    Parameters
    ----------
    x : array (..., dk), float16, bfloat16, float32 or float64
        Points with dk = 1 to 8 coordinates; they are quantised in float32. NaN is as large as the largest.
    bits : int, optional
        Bits per coordinate, `dk * bits <= 64` and at most 27. Default: 24, 16, 10 and 8 for dk = 1 to 4,
        `32 // dk` above.
    bounds : (float, float), optional
        `(lo, hi)` divides that range into equal cells, for coordinates that are bounded by construction.
        None (default) is a log-linear scale on which every finite float has a place.
    num_curves : int
        Number of curves (1, 2 or 3) that the code is one of; several are shifted against each other.
    curve : int
        Which of them, from 0.
    backend : str, optional
        Name of a backend; None chooses the preferred one.

    Returns
    -------
    array (...), uint32 if `dk * bits <= 32`, else uint64

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    See Also
    --------
    morton_decode : the integer coordinates of a code.

    References
    ----------
    arXiv 2501.14577, section 3.2.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> x = np.array([[0.0, 0.0], [0.5, 0.25]], dtype=np.float32)
    >>> zeta_ops.morton_encode(x, bits=2, bounds=(0, 1))
    array([0, 9], dtype=uint32)
    """
    kind = array_kind({"x": x})
    bits, bounds, num_curves = code_options(check_points(x), bits, bounds, num_curves)
    curve = check_curve(curve, num_curves)
    return adapter_of(kind).morton_encode(
        x, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve, backend=backend
    )


def morton_decode(codes: Array, *, dims: int, bits: int | None = None, backend: str | None = None) -> Array:
    """Decode Morton codes to the quantised coordinates that they interleave.

    Parameters
    ----------
    codes : array (...), uint32 or uint64
        As `morton_encode` returns them.
    dims : int
        Number of coordinates, 1 to 8.
    bits : int, optional
        Bits per coordinate; the default is that of `morton_encode`.
    backend : str, optional
        Name of a backend; None chooses the preferred one.

    Returns
    -------
    array (..., dims), uint32
        The upper `bits` bits of each quantised (and, with several curves, shifted) coordinate.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> zeta_ops.morton_decode(np.array([9], dtype=np.uint32), dims=2, bits=2)
    array([[2, 1]], dtype=uint32)
    """
    kind = array_kind({"codes": codes})
    bits = check_code_array(codes, dims, bits)
    return adapter_of(kind).morton_decode(codes, dims=int(dims), bits=bits, backend=backend)
