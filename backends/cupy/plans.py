"""What an operation launches, worked out once for all calls alike and repeated with the addresses of each.

The code that says which kernels follow one another runs once for each combination of shapes, options and layouts. It
gets stand-ins for addresses, and a runner that writes down what it is asked to do. From then on a call puts its own
addresses where those of the stand-ins are, in arguments that are all written but for the pointers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from operator import add
from struct import Struct
from typing import Any, NamedTuple

from zeta_ops.backends import ADDRESS_UNIT, DeviceArray
from zeta_ops.backends.cupy import calls
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import Runner
from zeta_ops.options import Shapes

__all__ = ["Arguments", "Plan", "PlannedLaunch", "PlannedSort", "record"]

_LAUNCHES: dict[str, Callable[..., None]] = {
    "select": calls.causal_topk,
    "search_forward": calls.attention_forward,
    "search_backward": calls.attention_backward,
    "given_forward": calls.cauchy_forward,
    "given_backward": calls.cauchy_backward,
}
# How many arrays of an operation come before residuals, and after them.
_AROUND_RESIDUALS = {"search_forward": (7, 0), "search_backward": (7, 4)}

_PIECE_BITS = 48  # stand-ins for addresses are so far apart that it shows which piece of memory a pointer points into

_FIRST_NUMBER = next(field[0] for field in Args._fields_ if field[1] is ctypes.c_int64)  # after all pointers
_POINTERS = Struct(f"{getattr(Args, _FIRST_NUMBER).offset // ctypes.sizeof(ctypes.c_void_p)}Q")

Place = tuple[int, int]  # which piece of memory, and the offset into it


class PlannedLaunch(NamedTuple):
    """A kernel to launch; `variant` is that of the values of `Args`."""

    kernel: str
    blocks: int
    threads: int
    variant: int


class PlannedSort(NamedTuple):
    """A sort of pairs: the places of its arrays, and what follows them."""

    places: tuple[Place, ...]
    rest: tuple[Any, ...]

    def run(self, addresses: Sequence[int], run: Runner) -> None:
        """Sort in pieces of memory at these addresses."""
        keys, values, sorted_keys, sorted_values = (addresses[piece] + offset for piece, offset in self.places)
        run.sort_pairs(keys, values, sorted_keys, sorted_values, *self.rest)


class _Recorder:
    """A runner that runs nothing: it writes down the steps of a call, each with what `args` hold at that time.

    Parameters
    ----------
    stand_ins : sequence of int
        For the address of each piece of memory.
    """

    def __init__(self, stand_ins: Sequence[int]) -> None:
        self._stand_ins = stand_ins
        self.steps: list[PlannedLaunch | PlannedSort] = []
        self.variants: dict[bytes, int] = {}

    def place(self, pointer: int) -> Place:
        """Find what a pointer points to."""
        piece = (pointer >> _PIECE_BITS) - 1
        return piece, pointer - self._stand_ins[piece]

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """See `Runner`."""
        variant = self.variants.setdefault(bytes(args), len(self.variants))
        self.steps.append(PlannedLaunch(kernel, blocks, threads, variant))

    def sort_pairs(self, keys: int, values: int, sorted_keys: int, sorted_values: int, *rest: Any) -> None:
        """See `Runner`."""
        pointers = keys, values, sorted_keys, sorted_values
        self.steps.append(PlannedSort(tuple(map(self.place, pointers)), rest))


class _Pointers:
    """The pointers of one `Args`: which of them are set, and to what; and which variants have them."""

    def __init__(self, pointers: bytes, recorder: _Recorder) -> None:
        found = _POINTERS.unpack(pointers)
        places = [recorder.place(pointer) for pointer in found if pointer]
        self._pieces, self._offsets = [piece for piece, _ in places], [offset for _, offset in places]
        self._pack_into = Struct("".join("Q" if pointer else "8x" for pointer in found)).pack_into
        self.variants: list[int] = []

    def write(self, memory: bytearray, addresses: Sequence[int]) -> None:
        """Let them point into pieces of memory at these addresses."""
        pointers = [*map(add, map(addresses.__getitem__, self._pieces), self._offsets)]
        for variant in self.variants:
            self._pack_into(memory, variant * ctypes.sizeof(Args), *pointers)


class Arguments:
    """Memory for the arguments of one call at a time.

    Attributes
    ----------
    variants : list of Args
        All that the steps of the call take.
    parameters : list of int
        The same as the driver takes them: for each the address of a list of one pointer.
    """

    def __init__(self, variants: Sequence[bytes]) -> None:
        self.memory = bytearray().join(variants)
        self.variants = [Args.from_buffer(self.memory, n * ctypes.sizeof(Args)) for n in range(len(variants))]
        self._pointers = (ctypes.c_void_p * len(variants))(*map(ctypes.addressof, self.variants))
        size = ctypes.sizeof(ctypes.c_void_p)
        self.parameters = [ctypes.addressof(self._pointers) + n * size for n in range(len(variants))]


class Plan:
    """The steps of all calls alike, in order."""

    def __init__(self, recorder: _Recorder) -> None:
        self.steps = recorder.steps
        self._variants = list(recorder.variants)
        layouts: dict[bytes, _Pointers] = {}
        for n, args in enumerate(self._variants):
            pointers = args[: _POINTERS.size]
            layouts.setdefault(pointers, _Pointers(pointers, recorder)).variants.append(n)
        self._layouts = [*layouts.values()]
        self._idle: list[Arguments] = []

    def take(self, addresses: Sequence[int]) -> Arguments:
        """Write the arguments of a call over pieces of memory at these addresses.

        They are the caller's alone until it gives them back: other threads may run the same plan at the same time.
        """
        try:
            arguments = self._idle.pop()
        except IndexError:
            arguments = Arguments(self._variants)
        for layout in self._layouts:
            layout.write(arguments.memory, addresses)
        return arguments

    def give_back(self, arguments: Arguments) -> None:
        """Let another call use the memory of arguments."""
        self._idle.append(arguments)

    def run(self, addresses: Sequence[int], run: Runner) -> None:
        """Execute the steps over pieces of memory at these addresses."""
        arguments = self.take(addresses)
        for step in self.steps:
            if isinstance(step, PlannedLaunch):
                kernel, blocks, threads, variant = step
                run.launch(kernel, blocks, threads, arguments.variants[variant])
            else:
                step.run(addresses, run)
        self.give_back(arguments)


def record(operation: str, shapes: Shapes, arrays: Sequence[DeviceArray | None]) -> Plan:
    """Find the steps of an operation; see `zeta_ops.backends.DeviceBackend.prepare`."""
    stand_ins = [
        (piece << _PIECE_BITS) + (0 if array is None else array.address % ADDRESS_UNIT)
        for piece, array in enumerate((*arrays, None), 1)
    ]
    *of_arrays, workspace = stand_ins
    moved: list[Any] = [
        array and array._replace(address=0 if 0 in array.shape else address)
        for array, address in zip(arrays, of_arrays, strict=True)
    ]
    if operation in _AROUND_RESIDUALS:
        before, after = _AROUND_RESIDUALS[operation]
        end = len(moved) - after
        moved[before:end] = [tuple(moved[before:end])]
    recorder = _Recorder(stand_ins)
    _LAUNCHES[operation](shapes, *moved, workspace=workspace, run=recorder)
    return Plan(recorder)
