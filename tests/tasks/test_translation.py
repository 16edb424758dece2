"""Translation: what goes into the model, what is learned, and what comes out."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import jaxnlp
from jaxnlp.data import cache
from jaxnlp.data.tokenizers import Characters, Pair, Tokenizer, build
from jaxnlp.models import gpt, rnn, seq2seq, transformer
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.task import Heatmap
from jaxnlp.tasks.translation import Translation, scores
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.step import measure

TASK = Translation(source="x", target="y", length=8, buckets=(4, 8), n_beams=3)
EXAMPLES = [{"x": "ab", "y": "cba"}, {"x": "abc", "y": "c"}, {"x": "b", "y": "aaaaa"}, {"x": "", "y": "a"}]
CONFIG = seq2seq.Config(vocab_size=8, d_embed=6, d_model=8, share_embeddings=True, tied=True)


@pytest.fixture(scope="module")
def tokenizer():
    """<|endoftext|> is 0, <unk> 1, a, b and c are 2, 3 and 4."""
    return build(Characters(), ["abc"])


@pytest.fixture(scope="module")
def params():
    params = CONFIG.build().init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.fixture(scope="module")
def batch(tokenizer, tmp_path_factory):
    built = cache.build(
        EXAMPLES, lambda e: TASK.encode(e, tokenizer), key=TASK.key, cache_dir=tmp_path_factory.mktemp("cache")
    )
    return jax.tree.map(jnp.asarray, TASK.batches(built, tokenizer, batch_size=2, seed=None)(0))


def test_examples_become_pairs_with_their_ends(tokenizer):
    records = TASK.encode(EXAMPLES, tokenizer)
    assert [[r["input_ids"].tolist(), r["labels"].tolist()] for r in records] == [
        [[2, 3, 0], [4, 3, 2, 0]],
        [[2, 3, 4, 0], [4, 0]],
        [[3, 0], [2, 2, 2, 2, 2, 0]],
    ]


def test_a_batch_has_what_the_shapes_say(batch):
    assert set(batch) == set(TASK.shapes(2))
    assert batch["decoder_input_ids"].tolist()[0] == [0, 4, 3, 2]  # the end also begins
    assert {name: (x.dtype, x.ndim) for name, x in batch.items()} == {
        name: (x.dtype, x.ndim) for name, x in TASK.shapes(2).items()
    }


def test_the_loss_is_the_mean_over_real_target_tokens(batch, params):
    total, weight = measure(CONFIG.build(), TASK, params, batch, None)["loss"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    log_p = jax.nn.log_softmax(CONFIG.build().apply({"params": params}, **inputs)["logits"])
    by_hand = -sum(log_p[b, t, batch["labels"][b, t]] for b, t in zip(*np.nonzero(batch["weights"]), strict=True))
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)
    assert weight == 6
    smoothed = dataclasses.replace(TASK, label_smoothing=0.1)
    np.testing.assert_allclose(measure(CONFIG.build(), smoothed, params, batch, None)["loss"][0], total)
    assert measure(CONFIG.build(), smoothed, params, batch, jax.random.key(0))["loss"][0] != total


def test_without_teacher_forcing_the_decoder_reads_what_it_wrote(batch, params):
    own = dataclasses.replace(TASK, teacher_forcing=False)
    model = CONFIG.build()
    ids = batch["decoder_input_ids"][:, :1]
    for _ in range(batch["labels"].shape[1] - 1):
        out = model.apply({"params": params}, batch["input_ids"], batch["attention_mask"], ids)
        ids = jnp.concatenate([ids, out["logits"][:, -1:].argmax(-1).astype(jnp.int32)], axis=1)
    expected = measure(model, TASK, params, {**batch, "decoder_input_ids": ids}, jax.random.key(0))["loss"][0]
    found = measure(model, own, params, batch, jax.random.key(0))["loss"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(measure(model, own, params, batch, None)["loss"][0] - found) > 1e-3  # evaluation has the true tokens


@functools.partial(jax.jit, static_argnums=3)
def log_softmax(params, ids, decoder_ids, config):
    return jax.nn.log_softmax(config.build().apply({"params": params}, ids, None, decoder_ids)["logits"])


def brute(params, source, n, config=CONFIG):
    """All texts of up to n tokens with their end, by log-probability over length penalty."""
    finished, live = [], [((), 0.0)]
    for length in range(1, n + 1):
        ids = jnp.array([[0, *text] for text, _ in live])
        log_p = np.asarray(log_softmax(params, jnp.tile(source, (len(live), 1)), ids, config))[:, -1]
        grown = [((*text, w), s + log_p[i, w]) for i, (text, s) in enumerate(live) for w in range(8)]
        finished += [(text[:-1], s / ((5 + length) / 6)) for text, s in grown if text[-1] == 0]
        live = [(text, s) for text, s in grown if text[-1] != 0]
    return max(finished + [(text, s / ((5 + n) / 6)) for text, s in live], key=lambda x: x[1])


def test_a_wide_beam_finds_the_best_translation_of_all(tokenizer, params):
    task = dataclasses.replace(TASK, length=3, buckets=(3,), n_beams=8)
    (found,) = task.translate(CONFIG.build(), params, tokenizer, ["ab"])
    text, score = brute(params, jnp.array([[2, 3, 0]]), 3)
    assert found["translation"] == tokenizer.decode(text)
    assert found["score"] == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("length", [8, 128])
def test_a_translation_does_not_depend_on_its_neighbours(length, tokenizer, params, capsys):
    task = dataclasses.replace(TASK, length=length, buckets=(length,))
    texts = ["a", "abc" * 40, "", "cb"]
    together = task.predict(CONFIG.build(), params, tokenizer, texts, n_best=2)
    assert ("1 of 4 sources are longer than 7 tokens and cut" in capsys.readouterr().err) == (length == 8)
    for text, found in zip(texts, together, strict=True):
        (alone,) = task.predict(CONFIG.build(), params, tokenizer, [text], n_best=2)
        assert found[task.answer] == alone[task.answer]
        assert found["score"] == pytest.approx(alone["score"], rel=1e-4)
        assert len(alone["n_best"]) == (2 if text else 1)
    assert together[2]["translation"] == ""


def test_more_texts_than_rows(tokenizer, params):
    texts = ["abc"[: 1 + i % 3] * (1 + i % 2) for i in range(7)]
    found = TASK.translate(CONFIG.build(), params, tokenizer, texts, rows=3)
    assert [one["translation"] for one in found] == [
        TASK.translate(CONFIG.build(), params, tokenizer, [text])[0]["translation"] for text in texts
    ]


def test_no_texts_have_no_translations_and_no_rows_are_refused(tokenizer, params):
    assert TASK.translate(CONFIG.build(), params, tokenizer, []) == []
    with pytest.raises(ValueError, match="rows=0; allowed: 1 and more"):
        TASK.translate(CONFIG.build(), params, tokenizer, ["a"], rows=0)


def test_a_text_comes_by_name_and_what_is_none_is_named(tokenizer, params):
    assert TASK.predict(CONFIG.build(), params, tokenizer, [{"x": "ab"}, ["c"]]) == TASK.predict(
        CONFIG.build(), params, tokenizer, ["ab", "c"]
    )
    for item in (None, 5, {"z": "ab"}, ("a", "b")):
        with pytest.raises(ValueError, match="to predict; allowed: the texts x, in order or by name"):
            TASK.predict(CONFIG.build(), params, tokenizer, ["ab", item])


@pytest.mark.parametrize(("most", "n"), [(None, 64), (70, 70)])
def test_a_translation_is_as_long_as_it_may_be(most, n, tokenizer, params):
    """Without an end it goes on: to twice its source's 32 tokens, or as far as the task says."""
    endless = {**params, "output_bias": params["output_bias"].at[2].set(1e4)}
    task = dataclasses.replace(TASK, length=128, buckets=None, max_new_tokens=most, n_beams=1)
    (found,) = task.predict(CONFIG.build(), endless, tokenizer, ["ab"])
    assert found["translation"] == "a" * n


# Without an encoder ---------------------------------------------------------------------------------------------------


GPT = gpt.Config(vocab_size=8, n_positions=16, n_layers=2, d_model=8, n_heads=2, dropout=0.0, attention_dropout=0.0)


@pytest.fixture(scope="module")
def body():
    params = GPT.build().init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params)


def test_a_pair_becomes_one_sequence(tokenizer):
    (record,) = dataclasses.replace(TASK, form="prefix").encode(EXAMPLES[:1], tokenizer)
    assert {name: x.tolist() for name, x in record.items()} == {
        "input_ids": [2, 3, 0, 4, 3, 2],
        "labels": [3, 0, 4, 3, 2, 0],
        "weights": [0, 0, 1, 1, 1, 1],
        "prefix_lengths": 2,
    }


@pytest.mark.parametrize("form", [pytest.param("causal", marks=pytest.mark.slow), "prefix"])
def test_the_loss_without_an_encoder_is_the_targets_alone(form, tokenizer, body, tmp_path):
    task = dataclasses.replace(TASK, form=form, length=12, buckets=(12,))
    built = cache.build(EXAMPLES, lambda e: task.encode(e, tokenizer), key=task.key, cache_dir=tmp_path)
    batch = jax.tree.map(jnp.asarray, task.batches(built, tokenizer, batch_size=3, seed=None)(0))
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
        name: (x.dtype, x.shape) for name, x in task.shapes(3).items()
    }
    total, weight = measure(GPT.build(), task, body, batch, None)["loss"]
    by_hand = 0.0
    for example in EXAMPLES[:3]:
        (record,) = task.encode([example], tokenizer)
        prefix = {"prefix_lengths": jnp.array([len(example["x"])])} if form == "prefix" else {}
        logits = GPT.build().apply({"params": body}, jnp.array([record["input_ids"]]), **prefix)["logits"][0]
        target = range(len(example["x"]), len(record["labels"]))
        by_hand -= sum(jax.nn.log_softmax(logits[t])[record["labels"][t]] for t in target)
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)
    assert weight == sum(len(example["y"]) + 1 for example in EXAMPLES[:3])


@pytest.mark.parametrize("form", [pytest.param("causal", marks=pytest.mark.slow), "prefix"])
def test_a_wide_beam_without_an_encoder_finds_the_best_of_all(form, tokenizer, body):
    task = dataclasses.replace(TASK, form=form, length=6, n_beams=8)  # 3 tokens are the target's

    def best(source):
        """Of all texts of up to 3 tokens with their end."""
        finished, live = [], [((), 0.0)]
        for length in range(1, 4):
            grown = []
            for text, score in live:
                ids = jnp.array([[*source, 0, *text]])
                prefixes = {"prefix_lengths": jnp.array([len(source)])} if form == "prefix" else {}
                log_p = jax.nn.log_softmax(GPT.build().apply({"params": body}, ids, **prefixes)["logits"][0, -1])
                grown += [((*text, w), score + float(log_p[w])) for w in range(8)]
            finished += [(text[:-1], s / ((5 + length) / 6)) for text, s in grown if text[-1] == 0]
            live = sorted(((text, s) for text, s in grown if text[-1] != 0), key=lambda x: -x[1])[:8]
        return max(finished + [(text, s / (8 / 6)) for text, s in live], key=lambda x: x[1])

    found = task.predict(GPT.build(), body, tokenizer, ["ab", "abc"])
    for one, source in zip(found, ([2, 3], [2, 3, 4]), strict=True):
        text, score = best(source)
        assert one["translation"] == tokenizer.decode(text)
        assert one["score"] == pytest.approx(score, rel=1e-4)


@pytest.mark.slow
def test_a_transformer_translates_as_it_is_taught(tokenizer):
    """Beams over its cache find what a search through all texts by teacher forcing finds."""
    config = transformer.Config(
        vocab_size=8, n_encoder_layers=1, n_decoder_layers=2, d_model=8, n_heads=2, d_ff=16, dropout=0.0
    )
    params = config.build().init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    task = dataclasses.replace(TASK, length=3, buckets=(3,), n_beams=8)
    found = task.translate(config.build(), params, tokenizer, ["ab", "b"])
    for one, source in zip(found, ([2, 3, 0], [3, 0]), strict=True):
        text, score = brute(params, jnp.array([source]), 3, config)
        assert one["translation"] == tokenizer.decode(text)
        assert one["score"] == pytest.approx(score, rel=1e-4)
    picture = task.heatmap(config.build(), params, tokenizer, "ab", "c")
    np.testing.assert_allclose(np.sum(picture.values, axis=1), 1, rtol=1e-5)
    own = dataclasses.replace(TASK, teacher_forcing=False)
    ids = jnp.array([[2, 3, 0]])
    batch = {"input_ids": ids, "attention_mask": ids * 0 + 1, "decoder_input_ids": ids * 0, "labels": ids}
    batch["weights"] = jnp.ones((1, 3))
    assert np.isfinite(measure(config.build(), own, params, batch, jax.random.key(0))["loss"][0])


@pytest.mark.parametrize("length", [12, 32, 48, 100])
def test_a_model_with_no_more_positions_than_the_task_is_long_translates(length, tokenizer):
    model = dataclasses.replace(GPT, n_positions=length).build()
    params = model.init(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    task = dataclasses.replace(TASK, form="causal", length=length, buckets=(length,))
    assert len(task.predict(model, params, tokenizer, ["a", "abc" * 40])) == 2


def test_what_is_left_of_the_length_is_the_sources(tokenizer, body, capsys):
    task = dataclasses.replace(TASK, form="causal", length=16, max_new_tokens=4)
    whole, cut = task.predict(GPT.build(), body, tokenizer, ["abcabcabcabc", "abcabcabcabcabc"])
    assert whole == cut
    assert "1 of 2 sources are longer than 12 tokens and cut" in capsys.readouterr().err
    with pytest.raises(ValueError, match="task.length=16 leaves 0 tokens for a source; allowed: 1 and more beside"):
        dataclasses.replace(task, max_new_tokens=16).predict(GPT.build(), body, tokenizer, ["a"])


@pytest.mark.parametrize(
    ("config", "form", "message"),
    [
        (CONFIG, "causal", r"task.form='causal' with the model Seq2Seq; allowed: encoder-decoder"),
        (GPT, "encoder-decoder", r"task.form='encoder-decoder' with the model GPT; allowed: causal, prefix"),
        (rnn.Config(vocab_size=8, d_model=8), "prefix", r"task.form='prefix' with the model RNN, which reads one way"),
        (dataclasses.replace(GPT, vocab_size=2), "causal", r"task.n_beams=3; allowed: at most the 2 words"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_at_the_start(config, form, message, tmp_path):
    experiment = Experiment(
        model=config,
        task=dataclasses.replace(TASK, form=form),
        data=Data(train=[{"x": "", "y": ""}] if config.vocab_size == 2 else EXAMPLES),
        tokenizer=Characters(),
        steps=1,
        batch_size=1,
    )
    with pytest.raises(ValueError, match=message):
        jaxnlp.train(experiment, tmp_path / "run")


def test_a_language_model_has_no_encoder(tmp_path):
    experiment = Experiment(
        model=CONFIG,
        task=LanguageModeling(text="x", length=4),
        data=Data(train=EXAMPLES),
        tokenizer=Characters(),
        steps=1,
        batch_size=1,
    )
    with pytest.raises(ValueError, match="the model Seq2Seq is no language model; allowed with it: Translation"):
        jaxnlp.train(experiment, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_beams": 0}, r"task.n_beams=0; allowed: 1 and more"),
        ({"length_penalty": float("nan")}, r"task.length_penalty=nan; allowed: a finite number"),
        ({"length": 1}, r"task.length=1; allowed: 2 and more"),
        ({"max_new_tokens": 0}, r"task.max_new_tokens=0; allowed: 1 and more"),
        ({"label_smoothing": 1.0}, r"task.label_smoothing=1.0; allowed: 0 <= label_smoothing < 1"),
    ],
)
def test_a_bad_number_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **fields)


def test_its_own_tokens_need_a_decoder():
    with pytest.raises(ValueError, match="task.teacher_forcing=False with task.form='causal'"):
        dataclasses.replace(TASK, form="causal", teacher_forcing=False)


def test_one_sequence_needs_one_vocabulary():
    pair = build(Pair(Characters(), Characters()), ["ab", "yz"])
    with pytest.raises(ValueError, match="task.form='causal' with a vocabulary for each language"):
        dataclasses.replace(TASK, form="causal").encode([{"x": "a", "y": "z"}], pair)


def test_a_vocabulary_of_each_language(tmp_path):
    pair = build(Pair(Characters(), Characters()), ["ab", "yz", "b", "x"])
    (record,) = TASK.encode([{"x": "ba", "y": "zx"}], pair)
    assert record["input_ids"].tolist() == [3, 2, 0] and record["labels"].tolist() == [4, 2, 0]
    pair.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == pair.fingerprint
    assert loaded.target.decode([4, 2]) == "zx" and loaded.decode([3, 2]) == "ba"


@pytest.mark.parametrize("sizes", [{"vocab_size": 5}, {"vocab_size": 8, "target_vocab_size": 5}])
def test_a_target_vocabulary_without_a_row_for_each_token_is_refused(sizes, tmp_path):
    experiment = Experiment(
        model=transformer.Config(n_encoder_layers=1, n_decoder_layers=1, d_model=8, n_heads=2, d_ff=8, **sizes),
        task=TASK,
        data=Data(train=[{"x": "ab", "y": "vwxyz"}]),
        tokenizer=Pair(Characters(), Characters()),
        steps=1,
        batch_size=1,
    )
    name = list(sizes)[-1]
    with pytest.raises(ValueError, match=f"the target's tokenizer has 7 tokens, model.{name}=5; allowed: 7 and more"):
        jaxnlp.train(experiment, tmp_path / "run")


def test_scores_are_sacrebleus(tokenizer):
    values, table = scores(["the cat sat on the mat"] * 2, ["the cat sat on the mat", "the cat sat on a mat"])
    assert values["exact_match"] == 0.5
    assert 60 < values["bleu"] < 90 and values["bleu"] != values["chrf"]
    assert "version:" in table.rows[0][2] and "tok:13a" in table.rows[0][2]
    with pytest.raises(ValueError, match="1 translations for 2 references"):
        scores(["a"], ["a", "b"])


def test_what_is_shown(tokenizer, params):
    table, samples, *maps = TASK.show(CONFIG.build(), params, tokenizer, EXAMPLES[:2])
    assert table.columns == ("metric", "value", "signature")
    assert [source for source, _ in samples.texts] == ["ab", "abc"]
    assert all(isinstance(picture, Heatmap) for picture in maps) and len(maps) == 2
    assert maps[0].columns == ("a", "b", "<|endoftext|>")
    for row in maps[0].values:
        assert sum(row) == pytest.approx(1, rel=1e-5)


def test_scores_that_are_no_numbers_are_an_error_that_names_the_text(tokenizer, params):
    broken = {**params, "output_bias": params["output_bias"] * jnp.nan}
    with pytest.raises(ValueError, match="no translation of 'ab' has a finite score"):
        TASK.predict(CONFIG.build(), broken, tokenizer, ["ab"])


def test_n_best_gives_no_more_texts_than_there_are(tokenizer, params):
    task = dataclasses.replace(TASK, max_new_tokens=1, n_beams=8)
    (found,) = task.predict(CONFIG.build(), params, tokenizer, ["a"], n_best=8)
    none = {**params, "output_bias": params["output_bias"].at[:6].set(-jnp.inf)}
    (fewer,) = task.predict(CONFIG.build(), none, tokenizer, ["a"], n_best=8)
    assert (len(found["n_best"]), len(fewer["n_best"])) == (8, 2)


@pytest.mark.slow
def test_training_compiles_once_for_each_bucket(tmp_path, monkeypatch):
    traced = collections.Counter()

    def sums(self, apply, batch, *, training, original=Translation.sums):
        traced[training, batch["input_ids"].shape] += 1
        return original(self, apply, batch, training=training)

    monkeypatch.setattr(Translation, "sums", sums)
    jaxnlp.train(
        Experiment(
            model=CONFIG,
            task=TASK,
            data=Data(train=EXAMPLES * 8, validation=EXAMPLES),
            tokenizer=Characters(),
            steps=24,  # six epochs
            batch_size=4,
            evaluate_every=0.25,
        ),
        tmp_path / "run",
    )
    example = next(shape for training, shape in traced if training)  # one row, for the parameters' shapes
    assert set(traced) == {(training, shape) for training in (True, False) for shape in ((8, 4), (4, 8))} | {
        (True, example)
    }
    assert max(traced.values()) == 1


def test_an_unknown_language_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"task.target='fr' is no feature of the data; allowed: x, y"):
        dataclasses.replace(TASK, target="fr").encode(EXAMPLES, tokenizer)


def test_a_vocabulary_without_an_end_is_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"found none of the special tokens .*</s> in its vocabulary"):
        TASK.encode(EXAMPLES, Tokenizer(backend))
