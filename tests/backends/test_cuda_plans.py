"""A call that repeats a plan launches what it would launch without one."""

from __future__ import annotations

import ctypes
import random
from math import prod
from types import SimpleNamespace
from typing import Any

import pytest

from zeta_ops.adapters.operations import result_specs
from zeta_ops.arguments import attention_shapes, search_problem
from zeta_ops.backends import ADDRESS_UNIT, STRIDED, ArraySpec, DeviceArray
from zeta_ops.backends.cupy import calls, plans, runner
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.sources import kernel_names
from zeta_ops.options import Problem, Shapes

DEFAULTS = {
    "top_k": 8,
    "window": None,
    "num_curves": 1,
    "search": "zorder",
    "causal": True,
    "chunk_size": 1,
    "include_self": True,
    "local_window": 0,
    "bits": None,
    "bounds": None,
    "q_offset": None,
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_curves": 3, "window": 16, "bounds": (-1.0, 1.0)},
    {"history_mean": True, "local_window": 4},
    {"search": "exact"},
    {"bits": 21, "causal": False},
]
WIDTH = 5
DEVICE, STREAM = 1, 7


class Listed:
    """A runner that lists what it is asked to do."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        self.steps.append((kernel, blocks, threads, bytes(args)))

    def sort_pairs(self, *arguments: int) -> None:
        self.steps.append(("pairs", *arguments))


class _Like:
    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)


def problem_of(length: int, options: dict[str, Any], dtype: str = "bfloat16") -> Problem:
    q, k, v = (_Like((2, h, length, d), t) for h, d, t in ((4, 3, "float32"), (2, 3, "float32"), (2, 64, dtype)))
    return search_problem(attention_shapes(q, k, v, 1.0), None, **{**DEFAULTS, **options})


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


class Memory:
    """Addresses for the arrays of a call, never the same twice."""

    def __init__(self, seed: int, step: int = 16, spread: int = 1) -> None:
        self.random, self.step, self.spread = random.Random(seed), step, spread

    def address(self) -> int:
        return self.step * self.random.randrange(2**20, 2**40)

    def array(self, spec: ArraySpec, strided: bool = False) -> DeviceArray:
        strides = contiguous(spec.shape)
        if strided:
            strides = (*(self.spread * stride for stride in strides[:-1]), 1)
        return DeviceArray(self.address() if prod(spec.shape) else 0, spec.shape, strides, spec.dtype)


def arrays_of(operation: str, shapes: Shapes, memory: Memory) -> list[Any]:
    s = shapes
    q, k = ArraySpec(s.q_shape, s.coordinate_dtype), ArraySpec(s.k_shape, s.coordinate_dtype)
    v, out = ArraySpec(s.v_shape, s.value_dtype), ArraySpec(s.out_shape, s.value_dtype)
    gamma, normalizer = ArraySpec((s.q_heads,), s.coordinate_dtype), ArraySpec(s.normalizer_shape, s.sum_dtype)
    given = ArraySpec((*s.normalizer_shape, WIDTH), "int32")
    specs = {
        "select": [q, k],
        "search_forward": [q, k, v, gamma],
        "search_backward": [out, q, k, v, gamma, normalizer],
        "given_forward": [q, k, v, given, gamma],
        "given_backward": [out, q, k, v, given, gamma, normalizer],
    }[operation]
    arrays: list[Any] = [memory.array(spec, n < STRIDED[operation]) for n, spec in enumerate(specs)]
    if not operation.startswith("given"):
        arrays.insert({"select": 2, "search_forward": 4, "search_backward": 5}[operation], None)
    results = [memory.array(spec) for spec in result_specs(calls, operation, s)]
    if operation == "search_forward":
        return [*arrays, *results[:2], tuple(results[2:])]
    if operation == "search_backward":
        assert isinstance(s, Problem)
        return [*arrays, tuple(map(memory.array, calls.residual_specs(s))), *results]
    return [*arrays, *results]


LAUNCHES = {
    "select": calls.causal_topk,
    "search_forward": calls.attention_forward,
    "search_backward": calls.attention_backward,
    "given_forward": calls.cauchy_forward,
    "given_backward": calls.cauchy_backward,
}


def assert_same_launches(operation: str, shapes: Shapes, memory: Memory) -> list[tuple[Any, ...]]:
    """Repeat a plan over memory here and there, as long as its addresses are aligned alike."""
    known: dict[Any, plans.Plan] = {}
    for _ in range(3):
        arrays, workspace = arrays_of(operation, shapes, memory), 256 * memory.address()
        without, repeated = Listed(), Listed()
        LAUNCHES[operation](shapes, *arrays, workspace=workspace, run=without)
        flat: list[Any] = []
        for array in arrays:
            flat.extend(array if type(array) is tuple else [array])
        layouts = tuple(x and x._replace(address=x.address % ADDRESS_UNIT) for x in flat)
        if layouts not in known:
            known[layouts] = plans.record(operation, shapes, layouts)
        known[layouts].run([*(0 if x is None else x.address for x in flat), workspace], repeated)
        assert repeated.steps == without.steps
    return without.steps


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("operation", LAUNCHES)
def test_launches_are_those_without_a_plan(operation: str, options: dict[str, Any]) -> None:
    for length in (40, 0, 1):
        for dtype in ("bfloat16", "float32"):
            problem = problem_of(length, options, dtype)
            for seed in range(3):
                assert_same_launches(operation, problem, Memory(seed))


def test_layouts_have_plans_of_their_own() -> None:
    """Values whose rows are not aligned are not for tensor cores; strides are the call's own."""
    problem = problem_of(40, {})
    kernels = []
    for memory in (Memory(0), Memory(1, step=2), Memory(2, spread=8), Memory(3, step=2, spread=8), Memory(4)):
        steps = assert_same_launches("search_forward", problem, memory)
        kernels.append(steps[-1][0])
    assert kernels == [f"{name}_fwd_kernel" for name in ("tile", "attend", "tile", "attend", "tile")]


def test_calls_at_the_same_time_have_arguments_of_their_own() -> None:
    problem, memory = problem_of(40, {}), Memory(0)
    flat: list[Any] = [*arrays_of("select", problem, memory)]
    plan = plans.record("select", problem, flat)
    addresses = [[memory.address() for _ in (*flat, None)] for _ in range(2)]
    taken = [plan.take(of_call) for of_call in addresses]
    assert taken[0].memory != taken[1].memory
    assert len({id(arguments) for arguments in taken}) == len({x for args in taken for x in args.parameters[:1]}) == 2
    plan.give_back(taken[0])
    assert plan.take(addresses[1]) is taken[0]
    assert taken[0].memory == taken[1].memory


def test_the_driver_gets_what_a_runner_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels go to the driver by their handles, with the address of a list that points to their argument."""
    launched: list[tuple[Any, ...]] = []
    names = [*kernel_names()]

    def launch(function: int, blocks: int, *others: int) -> None:
        y, z, threads, *rest, stream, parameters, extra = others
        assert (y, z, *rest, stream, extra) == (1, 1, 1, 1, 0, STREAM, 0)
        args = ctypes.c_void_p.from_address(parameters).value
        assert args is not None
        launched.append((names[function], blocks, threads, ctypes.string_at(args, ctypes.sizeof(Args))))

    entered: list[int] = []
    monkeypatch.setattr(runner, "_launcher", lambda: launch)
    monkeypatch.setattr(runner, "_runtime", lambda: SimpleNamespace(setDevice=entered.append))
    monkeypatch.setattr(runner, "_functions", lambda device, _: {name: n for n, name in enumerate(names)})
    monkeypatch.setattr(runner, "sort_bytes", lambda *_: 0)
    runner._needs.cache_clear()
    # All but device, stream and the memory to sort in.
    monkeypatch.setattr(runner, "sort_pairs", lambda *a: launched.append(("pairs", *a[4:])))
    for operation in ("search_forward", "search_backward"):
        problem, memory = problem_of(40, {"top_k": 4, "history_mean": True}), Memory(0)
        arrays = arrays_of(operation, problem, memory)
        flat = [x for array in arrays for x in (array if type(array) is tuple else [array])]
        plan = plans.record(operation, problem, flat)
        prepared = runner.Prepared(plan, operation, problem, 0, DEVICE)
        for _ in range(2):
            expected, addresses = Listed(), [memory.address() for _ in (*flat, None)]
            plan.run(addresses, expected)
            prepared(addresses, STREAM)
            assert launched == expected.steps
            del launched[:]
            seen = Listed()
            with runner.observed(lambda _, seen=seen: seen):  # type: ignore[misc]
                prepared(addresses, STREAM)
            assert seen.steps == expected.steps
            assert launched == []
    assert set(entered) == {DEVICE}
    runner._needs.cache_clear()
