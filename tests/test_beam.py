"""Beam search against brute force over every text, against transformers' (golden arrays), and against greedy."""

import itertools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import decoding
from jaxnlp.decoding import beam_search
from jaxnlp.models import gpt
from jaxnlp.nn.cache import widened
from jaxnlp.nn.candidates import candidates

GOLDEN = Path(__file__).parent / "golden"
WORDS, END, N = 4, 2, 4  # words 0 … 3, the others of the V are padding, with logits -inf
V, WIDTH = 128, 5
ALL = 121  # texts of at most N words: 1 + 3 + 9 + 27 that end, and 81 that don't


@pytest.fixture(autouse=True)
def _strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(WORDS, WIDTH)), 1.5 * random.normal(size=(WIDTH, WIDTH))


def network(seed: int = 0, width: int = V):
    """A recurrent network, h = tanh(x + h U), logits = 2 h x', that also counts its steps in a scalar."""
    table, recurrent = (jnp.asarray(x, jnp.float32) for x in weights(seed))

    def step(tokens, state):
        h = jnp.tanh(table[jnp.minimum(tokens, WORDS - 1)] + jnp.matmul(state["h"], recurrent, precision="highest"))
        logits = 2 * jnp.matmul(h, table.T, precision="highest")
        padding = jnp.full((len(tokens), width - WORDS), -jnp.inf)
        return jnp.concatenate([logits, padding], axis=1), {"h": h, "n": state["n"] + 1}

    return step


def begin(n: int = 3):
    """Token and state of n rows, all different."""
    h = jnp.asarray(np.random.default_rng(9).normal(size=(3, WIDTH)), jnp.float32)[:n]
    return jnp.arange(3, dtype=jnp.int32)[:n] % WORDS, {"h": h, "n": jnp.int32(0)}


def search(n_beams, *, n=3, seed=0, max_new_tokens=N, **options):
    token, state = begin(n)

    @jax.jit
    def run(state, token):
        options.setdefault("end_id", END)
        return beam_search(network(seed), state, token, n_beams=n_beams, max_new_tokens=max_new_tokens, **options)

    return run(state, token)


def log_probabilities(row: int, words, seed: int = 0) -> np.ndarray:
    """log p of each word of a text, in numpy and float64."""
    (table, recurrent), (token, state) = weights(seed), begin()
    h, last, out = np.asarray(state["h"][row], float), int(token[row]), []
    for word in words:
        h = np.tanh(table[last] + h @ recurrent)
        logits = 2 * h @ table.T
        out.append(logits[word] - np.log(np.exp(logits).sum()))
        last = word
    return np.array(out)


def score(row: int, words, alpha: float, seed: int = 0) -> float:
    return log_probabilities(row, words, seed).sum() / ((5 + len(words)) / 6) ** alpha


def every_text():
    for n in range(1, N + 1):
        for words in itertools.product(range(WORDS), repeat=n):
            if END not in words[:-1] and (words[-1] == END or n == N):
                yield words


@pytest.fixture(scope="module")
def searched():
    """alpha -> the n best of a beam wide enough for every text; one compiled search for all."""
    token, state = begin()

    @jax.jit
    def run(alpha):
        options = {"n_beams": V, "max_new_tokens": N, "end_id": END, "pad_id": 9, "n_best": V}
        return beam_search(network(), state, token, length_penalty=alpha, **options)

    beams = {alpha: run(alpha) for alpha in (0.0, 0.6, 2.0, -1.0)}
    assert run._cache_size() == 1
    return beams


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0, -1.0])
def test_a_wide_beam_finds_every_text_in_its_order(searched, alpha):
    beams = searched[alpha]
    for row in range(3):
        expected = sorted(((score(row, words, alpha), words) for words in every_text()), reverse=True)
        assert len(expected) == ALL
        np.testing.assert_allclose(beams.scores[row, :ALL], [s for s, _ in expected], rtol=1e-5)
        tokens = [words + (9,) * (N - len(words)) for _, words in expected]
        np.testing.assert_array_equal(beams.tokens[row, :ALL], tokens)
        np.testing.assert_array_equal(beams.lengths[row, :ALL], [len(words) for _, words in expected])


def test_beyond_the_last_text_there_is_nothing(searched):
    beams = searched[0.6]
    np.testing.assert_array_equal(beams.scores[:, ALL:], -np.inf)
    np.testing.assert_array_equal(beams.lengths[:, ALL:], 0)
    np.testing.assert_array_equal(beams.tokens[:, ALL:], 9)


def test_the_order_depends_on_the_length_penalty(searched):
    """Else the comparison with brute force would pass without one."""
    assert np.any(searched[0.0].tokens != searched[0.6].tokens)


def test_a_beam_of_1_is_greedy():
    seed = 1
    token, state = begin()
    start = decoding.start(
        state, token[:, None], jnp.ones((3, 1), bool), jax.random.split(jax.random.key(0), 3), max_new_tokens=12
    )
    greedy = jax.jit(lambda d: decoding.decode(network(seed), d, 12, end_id=END, pad_id=0))(start).context.new
    beams = search(1, seed=seed, max_new_tokens=12)
    np.testing.assert_array_equal(beams.tokens[:, 0], greedy)


def plain_beam_search(row, n_beams, n_new, alpha, seed):
    """The same search in numpy, a row at a time and without an early stop: (score, words), best first."""
    live, ended = [((), 0.0)], []
    for _ in range(n_new):
        grown = [
            ((*words, word), log_probabilities(row, (*words, word), seed).sum())
            for words, _ in live
            for word in range(WORDS)
        ]
        grown.sort(key=lambda text: -text[1])
        ended += [text for text in grown[:n_beams] if text[0][-1] == END]
        live = [text for text in grown if text[0][-1] != END][:n_beams]
    return sorted(((s / ((5 + len(words)) / 6) ** alpha, words) for words, s in ended + live), reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_narrow_beam_stops_early_and_finds_what_it_finds_without(alpha):
    n_new, seed, steps = 14, 9, []

    @jax.jit
    def run(state, token, alpha):
        def step(tokens, state):
            logits, new = network(seed)(tokens, state)
            jax.debug.callback(lambda n: steps.append(int(n)), new["n"])
            return logits, new

        options = {"n_beams": 3, "n_best": 2, "max_new_tokens": n_new, "end_id": END}
        return beam_search(step, state, token, length_penalty=alpha, **options)

    token, state = begin()
    beams = run(state, token, alpha)
    jax.effects_barrier()
    assert max(steps) < n_new
    for row in range(3):
        expected = plain_beam_search(row, 3, n_new, alpha, seed)[:2]
        np.testing.assert_allclose(beams.scores[row], [s for s, _ in expected], rtol=1e-5)
        for i, (_, words) in enumerate(expected):
            assert tuple(beams.tokens[row, i, : len(words)].tolist()) == words and beams.lengths[row, i] == len(words)


@pytest.mark.parametrize("alpha, p_end, length", [(2.0, 0.5, 8), (-1.0, 0.4, 2)])
def test_a_row_does_not_stop_before_a_text_that_its_length_makes_the_best(alpha, p_end, length):
    """It ends at once, or at `length`, the last of 8 or not, with certainty."""

    def step(tokens, n):
        end = jnp.where(n == 0, p_end, jnp.where(n + 1 == length, 1.0, 0.0))
        return jnp.broadcast_to(jnp.log(jnp.stack([1 - end, end])), (len(tokens), 2)), n + 1

    options = {"n_beams": 2, "max_new_tokens": 8, "end_id": 1, "length_penalty": alpha}
    beams = jax.jit(lambda token: beam_search(step, jnp.int32(0), token, **options))(jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(beams.lengths, [[length]])
    np.testing.assert_allclose(beams.scores, [[np.log(1 - p_end) / ((5 + length) / 6) ** alpha]], rtol=1e-5)


def test_scores_are_those_of_the_texts_and_the_texts_differ():
    beams = search(4, n_best=4, max_new_tokens=8, length_penalty=0.6, seed=1)
    assert np.all(np.diff(beams.scores, axis=1) <= 0)
    assert len(set(np.ravel(beams.lengths).tolist())) > 1
    for row in range(3):
        texts = [tuple(t[:n]) for t, n in zip(beams.tokens[row].tolist(), beams.lengths[row].tolist(), strict=True)]
        assert len(set(texts)) == 4
        np.testing.assert_allclose(beams.scores[row], [score(row, words, 0.6, 1) for words in texts], rtol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    together, alone = (search(3, n=n, n_best=3, max_new_tokens=10) for n in (3, 1))
    np.testing.assert_array_equal(together.tokens[:1], alone.tokens)
    np.testing.assert_allclose(together.scores[:1], alone.scores, rtol=1e-5)


def test_a_processor_sees_the_beams_own_words():
    """No word twice: of the 3 words and the end, 4 x 3 x 2 orders, cut at the end."""

    def once(logits, context):
        written = jnp.arange(context.new.shape[1])[None, :, None] < context.n_new
        seen = ((context.new[:, :, None] == jnp.arange(V)[None, None]) & written).any(1)
        return jnp.where(seen, -jnp.inf, logits)

    beams = search(32, n_best=32, process=once)
    for row in range(3):
        texts = {
            tuple(t[:n]) for t, n in zip(beams.tokens[row].tolist(), beams.lengths[row].tolist(), strict=True) if n
        }
        orders = itertools.permutations(range(WORDS))
        assert texts == {order[: order.index(END) + 1] for order in orders}


@pytest.mark.parametrize("shared", [False, True])
def test_the_beam_search_of_hugging_face(shared, monkeypatch):
    """Through a key-value cache with a scalar index: one for each beam, or one for all of a text, widened twice."""
    monkeypatch.setattr("jaxnlp.decoding.beams.ROOM", 3)
    golden = dict(np.load(GOLDEN / "beam.npz"))
    oracle = runpy.run_path(str(GOLDEN / "gpt2.py"))
    arrays = {k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")}
    params = jax.tree.map(jnp.asarray, oracle["params_of"](arrays))
    model = gpt.Config(n_layers=2, d_model=32, n_heads=4, vocab_size=61, n_positions=24, dropout=0.0).build()
    prompt, (_, n, n_new) = jnp.asarray(golden["prompt"]), golden["tokens"].shape
    end_id = int(golden["end_id"])

    def together(cache):
        return {**cache, "layers": decoding.Shared(cache["layers"])}

    def apart(cache):
        return {**cache, "layers": cache["layers"].tree}

    def step(tokens, cache):
        out = model.apply({"params": params}, tokens[:, None], cache=apart(cache) if shared else cache)
        return out["logits"][:, 0], together(out["cache"]) if shared else out["cache"]

    def widen(cache, more):
        return together(widened(apart(cache), prompt.shape[1] - 1 + n * more))

    @jax.jit
    def run(prompt):
        cache = model.init_cache(len(prompt), prompt.shape[1] - 1 + (0 if shared else n_new))
        cache = model.apply({"params": params}, prompt[:, :-1], cache=cache, logits=False)["cache"]
        options = {"n_beams": n, "n_best": n, "max_new_tokens": n_new, "end_id": end_id, "pad_id": end_id}
        if shared:
            return beam_search(step, together(cache), prompt[:, -1], widen=widen, **options)
        return beam_search(step, cache, prompt[:, -1], **options)

    beams = run(prompt)
    assert n_new > 6
    np.testing.assert_array_equal(beams.tokens, golden["tokens"])
    np.testing.assert_allclose(beams.scores, golden["scores"], rtol=1e-5)
    assert len(set(np.ravel(beams.lengths).tolist())) > 3


# ------------------------------------------------------------------------------------------------- the candidates


@pytest.mark.parametrize("n, size, k", [(1, 1, 2), (3, 7, 6), (3, 64, 6), (4, 200, 8), (2, 256, 4), (5, 129, 10)])
def test_the_candidates_are_those_of_a_full_sort_with_equals_in_their_order(n, size, k):
    random = np.random.default_rng(0)
    logits = random.integers(-2, 3, (2 * n, size)).astype(np.float32)
    logits[random.random(logits.shape) < 0.1] = -np.inf
    logits[:, -1] = 3.0  # its block comes first, but not the equals in it
    scores = np.float32([[0.0] * n, [-1.0] * n])
    scores[0, n // 2 :] = -np.inf if n > 1 else 0.0
    got, beam, token = jax.jit(candidates, static_argnums=2)(scores, logits, k)
    every = scores[:, :, None] + np.asarray(jax.nn.log_softmax(logits)).reshape(2, n, size)
    order = np.argsort(-every.reshape(2, -1), axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(every.reshape(2, -1), order, axis=1)
    real = np.isfinite(best)
    m = best.shape[1]
    np.testing.assert_allclose(got[:, :m], best, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(beam * size + token)[:, :m][real], order[real])
    assert np.all(token < size) and np.all(np.asarray(got)[:, m:] == -np.inf)


# ------------------------------------------------------------------------------------------------------ bad input


def spoiled(where, value):
    """The network with logits of `value` at `where(tokens, n)`, [rows, V] or [rows, 1]."""

    def step(tokens, state):
        logits, state = network()(tokens, state)
        return jnp.where(where(tokens, state["n"]), value, logits), state

    return step


def texts_of(step, **options):
    token, state = begin()
    options = {"n_beams": 3, "n_best": 3, "max_new_tokens": 5, "end_id": END, "pad_id": 9} | options
    return jax.jit(lambda token: beam_search(step, state, token, **options))(token)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_logit_that_is_no_number_counts_as_minus_infinity(value):
    at_word = lambda tokens, n: jnp.arange(V)[None] == 1  # noqa: E731
    bad, expected = texts_of(spoiled(at_word, value)), texts_of(spoiled(at_word, -jnp.inf))
    assert not np.any(bad.tokens == 1) and np.all(np.isfinite(bad.scores))
    jax.tree.map(np.testing.assert_array_equal, bad, expected)


def test_a_row_without_a_number_has_no_text_and_spoils_no_other():
    first_row = lambda tokens, n: (jnp.arange(len(tokens)) < 3)[:, None]  # noqa: E731
    bad, good = texts_of(spoiled(first_row, jnp.nan)), texts_of(network())
    np.testing.assert_array_equal(bad.scores[0], -np.inf)
    np.testing.assert_array_equal(bad.lengths[0], 0)
    np.testing.assert_array_equal(bad.tokens[0], 9)
    jax.tree.map(lambda b, g: np.testing.assert_array_equal(b[1:], g[1:]), bad, good)


def test_a_text_that_meets_no_number_is_dropped_and_those_that_ended_stay():
    later = lambda tokens, n: jnp.broadcast_to(n > 2, (len(tokens), 1))  # noqa: E731
    beams = texts_of(spoiled(later, jnp.nan), n_beams=16, n_best=16)
    for row in range(3):
        n = 1 + 3  # ends at once, or after one word
        assert np.all(np.isfinite(beams.scores[row, :n])) and np.all(beams.scores[row, n:] == -np.inf)
        assert np.all(np.asarray(beams.lengths[row, :n]) <= 2) and np.all(np.asarray(beams.lengths[row, n:]) == 0)


def test_padded_words_never_come_while_a_real_one_is_there(searched):
    tokens, lengths = np.asarray(searched[0.0].tokens), np.asarray(searched[0.0].lengths)
    assert np.all((tokens < WORDS) | (np.arange(N) >= lengths[:, :, None]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_beams": V + 1}, "n_beams=129; allowed: at most the 128 words of the vocabulary"),
        ({"n_beams": 0}, "n_beams=0; allowed: 1 and more"),
        ({"n_beams": 2, "n_best": 3}, "n_best=3; allowed: 1 to n_beams=2"),
        ({"n_beams": 2, "n_best": 0}, "n_best=0; allowed: 1 to n_beams=2"),
        ({"n_beams": 2, "max_new_tokens": 0}, "max_new_tokens=0; allowed: 1 and more"),
    ],
)
def test_a_bad_value_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        search(**options)


def test_a_state_without_the_rows_first_is_refused():
    token, state = begin()
    with pytest.raises(ValueError, match=r"state\['h'\] has shape \(2, 5\); allowed: 3 rows first, or a scalar"):
        beam_search(network(), state | {"h": state["h"][:2]}, token, n_beams=2, max_new_tokens=3, end_id=END)


def test_repeat_lays_the_copies_of_a_row_side_by_side():
    shared = decoding.Shared(jnp.array([4, 5]))
    repeated = decoding.repeat({"x": jnp.array([[1], [2]]), "index": jnp.int32(3), "shared": shared}, 2)
    np.testing.assert_array_equal(repeated["x"], [[1], [1], [2], [2]])
    assert repeated["index"] == 3
    np.testing.assert_array_equal(repeated["shared"].tree, [4, 5])
