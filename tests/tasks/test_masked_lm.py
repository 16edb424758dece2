"""Masked words and the next sentence: the loss against transformers', and the same however the batch is cut."""

import dataclasses
import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from jaxnlp.data import cache
from jaxnlp.data.tokenizers import Characters, Tokenizer, WordPiece, build
from jaxnlp.models import bert, gpt, transformer
from jaxnlp.tasks.masked_lm import SENTENCE, MaskedLM, vocabulary
from jaxnlp.tasks.task import asked
from jaxnlp.training.optim import Optim
from jaxnlp.training.step import Trainer, measure

ORACLE = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "golden" / "bert.py"))
CONFIG = bert.Config(
    vocab_size=ORACLE["V"],
    n_positions=ORACLE["T"],
    n_layers=ORACLE["L"],
    d_model=ORACLE["D"],
    n_heads=ORACLE["H"],
    d_ff=ORACLE["F"],
    dropout=0.0,
    attention_dropout=0.0,
)
TASK = MaskedLM(length=ORACLE["T"], mask_rate=0.3)
TEXTS = ["The cat sat. The dog ran! Did it?", "A bird sings\nin a tree.\n\nIt flies.", "the cat ran. a dog sat."] * 4


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(pathlib.Path(ORACLE["__file__"]).with_suffix(".npz")))


def tree(golden, at):
    return ORACLE["params_of"](
        {k.removeprefix(f"{at}/"): jnp.asarray(x) for k, x in golden.items() if k.startswith(at)}
    )


@pytest.fixture(scope="module")
def params(golden):
    return jax.tree.map(jnp.asarray, tree(golden, "pretraining/params"))


@pytest.fixture(scope="module")
def batch():
    found = {
        name: jnp.asarray(x, jnp.float32 if name == "weights" else jnp.int32) for name, x in ORACLE["batch"]().items()
    }
    found["next_sentence_labels"] = found.pop("next_sentence_label")
    return found | {"next_sentence_weights": jnp.ones(ORACLE["B"])}


@pytest.fixture(scope="module")
def pieces():
    return build(WordPiece(vocab_size=64), TEXTS)


@pytest.fixture
def make_cache(tmp_path):
    """A cache of the given records."""

    def make(records):
        numbered = [{"number": i} for i in range(len(records))]
        encode = lambda examples: [records[example["number"]] for example in examples]  # noqa: E731
        return cache.build(numbered, encode, key={}, cache_dir=tmp_path, progress=False)

    return make


def trainer(task=TASK, **options):
    """One whose optimizer keeps the gradient as it is."""
    model = CONFIG.build(task.heads)
    return Trainer(model=model, task=task, optim=Optim(), optimizer=optax.trace(decay=0.0), **options)


def gradient_of(trainer, params, batch):
    state, sums = jax.jit(trainer.train_step)(trainer.init(params, batch), batch)
    return flatten_dict(state.opt_state.trace, sep="/"), sums


@functools.partial(jax.jit, static_argnums=0)
def measured(task, params, batch):
    return measure(CONFIG.build(task.heads), task, params, batch, None)


def loss_of(task, sums):
    return task.metrics({name: float(total / weight) for name, (total, weight) in sums.items()})["loss"]


def assert_close(found, expected, tolerance=1e-5):
    error = np.max(np.abs(np.asarray(found) - np.asarray(expected)))
    assert error <= tolerance * max(np.max(np.abs(expected)), 1e-2), error


def test_loss_and_gradient_equal_transformers(golden, params, batch):
    """BertForPreTraining's: the mean over the masked words and the mean over the rows."""
    found, sums = gradient_of(trainer(), params, batch)
    np.testing.assert_allclose(loss_of(TASK, sums), golden["pretraining/loss"], rtol=1e-5)
    expected = flatten_dict(tree(golden, "pretraining/gradient"), sep="/")
    assert found.keys() == expected.keys()
    for path in expected:
        assert_close(found[path], expected[path])


def test_however_the_batch_is_cut(params, batch):
    """Devices and microbatches with more and fewer masked words and rows: the same loss and gradient."""
    real = jnp.array([1.0, 1.0, 1.0, 0.0])
    batch = batch | {"next_sentence_weights": real, "weights": batch["weights"] * real[:, None]}
    expected, sums = gradient_of(trainer(), params, batch)
    loss = loss_of(TASK, sums)
    found, sums = gradient_of(trainer(accumulate=4), params, batch)
    np.testing.assert_allclose(loss_of(TASK, sums), loss, rtol=1e-5)
    for path in expected:
        assert_close(found[path], expected[path])
    cut = trainer(axis="devices")
    state = cut.init(params, batch)
    parts = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    states, sums = jax.pmap(cut.train_step, axis_name="devices", in_axes=(None, 0))(state, parts)
    np.testing.assert_allclose(loss_of(TASK, jax.tree.map(lambda x: x[0], sums)), loss, rtol=1e-5)
    for path, found in flatten_dict(states.opt_state.trace, sep="/").items():
        assert_close(found[0], expected[path])


def test_what_is_measured_is_what_all_logits_say(params, batch):
    """Gathering first is as gathering last; evaluation's accuracies are of the best word and class."""
    model, real = CONFIG.build(TASK.heads), np.asarray(batch["weights"])
    sums = measured(TASK, params, batch)
    names = ("input_ids", "attention_mask", "token_type_ids")
    out = jax.jit(model.apply)({"params": params}, **{name: batch[name] for name in names})
    words = jnp.take_along_axis(out["prediction_logits"], batch["masked_positions"][..., None], 1)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(words), batch["labels"][..., None], -1)[..., 0]
    np.testing.assert_allclose(sums["mlm_loss"], ((losses * real).sum(), real.sum()), rtol=1e-5)
    right = np.asarray(words.argmax(-1) == batch["labels"]) * real
    np.testing.assert_allclose(sums["mlm_accuracy"], (right.sum(), real.sum()))
    following = out["seq_relationship_logits"]
    losses = -jax.nn.log_softmax(following)[np.arange(4), batch["next_sentence_labels"]]
    np.testing.assert_allclose(sums["nsp_loss"], (losses.sum(), 4), rtol=1e-5)
    np.testing.assert_allclose(sums["nsp_accuracy"][0], (following.argmax(-1) == batch["next_sentence_labels"]).sum())
    hit = batch | {"labels": words.argmax(-1)}
    assert measured(TASK, params, hit)["mlm_accuracy"][0] == real.sum()


def test_without_the_next_sentence(params, batch):
    task = dataclasses.replace(TASK, next_sentence=False)
    sums, both = measured(task, params, batch), measured(TASK, params, batch)
    assert sums.keys() == {"mlm_loss", "mlm_accuracy"}
    np.testing.assert_allclose(sums["mlm_loss"], both["mlm_loss"], rtol=1e-6)
    metrics = task.metrics({"mlm_loss": 2.0, "mlm_accuracy": 0.5})
    assert metrics == {"loss": 2.0, "mlm_loss": 2.0, "mlm_accuracy": 0.5, "perplexity": math.exp(2.0)}


def test_an_encoder_alone_is_asked_for_its_words(batch):
    """As of BERT, and token_type_ids say nothing to it: by hand from all logits."""
    task = dataclasses.replace(TASK, next_sentence=False)
    sizes = {"n_encoder_layers": 1, "n_decoder_layers": 0, "d_model": 8, "n_heads": 2, "d_ff": 8}
    model = transformer.Config(vocab_size=ORACLE["V"], **sizes).build(task.heads)
    params = model.init(jax.random.key(0), batch["input_ids"])["params"]
    loss, weight = measure(model, task, params, batch, None)["mlm_loss"]
    log_p = jax.nn.log_softmax(model.apply({"params": params}, batch["input_ids"], batch["attention_mask"])["logits"])
    words = np.take_along_axis(np.asarray(log_p), np.asarray(batch["masked_positions"])[..., None], 1)
    picked = np.take_along_axis(words, np.asarray(batch["labels"])[..., None], -1)[..., 0]
    real = np.asarray(batch["weights"])
    np.testing.assert_allclose((loss, weight), (-(picked * real).sum(), real.sum()), rtol=1e-5)


def test_sentences():
    text = "One. Two (e.g. this)? 3.5 is\none line.\n\n  A paragraph\n\n\nThe end"
    found = SENTENCE.split(text)
    assert "".join(found) == text
    assert [part.strip() for part in found] == [
        "One.", "Two (e.g.", "this)?", "3.5 is\none line.", "A paragraph", "The end",
    ]  # fmt: skip


def test_documents_of_sentences(pieces):
    examples = [{"text": text, "of": i // 2} for i, text in enumerate(["The cat. A dog", "", "It ran.", " It flies! "])]
    records = MaskedLM().encode(examples, pieces)
    cat, dog, ran, flies = (pieces.encode(text) for text in ("The cat.", "A dog", "It ran.", "It flies!"))
    assert [r["input_ids"].tolist() for r in records] == [cat + dog, ran, flies]
    assert np.flatnonzero(records[0]["sentence_starts"]).tolist() == [0, len(cat)]
    records = MaskedLM(document="of").encode(examples, pieces)
    assert [r["input_ids"].tolist() for r in records] == [cat + dog, ran + flies]
    assert np.flatnonzero(records[1]["sentence_starts"]).tolist() == [0, len(ran)]
    (record, *_) = MaskedLM(next_sentence=False).encode(examples, pieces)
    assert record.keys() == {"input_ids"} and record["input_ids"].tolist() == [*cat, *dog, pieces.eos_id]
    with pytest.raises(ValueError, match="task.document='module' is no feature of the data; allowed: of, text"):
        MaskedLM(document="module").encode(examples, pieces)


def test_a_vocabulary_tells_special_tokens_and_beginnings_of_words(pieces):
    known = vocabulary(pieces)
    assert np.flatnonzero(known.special).tolist() == [0, 1, 2, 3, 4] and known.mask_id == 4
    for i in range(pieces.vocab_size):
        assert known.begins_word[i] == (not pieces.token(i).startswith("##"))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġa", "Ċ"]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.add_special_tokens(tokens[:5])
    known = vocabulary(Tokenizer(backend))
    assert known.special.tolist() == [True] * 5 + [False] * 3
    assert known.begins_word.tolist()[5:] == [False, True, True]
    backend = Backend(
        models.Unigram([("<unk>", 0.0), *((t, -1.0) for t in ("\u2581a", "\u2581", "b", "ab", "<mask>"))], 0)
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    found = backend.encode("ab bab abb")
    begins = np.diff(found.word_ids, prepend=-1) > 0
    assert vocabulary(Tokenizer(backend)).begins_word[found.ids].tolist() == begins.tolist() and not begins.all()


@pytest.mark.parametrize("next_sentence", [True, False])
def test_batches_have_the_shapes_that_are_planned(make_cache, pieces, next_sentence):
    task = MaskedLM(length=16, next_sentence=next_sentence)
    records = task.encode([{"text": text} for text in TEXTS], pieces)
    for seed in (0, None):
        batch = task.batches(make_cache(records), pieces, batch_size=4, seed=seed)(0)
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            name: (x.shape, x.dtype) for name, x in task.shapes(4).items()
        }
        originals = batch["input_ids"].copy()
        for row, at, labels, weights in zip(originals, *(batch[k] for k in ("masked_positions", "labels", "weights"))):
            row[at[weights > 0]] = labels[weights > 0]
        special = np.isin(originals, [pieces.bos_id, pieces.eos_id, pieces.pad_id])
        assert np.all(originals[:, 0] == pieces.bos_id) and not (originals == pieces.mask_id).any()
        assert np.all(special | (batch["attention_mask"] == 1))


def test_flops_are_of_the_words_that_are_asked_for():
    config = bert.VARIANTS["base"]
    per_token = config.flops(128, vocabulary=asked(MaskedLM(length=128)))
    assert math.isclose(per_token, config.flops(128, vocabulary=0.0) + 6 * 768 * 30522 * 20 / 128)


@pytest.fixture(scope="module")
def learned(pieces):
    """Params for which every mask is a cat: the head's bias alone speaks."""
    model = bert.Config(vocab_size=64, n_positions=32, n_layers=1, d_model=8, n_heads=2).build(TASK.heads)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params["heads"]["masked_lm"]["output_bias"] = jnp.zeros(128).at[jnp.asarray(pieces.encode("cat"))].set(20.0)
    return model, params


def test_masks_are_filled(pieces, learned):
    task = MaskedLM(length=32, top=3)
    texts = ["The [MASK] sat on a [MASK].", "[MASK]", {"text": "a dog, [MASK]"}] + ["[MASK] ran. " * 4] * 40
    found = task.predict(*learned, pieces, texts)
    assert [one["filled"] for one in found[:3]] == ["The cat sat on a cat.", "cat", "a dog, cat"]
    assert [len(one["masks"]) for one in found] == [2, 1, 1] + [4] * 40
    for mask in (mask for one in found for mask in one["masks"]):
        assert mask[0]["token"] == "cat" and mask[0]["score"] > 0.99 and len(mask) == 3
        assert [word["score"] for word in mask] == sorted((word["score"] for word in mask), reverse=True)
    (alone,) = task.predict(*learned, pieces, texts[:1])
    for one, other in zip(alone["masks"], found[0]["masks"], strict=True):
        np.testing.assert_allclose([word["score"] for word in one], [word["score"] for word in other], atol=1e-6)


def test_scores_are_the_models(pieces, learned):
    """Against the whole logits of the ids with [MASK], put together by hand."""
    model, params = learned
    params = params | {"heads": jax.tree.map(lambda x: x, params["heads"])}
    params["heads"]["masked_lm"]["output_bias"] = jnp.zeros(128)
    params["embed"] = params["embed"] | {"tokens": params["embed"]["tokens"] * 50}
    ids = [2, *pieces.encode("the"), 4, *pieces.encode("sat."), 3]
    out = jax.jit(model.apply)({"params": params}, jnp.asarray(ids)[None])
    logits = out["prediction_logits"][0, ids.index(4)]
    (found,) = MaskedLM(length=32).predict(model, params, pieces, ["the [MASK] sat."])
    best = np.argsort(-logits[: pieces.vocab_size])[:5].tolist()
    assert [word["token"] for word in found["masks"][0]] == [pieces.spell(i) for i in best]
    np.testing.assert_allclose(
        [w["score"] for w in found["masks"][0]], jax.nn.softmax(logits)[np.array(best)], rtol=1e-4
    )


def test_what_is_shown(pieces, learned):
    table, samples = MaskedLM(length=32).show(*learned, pieces, [{"text": text} for text in TEXTS])
    n, first, among = table.rows[0]
    assert n >= 12 and 0 <= first <= among <= 1
    text, guesses = samples.texts[0]
    assert text.count("[MASK]") == len(guesses.split(", ")) and guesses.startswith("cat")
    assert MaskedLM().show(*learned, pieces, ()) == ()


class TestBadInput:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"length": -3}, "task.length=-3; allowed: 3 and more"),
            ({"top": 0}, "task.top=0; allowed: 1 and more"),
            ({"mask_rate": 1.0}, "task.mask_rate=1.0; allowed: 0 < mask_rate < 1"),
            ({"short_rate": 7.0}, "task.short_rate=7.0; allowed: 0 to 1"),
        ],
    )
    def test_fields_that_cannot_be_meant(self, fields, message):
        with pytest.raises(ValueError, match=message):
            MaskedLM(**fields)

    def test_no_mask_in_the_vocabulary(self, make_cache):
        tokenizer = build(Characters(), ["ab"])
        with pytest.raises(ValueError, match=r"the tokenizer has no \[MASK\] or <mask>; allowed: WordPiece"):
            MaskedLM(next_sentence=False).batches(
                make_cache([{"input_ids": np.int32([2, 3, 0])}]), tokenizer, batch_size=2, seed=0
            )

    def test_no_mask_in_a_text(self, pieces, learned):
        with pytest.raises(ValueError, match=r"found 'the cat' to predict; allowed: a text with \[MASK\] in it"):
            MaskedLM().predict(*learned, pieces, ["the cat"])

    def test_a_text_too_long(self, pieces, learned):
        with pytest.raises(ValueError, match=r"a text of 31 tokens to predict; allowed: at most 30"):
            MaskedLM(length=32).predict(*learned, pieces, ["[MASK]" * 31])

    def test_models_that_cannot(self):
        decoder = gpt.Config(vocab_size=64, n_positions=8, n_layers=1, d_model=8, n_heads=2).build()
        with pytest.raises(ValueError, match="the model GPT sees no word's right; allowed with MaskedLM: BERT"):
            MaskedLM().check(decoder)
        one = dataclasses.replace(CONFIG, n_segments=1).build()
        with pytest.raises(ValueError, match="model.n_segments=1 with task.next_sentence=True; allowed: 2"):
            MaskedLM().check(one)
        MaskedLM(next_sentence=False).check(one)
