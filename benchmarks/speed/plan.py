"""What is measured: lengths, kinds of keys, options and peers, for a GPU and for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CPU_DENSE",
    "CUDNN",
    "CUT",
    "DENSE",
    "DIM",
    "DIRECTIONS",
    "FLASH",
    "FLEX",
    "GAMMA",
    "KEY_DIM",
    "NUMBA_CUDA",
    "PLAIN",
    "THREE_CURVES",
    "VARIANTS",
    "ZETA",
    "Group",
    "Plan",
    "plan_for",
]

KEY_DIM, DIM, GAMMA = 3, 64, 0.5
DIRECTIONS = ("forward", "forward+backward")

PLAIN, CUT, THREE_CURVES = "one curve of 32", "one curve of 64, cut to 32", "three curves of 64"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"top_k": 32},
    "one curve of 64": {"top_k": 64},
    CUT: {"top_k": 32, "window": 64},
    "three curves of 32": {"top_k": 32, "num_curves": 3},
    THREE_CURVES: {"top_k": 32, "window": 64, "num_curves": 3},
    "history token": {"top_k": 32, "history_mean": True},
    "local window of 32": {"top_k": 32, "local_window": 32},
}

ZETA = "ZETA"
FLASH, CUDNN, CPU_DENSE = "dense, flash", "dense, cuDNN", "dense, CPU"
DENSE = (FLASH, CUDNN, CPU_DENSE)
FLEX = "window of 256, FlexAttention"
NUMBA_CUDA = "ZETA, numba_cuda"  # the backend in Python, on random keys with plain options


@dataclass(frozen=True)
class Group:
    """What takes turns at one length.

    Attributes
    ----------
    ours : tuple of (str, str)
        Kinds of keys and names of variants.
    peers : tuple of str
    """

    length: int
    heads: int
    ours: tuple[tuple[str, str], ...] = (("random", PLAIN),)
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that one run measures.

    Attributes
    ----------
    backend : str
        Ours.
    statistic : str
        "median" of the rounds or the "best" of them, which is what a CPU shared with others can tell.
    main : int
        The length at which kinds of keys and options are compared.
    """

    backend: str
    value_dtype: str
    statistic: str
    rounds: int
    dense_rounds: int
    main: int
    groups: tuple[Group, ...]
    host_length: int | None = None
    steps: tuple[tuple[str, str], ...] = field(default=())

    @property
    def ours(self) -> tuple[tuple[str, str], ...]:
        """All kinds and variants, each once."""
        return tuple(dict.fromkeys(case for group in self.groups for case in group.ours))


def _doublings(first: int, last: int) -> list[int]:
    lengths = [first]
    while 2 * lengths[-1] <= last:
        lengths.append(2 * lengths[-1])
    return lengths


_KINDS = (("random", PLAIN), ("clustered", PLAIN), ("drifting", PLAIN))
_OPTIONS = tuple(("random", name) for name in VARIANTS if name != PLAIN)
_HARDEST = (("clustered", THREE_CURVES), ("drifting", THREE_CURVES))


def _cuda_plan(quick: bool) -> Plan:
    lengths = [1024, 4096, 8192, 65536, 131072] if quick else _doublings(1024, 262144)
    longest_dense = 65536 if quick else 131072
    flex_lengths = {65536} if quick else {8192, 65536, 262144}
    groups = []
    for length in lengths:
        peers: tuple[str, ...] = (FLASH, CUDNN) if length <= longest_dense else ()
        ours = (*_KINDS, *_OPTIONS, *_HARDEST) if length == 65536 else (("random", PLAIN),)
        if length == 8192 and not quick:
            ours = (*_KINDS, ("random", THREE_CURVES))
        peers += ((FLEX,) if length in flex_lengths else ()) + ((NUMBA_CUDA,) if length == 65536 else ())
        groups.append(Group(length, 16, ours, peers))
    few_heads = _doublings(524288 if quick else 262144, 1048576)  # growth is compared at equal heads
    groups += [Group(length, 4, _KINDS if length == 1048576 else _KINDS[:1]) for length in few_heads]
    return Plan(
        backend="cupy", value_dtype="bfloat16", statistic="median", rounds=20, dense_rounds=20, main=65536,
        groups=tuple(groups), host_length=1024,
        steps=(("random", PLAIN), ("drifting", PLAIN), ("random", THREE_CURVES), ("random", "history token")),
    )  # fmt: skip


def _cpu_plan(quick: bool) -> Plan:
    main, longest = 16384, 65536 if quick else 262144
    ours = (*_KINDS, ("looking ahead", PLAIN), ("behind a wall", PLAIN), *_OPTIONS)
    first = Group(main, 8, ours, (CPU_DENSE,))
    longer = [Group(length, 8) for length in _doublings(2 * main, longest)]
    rounds, dense_rounds = (3, 1) if quick else (5, 3)
    return Plan(
        backend="numba", value_dtype="float32", statistic="best", rounds=rounds, dense_rounds=dense_rounds, main=main,
        groups=(first, *longer),
    )  # fmt: skip


def plan_for(device: str, quick: bool) -> Plan:
    """Choose what a run on "cuda" or "cpu" measures; a quick one takes fewer and shorter rows."""
    return _cuda_plan(quick) if device == "cuda" else _cpu_plan(quick)
