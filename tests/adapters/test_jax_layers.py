"""The JAX layer: equal to the PyTorch layer on the same parameters, and everything that JAX does to a function."""

from __future__ import annotations

import doctest
import inspect
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checks import assert_all_close, assert_close, assert_same_bits
from layers import BAD_INPUTS, BAD_OPTIONS, BORDERS, DIM, LAYERS, LENGTHS, layer_input

import zeta_ops
from zeta_ops.adapters.layers import option_names

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy
from zeta_ops.adapters.jax import layers  # noqa: E402

every_layer = pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
SMALL: dict[str, Any] = {"num_heads": 2, "top_k": 4}


def make(options: dict[str, Any]) -> tuple[layers.ZetaAttention, dict[str, Any]]:
    layer = layers.ZetaAttention(DIM, **options)
    return layer, layer.init(jax.random.key(0))


def borders(*places: int) -> Any:
    return jnp.array(places, jnp.int32)


def loss(layer: layers.ZetaAttention, params: Any, x: Any, **given: Any) -> Any:
    return (layer.apply(params, x, **given) ** 2).sum()


def arrays(params: Any) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in params.items()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, "plain") for name in LAYERS), ("defaults", "packed"), ("defaults", "padded"), ("encoder", "padded")],
)
def test_equals_torch_on_the_same_parameters(name: str, given: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from zeta_ops.adapters.torch.layers import ZetaAttention, load_state_arrays, state_arrays

    layer, params = make(LAYERS[name])
    twin = ZetaAttention(DIM, **LAYERS[name])
    load_state_arrays(twin, arrays(params))
    x, extra = layer_input(4, 11), {}
    if given == "packed":
        x, extra = layer_input(1), {"cu_seqlens": np.array(BORDERS, np.int32)}
    if given == "padded":
        extra = {"lengths": np.array(LENGTHS, np.int32)}
    expected = twin(torch.from_numpy(x), **{name: torch.from_numpy(value) for name, value in extra.items()})
    extra = {name: jnp.asarray(value) for name, value in extra.items()}
    assert_close(np.asarray(layer.apply(params, jnp.asarray(x), **extra)), expected.detach().numpy(), 1e-5)
    expected.square().sum().backward()
    gradients = jax.grad(lambda p: loss(layer, p, jnp.asarray(x), **extra))(params)
    assert_all_close(
        arrays(gradients), {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}, 1e-4
    )
    for name, value in state_arrays(twin).items():
        assert_same_bits(value, np.asarray(params[name]), name)


@every_layer
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    layer, params = make(options)
    assert {name: value.shape for name, value in params.items()} == {
        name: spec.shape for name, spec in layer.parameters().items()
    }
    gradients = jax.jit(jax.grad(lambda p: loss(layer, p, jnp.asarray(layer_input()))))(params)
    for name, gradient in arrays(gradients).items():
        assert np.isfinite(gradient).all() and (gradient != 0).any(), name


def test_the_future_is_not_seen() -> None:
    layer, params = make(SMALL)
    x, changed = layer_input(), layer_input()
    changed[:, 12:] = 3 * layer_input(2, 8, 1)
    a, b = (np.asarray(layer.apply(params, jnp.asarray(y))) for y in (x, changed))
    assert_close(a[:, :12], b[:, :12], 1e-6)
    assert np.abs(a[:, 12:] - b[:, 12:]).max() > 0.01


@pytest.mark.parametrize("name", ["defaults", "encoder"])
def test_packed_sequences_equal_separate_ones(name: str) -> None:
    layer, params = make(LAYERS[name])
    x = jnp.asarray(layer_input(1))
    packed = layer.apply(params, x, cu_seqlens=borders(*BORDERS))
    for start, end in pairwise(BORDERS):
        separate = layer.apply(params, x[:, start:end])
        assert_close(np.asarray(packed[:, start:end]), np.asarray(separate), 1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
def test_padding_has_no_influence(causal: bool) -> None:
    layer, params = make({**SMALL, "causal": causal})
    padded = layer_input(len(LENGTHS), 11)
    for item, n in enumerate(LENGTHS):
        padded[item, n:] = np.nan
    x, lengths = jnp.asarray(padded), jnp.array(LENGTHS)
    out = np.asarray(jax.jit(layer.apply)(params, x, lengths=lengths))
    for item, n in enumerate(LENGTHS):
        assert_close(out[item, :n], np.asarray(layer.apply(params, x[item : item + 1, :n]))[0], 1e-5)
        assert (out[item, n:] == 0).all()

    def separately(p: Any) -> Any:
        return sum(loss(layer, p, x[item : item + 1, :n]) for item, n in enumerate(LENGTHS))

    together = jax.grad(lambda p: loss(layer, p, x, lengths=lengths))(params)
    assert_all_close(arrays(together), arrays(jax.grad(separately)(params)), 1e-5)


def test_jit_with_the_layer_as_static_argument() -> None:
    layer, params = make(SMALL)
    x = jnp.asarray(layer_input())
    compiled = jax.jit(loss, static_argnums=0)
    assert_close(np.asarray(compiled(layer, params, x)), np.asarray(loss(layer, params, x)), 1e-5)
    compiled(layers.ZetaAttention(DIM, **SMALL), params, x)
    assert compiled._cache_size() == 1
    assert hash(layers.ZetaAttention(DIM, bounds=[-1, 1])) == hash(layers.ZetaAttention(DIM, bounds=(-1, 1)))


def test_vmap_over_inputs_and_over_layers() -> None:
    layer, params = make(SMALL)
    x = jnp.asarray(layer_input(3))
    gradient = jax.grad(lambda p, x: loss(layer, p, x[None]))
    each = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(params, x)
    assert_all_close({n: g.sum(0) for n, g in arrays(each).items()}, arrays(jax.grad(loss, 1)(layer, params, x)), 1e-5)
    several = jax.jit(jax.vmap(layer.init))(jax.random.split(jax.random.key(1), 2))
    out = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))(several, x)
    for n in range(2):
        one = layer.apply({name: value[n] for name, value in several.items()}, x)
        assert_close(np.asarray(out[n]), np.asarray(one), 1e-5)


def test_coordinates_are_never_rounded_to_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def attend(q: Any, k: Any, v: Any, gamma: Any, **options: Any) -> Any:
        seen.append((q, k, gamma))
        return zeta_ops.zeta_attention(q, k, v, gamma, **options)

    monkeypatch.setattr(layers, "zeta_attention", attend)
    layer = layers.ZetaAttention(DIM, **SMALL)
    params = layer.init(jax.random.key(0), jnp.bfloat16)
    x = jnp.asarray(layer_input().astype(ml_dtypes.bfloat16))
    out = layer.apply(params, x)
    assert out.dtype == jnp.bfloat16
    wide = layer.apply({name: value.astype(jnp.float32) for name, value in params.items()}, x.astype(jnp.float32))
    assert_close(np.asarray(out.astype(jnp.float32)), np.asarray(wide), 0.05)
    for mine, theirs in zip(*seen, strict=True):
        assert_same_bits(np.asarray(mine), np.asarray(theirs))


def test_coordinates_start_with_mean_zero_and_unit_variance() -> None:
    layer = layers.ZetaAttention(128, num_heads=32)
    params = layer.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 500, 128))
    points = x + layers.causal_convolution(x, params["conv.weight"])
    for name in ("q_proj", "k_proj"):
        found = np.asarray(layer._coordinates(params, name, points))
        assert found.var((0, 1)).mean() == pytest.approx(1, abs=0.25)
        assert np.square(found.mean((0, 1))).mean() < 0.02


def test_empty_inputs() -> None:
    layer, params = make(SMALL)
    for shape in ((0, 5, DIM), (2, 0, DIM)):
        assert layer.apply(params, jnp.zeros(shape)).shape == shape
        assert layer.apply(params, jnp.zeros(shape), lengths=jnp.zeros(shape[0], jnp.int32)).shape == shape


def test_signature() -> None:
    assert tuple(inspect.signature(layers.ZetaAttention).parameters) == option_names()


@pytest.mark.parametrize("name", layers.__all__)
def test_examples(name: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(layers, name), name)
    results = doctest.DocTestRunner().run(example)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        layers.ZetaAttention(**{"dim": DIM, **options})
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(("shape", "given", "error", "words"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input(shape: Any, given: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    layer, params = make(SMALL)
    with pytest.raises(error) as raised:
        layer.apply(params, jnp.zeros(shape), **{name: jnp.asarray(x) for name, x in given.items()})
    for word in words:
        assert word in str(raised.value)
