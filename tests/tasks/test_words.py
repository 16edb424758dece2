"""Words by their embeddings, and the gates over a sentence: small tables whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.tokenizers import ByteBPE, Characters, Pair, WordPiece, build
from jaxnlp.models import bert, gpt, rnn, seq2seq
from jaxnlp.run import Run
from jaxnlp.tasks import words
from jaxnlp.training.experiment import Data, Experiment
from jaxnlp.training.report import points_png

TEXT = ["the cat and the dog", "the cow 하나 둘 하나", "The cat"]


@pytest.fixture(scope="module")
def letters():
    return build(Characters(), ["abc"])  # 0 end, 1 unknown, 2 a, 3 b, 4 c


def table(*rows, size=128):
    return np.concatenate([np.array(rows, np.float32), np.ones((size - len(rows), len(rows[0])), np.float32)])


def test_neighbours_are_by_angle_and_never_special_or_padding(letters):
    rows = table([4, 1], [4, 1], [4, 0], [0, 3], [1, 1])  # the end, <unk> and padding lie nearer to a than b and c
    found = words.neighbours(rows, letters, "a")
    assert [name for name, _ in found] == ["c", "b"]
    np.testing.assert_allclose([cosine for _, cosine in found], [0.5**0.5, 0], atol=1e-6)
    assert words.neighbours(jnp.asarray(rows, jnp.bfloat16), letters, "a", k=1)[0][0] == "c"


def test_a_word_of_several_tokens_is_the_mean_of_its_rows(letters):
    found = dict(words.neighbours(table([0, 0], [0, 0], [2, 0], [0, 2], [1, -1]), letters, "aab"))
    np.testing.assert_allclose([found["a"], found["b"], found["c"]], np.array([2, 1, 0.5**0.5]) / 5**0.5, atol=1e-6)


def test_a_row_of_zeros_is_at_a_right_angle_to_all(letters):
    assert words.neighbours(table([1, 0], [1, 0], [1, 0], [0, 0], [-1, 0]), letters, "a") == (("b", 0.0), ("c", -1.0))


def test_a_word_in_a_text_has_its_space():
    """Byte-level tokens of "dog" and " dog" look alike: the second is the word, and neither is its neighbour."""
    tokenizer = build(ByteBPE(300), ["the cat the dog cat dog"] * 9)
    (inside,) = tokenizer.encode(" dog")
    rows = np.eye(tokenizer.vocab_size, dtype=np.float32)
    rows[:, inside] += 0.5
    found = words.neighbours(rows, tokenizer, "dog", k=400)
    np.testing.assert_allclose(found[0][1], 0.5 / 1.25**0.5, rtol=1e-6)
    assert len({name for name, _ in found}) == len(found) and "dog" not in dict(found)


@pytest.mark.parametrize("word", ["x", "", " ", "ax"])
def test_an_unknown_word_is_named(letters, word):
    with pytest.raises(ValueError, match=f"word: found {word!r}, which the vocabulary lacks"):
        words.neighbours(np.ones((128, 2), np.float32), letters, word)


def test_what_does_not_fit_is_refused(letters):
    with pytest.raises(ValueError, match="k: found 0; allowed: 1 and more"):
        words.neighbours(np.ones((128, 2), np.float32), letters, "a", k=0)
    with pytest.raises(ValueError, match="table: found 4 rows; allowed: one for each of 5 tokens"):
        words.neighbours(np.ones((4, 2), np.float32), letters, "a")
    with pytest.raises(ValueError, match="word_map: found 2 words; allowed: 3 and more"):
        words.word_map(np.ones((128, 2), np.float32), letters, ["a", "b"])


def test_a_map_keeps_the_distances_of_rows_in_a_plane(letters):
    """Unit vectors of a plane in 5 dimensions: principal components turn and mirror it, and do no more."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((5, 2)))[0]
    rows = table(*(rng.standard_normal((5, 2)) @ plane.T))
    points = words.word_map(rows, letters, ["a", "b", "c", "ab"])
    units = [row / np.linalg.norm(row) for row in (*rows[2:5], rows[2] + rows[3])]
    apart = lambda x: np.linalg.norm(np.asarray(x)[:, None] - np.asarray(x)[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(apart(points.places), apart(units), atol=1e-5)
    assert np.var(points.places, axis=0)[0] > np.var(points.places, axis=0)[1] and points.names[3] == "ab"
    np.testing.assert_allclose(np.mean(points.places, axis=0), 0, atol=1e-6)


def test_the_sign_of_a_map_is_fixed(letters):
    """Along the first axis a is on the positive side and its weight is the largest, whatever the SVD's sign."""
    rows = table([0, 0], [0, 0], [1, 0.1], [-1, 0.1], [-1, -0.1])
    (a, b, c) = words.word_map(rows, letters, "abc").places
    assert a[0] > 0 > max(b[0], c[0]) and b[1] > c[1]


def test_frequent_words_are_whole_known_and_counted_by_their_tokens():
    assert words.frequent(TEXT, build(WordPiece(60), TEXT), 3) == ("the", "cat", "하나")
    assert words.frequent(TEXT, build(Characters(), ["thecatandT"]), 9) == ("the", "cat", "The", "and")
    assert words.frequent([], build(Characters(), ["a"]), 3) == ()


def test_tables_of_models_by_their_names():
    ids = jnp.zeros((1, 1), jnp.int32)

    def made(config):
        shapes = jax.eval_shape(config.build().init, jax.random.key(0), ids)["params"]
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    params = made(rnn.Config(vocab_size=9, d_embed=3, d_model=4))
    assert words.table_of(params).shape == (128, 3) and words.table_of(params, "output").shape == (128, 4)
    assert words.table_of(made(gpt.Config(vocab_size=9, n_layers=1, d_model=8, n_heads=2))).shape == (128, 8)
    params = made(seq2seq.Config(vocab_size=9, target_vocab_size=200, d_embed=4, d_model=4))
    assert words.table_of(params, "target").shape == (256, 4)
    for name in (None, "embed"):
        with pytest.raises(ValueError, match=f"table: found {name!r}; allowed: one of output, source, target"):
            words.table_of(params, name)


def a_run(config, tokenizer, params=None):
    model = config.build()
    params = params or jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    experiment = Experiment(model=config, task=None, data=Data(train=[]), steps=1, batch_size=1)
    return Run(model, params, tokenizer, experiment.task, experiment)


def test_a_run_shows_the_words_that_it_reads_and_those_that_it_writes(letters):
    tokenizer = build(Pair(Characters(), Characters()), ["abc", "xyz"])
    tables = np.random.default_rng(0).standard_normal((2, 128, 4))
    params = {"source": {"tokens": tables[0]}, "target": {"tokens": tables[1]}}
    run = a_run(seq2seq.Config(vocab_size=5, target_vocab_size=5, d_embed=4, d_model=4), tokenizer, params)
    assert {name for name, _ in run.neighbours("a", table="source")} == {"b", "c"}
    assert {name for name, _ in run.neighbours("x", table="target")} == {"y", "z"}
    assert points_png(run.word_map(["a", "b", "cab"], table="source")).startswith(b"\x89PNG")


def test_outputs_on_request_of_any_model(letters):
    """Gates of the encoder stand before the decoder's; what a model has not is named with what it has."""
    ids = {"input_ids": np.array([[2, 3, 4]]), "decoder_input_ids": np.array([[2, 3]])}
    own = {"vocab_size": 5, "d_embed": 4, "d_model": 4, "cell": "lstm", "attention": "general"}
    run = a_run(seq2seq.Config(**own), letters)
    out = run.apply(ids, outputs=("gates", "cross_attentions"))
    assert out["cross_attentions"][0].shape == (1, 2, 3) and len(out["cross_attentions"]) == 1
    encoder, decoder = out["gates"]
    assert set(encoder) == {"forward", "backward"} and set(decoder) == {"forward"}
    assert encoder["backward"]["forget"].shape == (1, 3, 4) and decoder["forward"]["output"].shape == (1, 2, 4)
    with pytest.raises(ValueError, match=r"Seq2Seq as it .* no attentions; allowed: cross_attentions, gates"):
        run.apply(ids, outputs=("attentions",))
    with pytest.raises(ValueError, match=r"token_type_ids holds 2; allowed: 0 … 1 \(model.n_segments=2"):
        config = bert.Config(vocab_size=6, n_positions=4, n_layers=1, d_model=4, n_heads=1)
        Run(config.build(), {}, letters, None).apply({"input_ids": np.ones((1, 2), int), "token_type_ids": [[0, 2]]})
    with pytest.raises(ValueError, match=r"decoder_input_ids holds 9; allowed: 0 … 4 \(model.output_vocab_size=5"):
        run.apply({**ids, "decoder_input_ids": [[9]]})
    elman = a_run(rnn.Config(vocab_size=5, cell="rnn", n_layers=1, d_model=4), letters)
    with pytest.raises(ValueError, match="RNN as it is configured has no gates; allowed: none"):
        elman.apply({"input_ids": np.array([[2, 3]])}, outputs=("gates",))


def test_gates_as_pictures(letters):
    run = a_run(rnn.Config(vocab_size=5, cell="gru", n_layers=2, d_model=6), letters)
    text = "cab"
    layers = run.apply({"input_ids": np.array([letters.encode(text)])}, outputs=("gates",))["gates"]
    pictures = words.gate_heatmaps(layers, [letters.spell(i) for i in letters.encode(text)], n_units=4)
    assert [picture.title for picture in pictures[:2]] == ["Layer 1, forward: reset", "Layer 1, forward: update"]
    last = pictures[-1]
    assert len(pictures) == 6 and last.title == "Layer 2, forward: candidate" and last.columns == ("c", "a", "b")
    np.testing.assert_allclose(last.values, layers[1]["forward"]["candidate"][0, :, :4].T, atol=1e-6)
    assert last.rows == ("unit 1", "unit 2", "unit 3", "unit 4")
