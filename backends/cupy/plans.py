"""What an operation launches, worked out once for all calls alike and repeated with the addresses of each.

The code that says which kernels follow one another runs once for each combination of shapes, options and layouts. It
gets stand-ins for addresses, and a runner that writes down what it is asked to do. From then on a call finds its plan
and puts its own addresses where those of the stand-ins are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from struct import Struct
from typing import Any, NamedTuple

from zeta_ops.backends import STRIDED, DeviceArray
from zeta_ops.backends.cupy import calls
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner
from zeta_ops.options import Shapes

__all__ = ["launch"]

_LAUNCHES: dict[str, Callable[..., None]] = {
    "select": calls.causal_topk,
    "search_forward": calls.attention_forward,
    "search_backward": calls.attention_backward,
    "given_forward": calls.cauchy_forward,
    "given_backward": calls.cauchy_backward,
}
_MOST_PLANS = 1024

_PIECE_BITS = 48  # stand-ins for addresses are so far apart that it shows which piece of memory a pointer points into
_ALIGNMENT = 16  # all that the code which launches asks of an address is whether it is a multiple of this

_FIRST_NUMBER = next(field[0] for field in Args._fields_ if field[1] is ctypes.c_int64)  # after all pointers
_POINTERS = Struct(f"{getattr(Args, _FIRST_NUMBER).offset // ctypes.sizeof(ctypes.c_void_p)}Q")

Place = tuple[int, int]  # which piece of memory, and the offset into it


class _Launch(NamedTuple):
    kernel: str
    blocks: int
    threads: int
    variant: int  # of the values of `Args`


class _Sort(NamedTuple):
    places: tuple[Place, ...]
    rest: tuple[Any, ...]


class _Recorder:
    """A runner that runs nothing: it writes down the steps of a call, each with what `args` hold at that time.

    Parameters
    ----------
    stand_ins : sequence of int
        For the address of each piece of memory.
    """

    def __init__(self, stand_ins: Sequence[int]) -> None:
        self._stand_ins = stand_ins
        self.steps: list[_Launch | _Sort] = []
        self.variants: dict[bytes, int] = {}

    def place(self, pointer: int) -> Place:
        """Find what a pointer points to."""
        piece = (pointer >> _PIECE_BITS) - 1
        return piece, pointer - self._stand_ins[piece]

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """See `Runner`."""
        variant = self.variants.setdefault(bytes(args), len(self.variants))
        self.steps.append(_Launch(kernel, blocks, threads, variant))

    def sort_pairs(self, keys: int, values: int, sorted_keys: int, sorted_values: int, *rest: Any) -> None:
        """See `Runner`."""
        pointers = keys, values, sorted_keys, sorted_values
        self.steps.append(_Sort(tuple(map(self.place, pointers)), rest))


class _Pointers:
    """The pointers of one `Args`: which of them are set, and to what."""

    def __init__(self, pointers: bytes, recorder: _Recorder) -> None:
        found = _POINTERS.unpack(pointers)
        self._places = [recorder.place(pointer) for pointer in found if pointer]
        self._format = Struct("".join("Q" if pointer else "8x" for pointer in found))

    def at(self, addresses: Sequence[int]) -> bytes:
        """Let them point into pieces of memory at these addresses."""
        return self._format.pack(*[addresses[piece] + offset for piece, offset in self._places])


class _Plan:
    """The steps of all calls alike."""

    def __init__(self, recorder: _Recorder) -> None:
        self._steps = recorder.steps
        size = _POINTERS.size
        layouts: dict[bytes, int] = {}
        # Each variant of `Args` is one of few layouts of its pointers, and all that follows them.
        self._variants = [(layouts.setdefault(args[:size], len(layouts)), args[size:]) for args in recorder.variants]
        self._layouts = [_Pointers(pointers, recorder) for pointers in layouts]

    def run(self, addresses: Sequence[int], run: Runner) -> None:
        """Execute the steps over pieces of memory at these addresses."""
        pointers = [layout.at(addresses) for layout in self._layouts]
        variants = [Args.from_buffer_copy(pointers[layout] + rest) for layout, rest in self._variants]
        for step in self._steps:
            if isinstance(step, _Launch):
                kernel, blocks, threads, variant = step
                run.launch(kernel, blocks, threads, variants[variant])
            else:
                run.sort_pairs(*[addresses[piece] + offset for piece, offset in step.places], *step.rest)


_plans: dict[Any, _Plan] = {}


def launch(operation: str, shapes: Shapes, arrays: Sequence[Any], workspace: int, run: Runner, width: int = 0) -> None:
    """Launch an operation.

    Parameters
    ----------
    operation : str
        See `zeta_ops.backends.DeviceBackend.workspace_bytes`, as for `shapes` and `width`.
    arrays : sequence
        What the operation's function takes in `zeta_ops.backends.DeviceBackend`.
    workspace : int
        Its address.
    """
    flat: list[DeviceArray | None] = []
    for array in arrays:  # residuals stand in a tuple of their own
        flat.extend(array if type(array) is tuple else (array,))
    addresses = [0 if array is None else array.address for array in flat]
    strides = [array.strides for array in flat[: STRIDED[operation]] if array is not None]
    rests = reduce(or_, addresses) % _ALIGNMENT and tuple([address % _ALIGNMENT for address in addresses])
    key = operation, shapes, width, rests, *strides
    addresses.append(workspace)
    plan = _plans.get(key)
    if plan is None:
        plan = _record(operation, shapes, arrays, addresses)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = plan
    plan.run(addresses, run)


def _record(operation: str, shapes: Shapes, arrays: Sequence[Any], addresses: Sequence[int]) -> _Plan:
    stand_ins = [(piece << _PIECE_BITS) + address % _ALIGNMENT for piece, address in enumerate(addresses, 1)]
    *of_arrays, workspace = stand_ins
    unused = iter(of_arrays)

    def moved(array: Any) -> Any:
        if type(array) is tuple:
            return tuple(map(moved, array))
        address = next(unused)
        return array and array._replace(address=array.address and address)

    recorder = _Recorder(stand_ins)
    _LAUNCHES[operation](shapes, *map(moved, arrays), workspace=workspace, run=recorder)
    return _Plan(recorder)
