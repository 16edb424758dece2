"""The processors against Hugging Face's (golden arrays), and the loop on steps simple enough to know by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import decoding
from jaxnlp.decoding import Context, banned, chain, forced, repetition_penalty, temperature, top_k, top_p

GOLDEN = np.load(Path(__file__).parent / "golden" / "decoding.npz")
V = 7


def context(tokens, prompt_mask=None, n_new=0) -> Context:
    """The first 8 tokens are the prompt, the others are new."""
    prompt = jnp.asarray(tokens[:, :8])
    mask = jnp.ones(prompt.shape, bool) if prompt_mask is None else jnp.asarray(prompt_mask)
    return Context(prompt, mask, jnp.asarray(tokens[:, 8:]), jnp.int32(n_new))


@pytest.mark.parametrize(
    "name, process",
    {
        "temperature": temperature(0.7),
        "top_k": top_k(5),
        "top_k_all": top_k(1000),
        "top_p": top_p(0.8),
        "top_p_small": top_p(1e-6),
        "repetition_penalty": repetition_penalty(1.3),
        "banned": banned([GOLDEN[f"processors/words/{i}"].tolist() for i in range(6)]),
        "all": chain(repetition_penalty(1.3), temperature(0.7), top_k(30), top_p(0.9)),
    }.items(),
)
def test_a_processor_gives_what_hugging_face_gives(name, process):
    logits, tokens = GOLDEN["processors/logits"], GOLDEN["processors/tokens"]
    ours = jax.jit(lambda process, *args: process(*args))(process, logits, context(tokens, n_new=4))
    np.testing.assert_allclose(ours, GOLDEN[f"processors/{name}"], rtol=1e-6)


def test_top_p_of_1_keeps_every_token():
    logits = jnp.array([[50.0, 0.0, -50.0, -80.0]])
    np.testing.assert_array_equal(top_p(1.0)(logits, None), logits)


def test_top_k_keeps_tokens_that_equal_the_kth():
    kept = top_k(2)(jnp.array([[1.0, 3.0, -2.0, 1.0], [-4.0, -1.0, -2.0, -jnp.inf]]), None)
    inf = jnp.inf
    np.testing.assert_array_equal(kept, jnp.array([[1.0, 3.0, -inf, 1.0], [-inf, -1.0, -2.0, -inf]]))


def test_temperature_0_is_greedy_with_the_first_of_equals():
    logits = temperature(0)(jnp.array([[1.0, 3.0, 3.0]]), None)
    np.testing.assert_array_equal(jax.nn.softmax(logits), [[0, 1, 0]])


def test_the_penalty_skips_padding_and_what_is_not_written_yet():
    logits = jnp.ones((1, 101))
    tokens = np.arange(12)[None]
    mask = np.arange(8)[None] >= 3
    penalised = np.flatnonzero(repetition_penalty(2.0)(logits, context(tokens, mask, n_new=2))[0] != 1)
    np.testing.assert_array_equal(penalised, [3, 4, 5, 6, 7, 8, 9])


def test_a_banned_word_may_begin_in_the_prompt_but_not_in_its_padding():
    tokens, mask = np.arange(12)[None], np.arange(8)[None] >= 6
    words = [[6, 7, 50], [5, 6, 7, 51], [7, 8, 52], [8, 53]]
    for n_new, expected in [(0, [50]), (1, [52, 53])]:
        logits = banned(words)(jnp.zeros((1, 101)), context(tokens, mask, n_new))
        np.testing.assert_array_equal(np.flatnonzero(np.isneginf(logits[0])), expected)


def forcing(words, n, seed):
    """The texts of n tokens, and whether each token was free, of a sampled decoding that forces the words."""
    free = []

    def note(logits, context):
        jax.debug.callback(
            lambda finite: free.append(np.asarray(finite) > 1), jnp.isfinite(logits).sum(1), ordered=True
        )
        return logits

    process = chain(forced(words, end_id=5, max_new_tokens=n), note)
    run = jax.jit(lambda d: decoding.decode(noise, d, n, process=process, choose=decoding.sample, end_id=5, pad_id=V))
    start = begin([[i, i % V] for i in range(24)], n=16, seed=seed, pad_id=V)
    new = run(start).context.new
    jax.effects_barrier()
    return np.asarray(new), np.array(free).T


def holds(text, word):
    return any(text[i : i + len(word)] == word for i in range(len(text)))


@pytest.mark.parametrize("n", [5, 8, 15])
def test_forced_words_are_in_every_text(n):
    words = [[1, 2, 3], [4, 4]]
    texts, free = forcing(words, n, seed=n)
    for text, choices in zip(texts.tolist(), free, strict=True):
        text = text[: text.index(5)] if 5 in text else text[:n]
        assert all(holds(text, word) for word in words)
        for i in range(len(text)):  # nothing is forced before it must be
            needed = sum(len(word) for word in words if not holds(text[:i], word))
            assert choices[i] == (n - i > needed)
    assert n == 5 or len({tuple(text) for text in texts.tolist()}) > 5


def test_log_probabilities_are_the_steps_own_whatever_the_processors():
    start = begin([[9, 1], [9, 3]]).replace(log_probs=jnp.zeros((2, 8)))
    process = chain(temperature(0.5), banned([[2]]))
    end = jax.jit(lambda d: decoding.decode(noise, d, 6, process=process, choose=decoding.sample))(start)
    table = np.asarray(noise(np.arange(V), None)[0], np.float64)
    for (_, last), new, log_p in zip(end.context.prompt.tolist(), end.context.new.tolist(), end.log_probs, strict=True):
        expected = [table[s, t] - np.log(np.exp(table[s]).sum()) for s, t in zip([last, *new], new[:6])]
        np.testing.assert_allclose(log_p[:6], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make, bad, message",
    [
        (temperature, -0.1, "temperature=-0.1; allowed: 0"),
        (temperature, float("nan"), "temperature=nan"),
        (top_k, 0, "top_k=0; allowed: 1 and more"),
        (top_p, 0.0, "top_p=0.0; allowed: 0 < top_p <= 1"),
        (top_p, 1.5, "top_p=1.5"),
        (repetition_penalty, 0.0, "repetition_penalty=0.0; allowed: more than 0"),
        (banned, [[1], []], r"banned=\[\[1\], \[\]\] holds \[\]; allowed: words of one token and more"),
        (lambda words: forced(words, end_id=0, max_new_tokens=2), [[]], r"forced=\[\[\]\] holds \[\]"),
        (lambda words: forced(words, end_id=0, max_new_tokens=2), [[1], [2, 3]], "forced words have 3 tokens; allowed"),
    ],
)
def test_a_bad_value_is_refused(make, bad, message):
    with pytest.raises(ValueError, match=message):
        make(bad)


def test_other_values_do_not_compile_again_and_a_plain_function_chains():
    traces = []

    def no_three(logits, context):
        traces.append(1)
        return logits.at[:, 3].set(-jnp.inf)

    run = jax.jit(lambda process, logits, context: process(logits, context))
    c = context(GOLDEN["processors/tokens"])
    for t, k, p, r in [(1.0, 5, 0.9, 1.1), (0.0, 7, 1.0, 2.0), (2, 90, 0.1, 1)]:
        words = [[k] * (1 + k % 3)] * (1 + k % 4)
        bound = chain(banned(words), forced(words, end_id=k, max_new_tokens=90))
        process = chain(repetition_penalty(r), bound, no_three, chain(temperature(t), top_k(k)), top_p(p))
        assert np.all(run(process, GOLDEN["processors/logits"], c)[:, 3] == -jnp.inf)
    assert len(traces) == 1


def test_sampling_follows_the_distribution():
    # 300 words so that the inverse distribution function has several blocks; 100,000 draws, chi-squared.
    logits = jax.random.normal(jax.random.key(0), (300,)).at[::7].set(-jnp.inf)
    n = 100_000
    draw = jax.jit(lambda keys: decoding.sample(jnp.broadcast_to(logits, (len(keys), 300)), keys))
    tokens = jnp.concatenate([draw(keys) for keys in jax.random.split(jax.random.key(1), (10, n // 10))])
    expected = n * np.asarray(jax.nn.softmax(logits))
    counts = np.bincount(tokens, minlength=300)
    assert np.all(counts[::7] == 0)
    real = expected > 0
    chi_squared = np.sum((counts - expected)[real] ** 2 / expected[real])
    freedom = real.sum() - 1
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


# The step counts: after token t the best one is t + 1 modulo V, and the state adds up the tokens fed to it.
def count(tokens, state):
    return jax.nn.one_hot((tokens + 1) % V, V), state + tokens


def noise(tokens, state):
    """A random but fixed distribution over the next token."""
    return 2 * jax.random.normal(jax.random.key(0), (V, V))[tokens], state


def begin(prompt, *, n=8, seed=0, pad_id=0):
    prompt = jnp.asarray(prompt)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(prompt[:, 0])
    mask = jnp.ones(prompt.shape, bool)
    return decoding.start(jnp.zeros(len(prompt), int), prompt, mask, keys, max_new_tokens=n, pad_id=pad_id)


def test_greedy_decoding_carries_the_state_and_feeds_each_token_once():
    end = decoding.decode(count, begin([[9, 2], [9, 6]]), 3)
    np.testing.assert_array_equal(end.context.new[:, :3], [[3, 4, 5], [0, 1, 2]])
    np.testing.assert_array_equal(end.state, [2 + 3 + 4, 6 + 0 + 1])


def test_a_finished_row_gives_padding_and_the_loop_ends_with_the_last_row():
    end = decoding.decode(count, begin([[9, 1], [9, 3]], pad_id=V), 8, end_id=5, pad_id=V)
    np.testing.assert_array_equal(end.context.new, [[2, 3, 4, 5, V, V, V, V], [4, 5, V, V, V, V, V, V]])
    assert end.finished.all() and end.context.n_new == 4


def test_decoding_stops_at_the_end_of_its_buffer():
    assert decoding.decode(count, begin([[9, 1]], n=4), 100).context.n_new == 4


def test_a_sampled_text_depends_neither_on_chunks_nor_on_neighbours_and_compiles_once():
    traces = []

    @jax.jit
    def extend(state, n):
        traces.append(1)
        return decoding.decode(noise, state, n, process=chain(temperature(0.9), top_k(5)), choose=decoding.sample)

    prompt = np.array([[1, 2], [2, 2], [3, 4]])
    whole = extend(begin(prompt, n=16), 16).context.new
    chunked = begin(prompt, n=16)
    for n in (1, 5, 3, 7):
        chunked = extend(chunked, n)
    np.testing.assert_array_equal(chunked.context.new, whole)
    assert len(traces) == 1
    assert len({tuple(row) for row in whole.tolist()}) == 3
    for i in (0, 1, 2):
        np.testing.assert_array_equal(extend(begin(prompt[i : i + 1], n=16), 16).context.new[0], whole[i])
    assert np.any(extend(begin(prompt, n=16, seed=1), 16).context.new != whole)


def test_a_recurrent_network_decodes_as_it_is_unrolled():
    random = jax.random.normal(jax.random.key(0), (V + 5, 5))
    table, recurrent = random[:V], random[V:]

    def step(tokens, h):
        h = jnp.tanh(table[tokens] + h @ recurrent)
        return h @ table.T, h

    prompt = jnp.array([[1, 2], [0, 5]])
    start = decoding.start(
        jnp.zeros((2, 5)), prompt, jnp.ones((2, 2), bool), jax.random.split(jax.random.key(0), 2), max_new_tokens=6
    )
    new = decoding.decode(step, start, 6).context.new
    for row, (_, token) in enumerate(prompt.tolist()):
        h = np.zeros(5)
        for expected in new[row].tolist():
            h = np.tanh(table[token] + h @ recurrent)
            token = int(np.argmax(table @ h))
            assert token == expected
