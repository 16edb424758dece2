"""The recurrent language model: what makes it take GPT's place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.models import rnn
from jaxnlp.models.heads import Classification

CONFIG = rnn.Config(vocab_size=20, cell="gru", d_model=12, dropout=0.0, tied=True)
IDS = jnp.array([[3, 4, 5, 6], [7, 8, 9, 10]])


def init(config, heads=()):
    return config.build(heads).init(jax.random.key(0), IDS)["params"]


def apply(config, params, *args, **kwargs):
    return config.build().apply({"params": params}, *args, **kwargs)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_token_by_token_is_all_at_once_and_padding_on_the_left_changes_nothing(cell):
    config = dataclasses.replace(CONFIG, cell=cell)
    params = init(config)
    whole = apply(config, params, IDS)["logits"]
    left = jnp.pad(IDS, ((0, 0), (2, 0)), constant_values=11)
    mask = jnp.pad(jnp.ones_like(IDS), ((0, 0), (2, 0)))
    cache = config.build().init_cache(2, 8)
    out = apply(config, params, left[:, :3], mask[:, :3], cache=cache)
    np.testing.assert_allclose(out["logits"][:, 2], whole[:, 0], atol=1e-6)
    for t in range(3, 6):
        out = apply(config, params, left[:, t : t + 1], cache=out["cache"])
        np.testing.assert_allclose(out["logits"][:, 0], whole[:, t - 2], atol=1e-6)


def test_the_tables_are_one_where_tied():
    """Zaremba's equations by hand: logits = h tokens' + b, h the GRU's, and the same table at the input."""
    params = init(CONFIG)
    assert set(params) == {"embed", "layers", "output_bias"}
    out = apply(CONFIG, params, IDS)
    table = params["embed"]["tokens"][: CONFIG.vocab_size]
    bias = params["output_bias"][: CONFIG.vocab_size]
    expected = out["last_hidden_state"] @ table.T + bias[None, None]
    np.testing.assert_allclose(out["logits"], expected, atol=1e-6)
    assert set(init(dataclasses.replace(CONFIG, tied=False, d_embed=5))) == {*params, "output"}


def test_a_head_sits_on_it_as_on_gpt():
    heads = (Classification(3),)
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    params = init(CONFIG, heads)
    logits = CONFIG.build(heads).apply({"params": params}, IDS, mask)["logits"]
    alone = CONFIG.build(heads).apply({"params": params}, IDS[:1, :2])["logits"]
    np.testing.assert_allclose(logits[0], alone[0], atol=1e-6)


def test_flops_are_those_of_the_products():
    config = dataclasses.replace(CONFIG, cell="lstm", tied=False, d_embed=5)
    params = jax.eval_shape(lambda: init(config))
    kernels = [x.size for path, x in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert config.flops(7) == 6 * (sum(kernels) + config.d_model * config.vocab_size)


def test_segments_are_refused():
    with pytest.raises(ValueError, match=r"segment_ids came to a recurrent model.*allowed: task.apart=False"):
        apply(CONFIG, init(CONFIG), IDS, segment_ids=jnp.ones_like(IDS))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tied": True, "d_embed": 3}, r"model.tied with model.d_embed=3; allowed: model.d_model=650"),
        ({"dropout": 1.0}, r"model.dropout=1.0; allowed: 0 <= dropout < 1"),
        ({"n_layers": 0}, r"model.n_layers=0; allowed: 1 and more"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        rnn.Config(**changed)
