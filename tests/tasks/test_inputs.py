"""What a body reads of texts, and the tasks that say one thing of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from jaxnlp.data.tokenizers import Characters, Tokenizer, WordPiece, build
from jaxnlp.models import bert
from jaxnlp.tasks.classification import Classification
from jaxnlp.tasks.embedding import Embedding, search
from jaxnlp.tasks.inputs import by_length, chances, parts, template
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.tasks.multiple_choice import MultipleChoice
from jaxnlp.tasks.regression import Regression
from jaxnlp.tasks.span_qa import SpanQA
from jaxnlp.tasks.tagging import Tagging
from jaxnlp.training.step import measure

CONFIG = bert.Config(vocab_size=40, n_positions=32, n_layers=1, d_model=8, n_heads=2)
WORDS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def pieces():
    return build(WordPiece(vocab_size=40), ["a b c d e"] * 2)


@pytest.fixture(scope="module")
def params():
    model = CONFIG.build(Classification(labels=("x", "y", "z")).heads)
    return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def roberta():
    vocabulary = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return Tokenizer(backend)


def with_processor(tokenizer):
    """The library's own form of a pair, for comparison."""
    backend = Backend.from_str(tokenizer.backend.to_str())
    if backend.token_to_id("[CLS]") is not None:
        backend.post_processor = processors.BertProcessing(*((t, backend.token_to_id(t)) for t in ("[SEP]", "[CLS]")))
    return backend


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pairs_are_joined_and_cut_as_the_library_does_it(pieces, kind):
    tokenizer = pieces if kind == "bert" else roberta()
    backend, form = with_processor(tokenizer), template(tokenizer)
    for length in range(6, 16):
        backend.enable_truncation(length, strategy="longest_first")
        for n in range(1, 9):
            for m in range(1, 9):
                a, b = " ".join((WORDS * 2)[:n]), " ".join((WORDS * 2)[1 : m + 1])
                theirs = backend.encode(a, b)
                ours = form.fit(tokenizer.encode(a), tokenizer.encode(b), length=length)
                assert ours["input_ids"].tolist() == theirs.ids
                if kind == "bert":
                    assert ours["token_type_ids"].tolist() == theirs.type_ids
                else:
                    assert "token_type_ids" not in ours
                single = form.fit(tokenizer.encode(a), length=length)
                assert single["input_ids"].tolist() == backend.encode(a).ids


def test_a_text_of_gpt_ends_with_its_end_and_a_pair_is_parted_by_it():
    form = template(build(Characters(), ["ab"]))
    assert form.join([2], [3])["input_ids"].tolist() == [2, 0, 3, 0]
    assert form.fit([2, 3, 2], length=3)["input_ids"].tolist() == [2, 3, 0]


def test_a_length_without_room_for_the_texts_is_refused(pieces):
    with pytest.raises(ValueError, match=r"task.length=4; allowed: 5 and more, 3 of them special"):
        template(pieces).fit([5], [6], length=4)


@pytest.mark.parametrize("item", ["a", ("a",), {"text": "a"}, {"text": "a", "pair": None}])
def test_what_is_no_pair_is_named(item):
    with pytest.raises(ValueError, match=r"to predict; allowed: the texts text, pair, in order or by name"):
        parts(item, ("text", "pair"))


def test_records_keep_their_order_and_see_no_padding(pieces):
    records = [template(pieces).join(list(range(5, 5 + n))) for n in (3, 40, 1, 7)] * 20
    found = by_length(
        lambda batch: (batch["input_ids"] * batch["attention_mask"]).sum(1), records, pad_id=0, max_length=64
    )
    assert [int(x) for x in found] == [int(record["input_ids"].sum()) for record in records]


def test_any_number_of_records_comes_in_few_shapes(pieces):
    """A service that gets one text, then seven, should not compile anew each time."""
    records, shapes = [template(pieces).join([5, 6])] * 70, set()

    def function(batch):
        shapes.add(batch["input_ids"].shape[0])
        return batch["input_ids"]

    for n in (*range(1, 33), 70):
        assert len(by_length(function, records[:n], pad_id=0, max_length=64)) == n
    assert shapes == {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize(
    ("task", "items"),
    [
        (Classification(labels=("x", "y", "z"), length=16), ["a b", "a " * 15]),
        (Regression(length=16), ["a b", ("a", "b " * 14)]),
        (Embedding(length=16), ["a b", "a " * 15]),
        (MultipleChoice(length=16), [("a", ["b " * 14])]),
    ],
)
def test_a_text_is_not_cut_in_silence(task, items, pieces, capsys):
    model = CONFIG.build(task.heads)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    task.predict(model, params, pieces, items)
    assert f"1 of {len(items)} inputs are longer than 16 tokens and cut" in capsys.readouterr().err
    task.predict(model, params, pieces, items[:1] if len(items) > 1 else [("a", ["b " * 12])])
    assert capsys.readouterr().err == ""


def test_what_is_cut_of_a_question_or_a_word_is_said(pieces, capsys):
    for task, item, message in (
        (SpanQA(length=16, stride=2, max_question_tokens=4), ("a " * 5, "b"), "1 of 1 questions are longer than 4 tok"),
        (Tagging(labels=("O",), length=8, overlap=1), ["a" * 7], "the word 'aaaaaaa'… has more than 6 tokens"),
    ):
        model = CONFIG.build(task.heads)
        params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        task.predict(model, params, pieces, [item])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("item", [None, 5, b"a", [1, 2], {"text": None}])
def test_what_is_no_text_is_named(item, pieces, params):
    task = Classification(labels=("x", "y", "z"))
    with pytest.raises(ValueError, match=r"to predict; allowed: the texts text"):
        task.predict(CONFIG.build(task.heads), params, pieces, ["a", item])


def test_embeddings_are_pooled_over_real_tokens_and_searched_by_their_angle(pieces, params):
    """Against numpy, on the hidden states of each text alone."""
    model, texts = CONFIG.build(), ["a b", "c", "e d c b a"]
    body = {name: tree for name, tree in params.items() if name != "heads"}
    rows = [jnp.asarray(template(pieces).join(pieces.encode(text))["input_ids"])[None] for text in texts]
    states = [np.asarray(model.apply({"params": body}, row)["last_hidden_state"])[0] for row in rows]
    expected = {"mean": [x.mean(0) for x in states], "max": [x.max(0) for x in states]}
    expected |= {"first": [x[0] for x in states], "last": [x[-1] for x in states]}
    for pooling, vectors in expected.items():
        found = [one["embedding"] for one in Embedding(pooling=pooling).predict(model, body, pieces, texts)]
        np.testing.assert_allclose(found, vectors, atol=1e-6)
    unit = np.array([x / np.linalg.norm(x) for x in expected["mean"]])
    normal = Embedding(normalize=True).predict(model, body, pieces, texts)
    np.testing.assert_allclose([one["embedding"] for one in normal], unit, atol=1e-6)
    cosines = unit @ unit.T
    for query, ranked in zip(
        cosines, search(normal, Embedding().predict(model, body, pieces, texts), k=2), strict=True
    ):
        assert [i for i, _ in ranked] == np.argsort(-query)[:2].tolist()
        np.testing.assert_allclose([cosine for _, cosine in ranked], np.sort(query)[:0:-1], atol=1e-6)
    assert search([], normal, k=1) == []
    with pytest.raises(ValueError, match="k=4 of 3 texts; allowed: 1 to 3"):
        search(normal, normal, k=4)


def test_a_pair_is_classified_by_name_or_in_order(pieces, params):
    task = Classification(labels=("x", "y", "z"), text="premise", pair="hypothesis", length=16)
    model = CONFIG.build(task.heads)
    by_name = [{"premise": "a b", "hypothesis": "c"}, {"premise": "d", "hypothesis": "e e e e e e e e e e e e e e e"}]
    first = task.predict(model, params, pieces, by_name)
    again = task.predict(model, params, pieces, [tuple(item.values()) for item in by_name])
    swapped = task.predict(model, params, pieces, [tuple(item.values())[::-1] for item in by_name])
    assert first == again
    assert all(a["scores"] != b["scores"] for a, b in zip(first, swapped, strict=True))
    ids = template(pieces).join(*(pieces.encode(text) for text in by_name[0].values()))
    logits = model.apply({"params": params}, **{name: jnp.asarray(value)[None] for name, value in ids.items()})[
        "logits"
    ]
    np.testing.assert_allclose(list(first[0]["scores"].values()), jax.nn.softmax(logits[0]), atol=1e-6)


@pytest.mark.parametrize("pair", [None, "next"])
@pytest.mark.parametrize("name", ["pair", "text_pair"])
def test_a_second_text_by_name_is_read(pieces, params, pair, name):
    """transformers' pipelines call it text_pair."""
    task = Classification(labels=("x", "y", "z"), pair=pair, length=16)
    by_name, in_order = task.predict(
        CONFIG.build(task.heads), params, pieces, [{"text": "a", name: "b", "label": 0}, ("a", "b")]
    )
    assert by_name == in_order
    ids = template(pieces).join(pieces.encode("a"), pieces.encode("b"))
    assert task.features([{"text": "a", name: "b"}], pieces)[0]["input_ids"].tolist() == ids["input_ids"].tolist()


@pytest.mark.parametrize(
    ("pair", "item", "name"),
    [
        (None, {"text": "a", "sentence2": "b"}, "sentence2"),
        (None, {"text": "a", "text_pair": "b", "pair": "c"}, "pair"),
        ("next", {"text": "a", "next": "b", "text_pair": "c"}, "text_pair"),
    ],
)
def test_a_second_text_that_would_not_be_read_is_named(pieces, pair, item, name):
    task = Classification(labels=("x", "y"), pair=pair)
    with pytest.raises(ValueError, match=rf"found '{name}' in {{'text': 'a'.*}} to predict; allowed: the texts text"):
        task.records([item], pieces)
    assert len(task.encode([{"next": "b", "label": 0} | item], pieces)) == 1, "in an example to learn, it is no fault"


@pytest.mark.parametrize(
    ("task", "item"),
    [
        (Classification(labels=("x", "y"), length=16), "a b"),
        (Regression(length=16), "a b"),
        (MultipleChoice(length=16), ("a", ["b", "c"])),
        (Tagging(labels=("O", "X"), length=16, overlap=4), ["a", "b"]),
        (SpanQA(length=16, stride=2, max_question_tokens=4), ("a", "b")),
        (MaskedLM(length=16), "a [MASK]"),
    ],
)
def test_logits_that_are_no_numbers_say_nothing(task, item, pieces):
    model = CONFIG.build(task.heads)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    assert len(task.predict(model, params, pieces, [item])) == 1
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    with pytest.raises(ValueError, match="the model's logits are nan for .*[ab].*; allowed: finite numbers"):
        task.predict(model, params, pieces, [item])


def test_chances_are_a_softmax():
    logits = np.float32([1.0, -np.inf, 1000.0, 999.0])
    np.testing.assert_allclose(chances(logits, "a"), jax.nn.softmax(logits), rtol=1e-6)
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(ValueError, match=f"the model's logits are {bad} for 'a'; allowed: finite numbers"):
            chances([bad, -np.inf], "a")


@pytest.mark.parametrize("task", [Classification, Tagging])
def test_labels_differ(task):
    with pytest.raises(ValueError, match=r"task.labels=\('x', 'x', 'y'\); allowed: names that differ"):
        task(labels=("x", "x", "y"))


def test_regression_learns_the_square_of_the_error(pieces):
    """Against the formula by hand; and its scores against numpy's and the ranks'."""
    task = Regression(length=16)
    model = CONFIG.build(task.heads)
    params = model.init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    examples = [{"text": text, "score": value} for text, value in (("a", 1.0), ("b c", 2.5), ("d e a", -3.0))]
    scores = np.array([one["score"] for one in task.predict(model, params, pieces, [e["text"] for e in examples])])
    true = np.array([e["score"] for e in examples])
    records = task.encode(examples, pieces)
    ids = np.zeros((3, 8), np.int32)
    for row, record in zip(ids, records, strict=True):
        row[: len(record["input_ids"])] = record["input_ids"]
    batch = {
        "input_ids": ids,
        "attention_mask": np.int32(ids > 0),
        "labels": np.float32(true),
        "weights": np.ones(3, np.float32),
    }
    total, weight = measure(model, task, params, jax.tree.map(jnp.asarray, batch), None)["loss"]
    np.testing.assert_allclose(total / weight, np.mean((scores - true) ** 2), rtol=1e-5)
    found = task.score(model, params, pieces, examples)
    np.testing.assert_allclose(found["pearson"], np.corrcoef(scores, true)[0, 1], rtol=1e-6)
    ranks = np.corrcoef(scores.argsort().argsort(), true.argsort().argsort())[0, 1]
    np.testing.assert_allclose(found["spearman"], ranks, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "4", None, b"4"])
def test_a_label_that_is_no_number_is_refused(pieces, value):
    with pytest.raises(ValueError, match=r"score=.* in the data; allowed: a finite number"):
        Regression().encode([{"text": "a", "score": value}], pieces)


@pytest.mark.parametrize("label", [float("nan"), None, b"no", -0.5])
def test_what_is_no_number_is_no_class(label, pieces):
    with pytest.raises(ValueError, match=rf"label={label!r} in the data; allowed: -1 … 0, or no"):
        Classification(labels=("no",)).encode([{"text": "a", "label": label}], pieces)
