"""The language model of the examples: the same logits and gradients in both frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import assert_all_close, assert_close, assert_same_bits

from examples.model_options import ModelOptions
from zeta_ops.adapters.layers import LayerOptions

torch = pytest.importorskip("torch", reason="torch is not installed")
jax = pytest.importorskip("jax", reason="jax is not installed")
from examples import jax_model, torch_model  # noqa: E402
from zeta_ops.adapters.torch.layers import load_state_arrays, state_arrays  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
MODELS = {
    "zeta": ModelOptions(23, 2, LayerOptions(16, num_heads=2, top_k=4)),
    "zeta with MLPs": ModelOptions(23, 1, LayerOptions(16, num_heads=4, num_kv_heads=2, top_k=4), mlp_dim=24),
    "standard": ModelOptions(23, 2, LayerOptions(16, num_heads=2), attention="standard"),
    "standard with MLPs": ModelOptions(23, 1, LayerOptions(16, conv_size=0), attention="standard", mlp_dim=24),
}
every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
TOKENS = np.random.default_rng(0).integers(0, 23, (2, 30))


def make(options: ModelOptions) -> torch_model.CausalLM:
    torch.manual_seed(0)
    return torch_model.CausalLM(options)


@every_model
def test_both_frameworks_give_the_same(options: ModelOptions) -> None:
    model = make(options)
    params = {name: jax.numpy.asarray(value) for name, value in state_arrays(model).items()}
    expected = model(torch.from_numpy(TOKENS))
    compiled = jax.jit(jax_model.apply, static_argnums=2)
    assert_close(np.asarray(compiled(params, TOKENS, options)), expected.detach().numpy(), 1e-5)
    expected.square().mean().backward()
    gradients = jax.jit(jax.grad(lambda p: (jax_model.apply(p, TOKENS, options) ** 2).mean()))(params)
    assert_all_close(
        {name: np.asarray(value) for name, value in gradients.items()},
        {name: parameter.grad.numpy() for name, parameter in model.named_parameters()},
        1e-4,
    )
    for name, gradient in gradients.items():
        assert (np.asarray(gradient) != 0).any(), name


@every_model
def test_parameters_drawn_in_jax_fit_the_torch_model(options: ModelOptions) -> None:
    model = make(options)
    params = {name: np.asarray(value) for name, value in jax_model.init(jax.random.key(0), options).items()}
    load_state_arrays(model, params)
    for name, value in state_arrays(model).items():
        assert_same_bits(value, params[name], name)
    logits = model(torch.from_numpy(TOKENS))
    assert 0.3 < logits.std() < 3


@every_model
def test_the_future_is_not_seen(options: ModelOptions) -> None:
    model, changed = make(options), TOKENS.copy()
    changed[:, 20:] = 1
    a, b = (model(torch.from_numpy(tokens)).detach().numpy() for tokens in (TOKENS, changed))
    assert_close(a[:, :20], b[:, :20], 1e-6)
    assert np.abs(a[:, 20:] - b[:, 20:]).max() > 0.01


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "vocab_size": ({"vocab_size": 0}, "vocab_size must be an integer of at least 1; got 0"),
    "num_layers": ({"num_layers": -1}, "num_layers must be an integer of at least 0; got -1"),
    "mlp_dim": ({"mlp_dim": 2.5}, "mlp_dim must be an integer of at least 0; got 2.5"),
    "attention": ({"attention": "linear"}, "attention must be 'zeta' or 'standard'; got 'linear'"),
    "num_heads": (
        {"attention": "standard", "layer": LayerOptions(16, num_heads=3, value_dim=5)},
        "num_heads must divide dim = 16; got 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelOptions(**{"vocab_size": 23, "num_layers": 1, "layer": LayerOptions(16), **changes})
