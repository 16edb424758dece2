"""Texts that change their batches on the way, against a plain search that reads every text anew, each on its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.tokenizers import Characters, build
from jaxnlp.models import gpt, rnn, seq2seq, transformer
from jaxnlp.nn.blocks import stack_layers
from jaxnlp.tasks.translation import Translation

N, BEAMS, ALPHA = 20, 3, 0.6  # tokens of a text at most: two strides and a half, in two rooms
TEXTS = ["a", "ab", "ba", "c", "abc", "cab", "bb", "aabb", "ccab", "cb", "acc", "bacb", "b", "caa"]
TRANSFORMER = transformer.Config(
    vocab_size=8, n_encoder_layers=1, n_decoder_layers=2, d_model=16, n_heads=2, d_ff=32, dropout=0.0
)
GPT = gpt.Config(vocab_size=8, n_positions=32, n_layers=2, d_model=16, n_heads=2, dropout=0.0, attention_dropout=0.0)
CONFIGS = {
    "transformer": TRANSFORMER,
    "scanned": dataclasses.replace(TRANSFORMER, scan=True),
    "recurrent": seq2seq.Config(vocab_size=8, d_embed=8, d_model=16, share_embeddings=True, tied=True),
    "prefix": GPT,
    "causal": rnn.Config(vocab_size=8, d_embed=8, d_model=16),
}


def reader(name, config, params):
    """log p of the next token after each of n texts, [n, V]."""
    apply = jax.jit(
        lambda *args, **rest: jax.nn.log_softmax(config.build().apply({"params": params}, *args, **rest)["logits"])
    )

    def log_p(source, texts):
        n = len(texts)
        if name in ("prefix", "causal"):
            ids = np.zeros((n, GPT.n_positions), np.int32)
            ids[:, : len(source)] = source
            for row, text in zip(ids, texts, strict=True):
                row[len(source) + 1 : len(source) + 1 + len(text)] = text
            found = apply(ids, **({"prefix_lengths": np.full(n, len(source))} if name == "prefix" else {}))
            return found[:, len(source) + len(texts[0])]
        ids, mask, inputs = (np.zeros((n, size), np.int32) for size in (8, 8, N))
        ids[:, : len(source)], mask[:, : len(source) + 1] = source, 1
        for row, text in zip(inputs, texts, strict=True):
            row[1 : 1 + len(text)] = text
        return apply(ids, mask, inputs)[:, len(texts[0])]

    return log_p


def plain(log_p, source):
    """The best two texts without their ends, each with its score, of a beam search that goes on to the last token."""
    live, ended = [((), 0.0)], []
    for length in range(1, N + 1):
        texts = [text for text, _ in live] + [live[0][0]] * (BEAMS - len(live))
        rows = np.asarray(log_p(source, texts), np.float64)
        grown = [((*text, w), score + rows[i, w]) for i, (text, score) in enumerate(live) for w in range(8)]
        grown = sorted(grown, key=lambda one: -one[1])[: 2 * BEAMS]
        penalty = ((5 + length) / 6) ** ALPHA
        ended += [(text[:-1], score / penalty) for text, score in grown[:BEAMS] if text[-1] == 0]
        live = [(text, score) for text, score in grown if text[-1] != 0][:BEAMS]
    return sorted(ended + [(text, score / penalty) for text, score in live], key=lambda one: -one[1])[:2]


ALIKE = ("recurrent", "causal")  # each a form of another


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in CONFIGS])
def test_texts_find_in_company_what_they_find_alone(name):
    config, tokenizer = CONFIGS[name], build(Characters(), ["abc"])
    plainer = dataclasses.replace(config, scan=False) if name == "scanned" else config
    params = plainer.build().init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    noise = 1.5 if name == "causal" else 0.7  # so that some texts end and others do not
    params = jax.tree.map(lambda x: x + noise * jax.random.normal(jax.random.key(x.size), x.shape), params)
    log_p, lengths = reader(name, plainer, params), []
    params = stack_layers(params) if name == "scanned" else params
    task = Translation(source="x", target="y", length=32, max_new_tokens=N, n_beams=BEAMS, length_penalty=ALPHA)
    task = dataclasses.replace(task, form=name if name in ("prefix", "causal") else "encoder-decoder")
    found = task.translate(config.build(), params, tokenizer, TEXTS, n_best=2, rows=4)
    for source, one in zip(TEXTS, found, strict=True):
        for best, (text, score) in zip(one["n_best"], plain(log_p, tokenizer.encode(source)), strict=True):
            assert best["translation"] == tokenizer.decode(text)
            assert best["score"] == pytest.approx(score, rel=1e-4)
            lengths.append(len(text))
    assert min(lengths) < 8 and max(lengths) == N, lengths
