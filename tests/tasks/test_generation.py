"""Text in, text out: against Hugging Face's texts, one by one, in chunks, and against recomputing without a cache."""

import dataclasses
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import tokenizers
from jaxnlp.models import gpt
from jaxnlp.nn.blocks import stack_layers
from jaxnlp.tasks import generation, scoring
from jaxnlp.tasks.generation import generate

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "decoding.npz")
END = "<|endoftext|>"
CHARACTERS = tokenizers.build(
    tokenizers.Characters(), [chr(ord("0") + i) for i in range(62)]
)  # id i is character i - 2
PROMPTS = ["hello", "A", "the quick brown fox", "A"]


def text(ids) -> str:
    """Of ids that stand for a character each."""
    return "".join(CHARACTERS.token(int(i)) for i in ids)


@pytest.fixture(scope="module")
def golden():
    """The small GPT-2 of the golden file, as Hugging Face generated with it."""
    config = gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=64, n_positions=48)
    params = {}
    for name in GOLDEN:
        if name.startswith("generated/params/"):
            *path, leaf = name.split("/")[2:]
            inner = params
            for key in path:
                inner = inner.setdefault(key, {})
            inner[leaf] = jnp.asarray(GOLDEN[name])
    return gpt.GPT(config), params


@pytest.fixture(scope="module")
def wild():
    """A model whose texts wander, with byte-level ids."""
    tokenizer = tokenizers.build(tokenizers.ByteBPE(vocab_size=257), [])
    model = gpt.GPT(gpt.Config(n_layers=2, d_model=16, n_heads=2, vocab_size=257, n_positions=160))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim == 1 else 10 * leaf, params)
    return model, params, tokenizer


@pytest.mark.parametrize(
    "texts, options",
    [
        ("greedy", {}),
        ("penalised", {"repetition_penalty": 1.5}),
        ("banned", {"banned": [text([7]), text([9, 58])]}),
        ("beams", {"n_beams": 4}),
    ],
)
def test_greedy_texts_are_hugging_faces(golden, texts, options):
    expected = [text(row) for row in GOLDEN[f"generated/{texts}"]]
    rows = zip(GOLDEN["generated/prompt"], GOLDEN["generated/mask"])
    prompts = [text(ids[mask == 1]) for ids, mask in rows][: len(expected)]
    assert generate(*golden, CHARACTERS, prompts, max_new_tokens=24, temperature=0, **options) == expected


def force(ids):
    """A processor that lets nothing but these tokens through, one after another."""
    return jax.tree_util.Partial(_only, jnp.pad(jnp.asarray(ids), (0, 32 - len(ids))))


def _only(ids, logits, context):
    return jnp.where(jnp.arange(logits.shape[1])[None] == ids[context.n_new], logits, -jnp.inf)


SAMPLED = {"temperature": 1.3, "top_p": 0.95}


@pytest.mark.parametrize("options", [{"temperature": 0}, SAMPLED], ids=["greedy", "sampled"])
def test_a_text_is_the_same_in_a_batch_and_alone(wild, options):
    together = generate(*wild, PROMPTS, max_new_tokens=20, **options)
    alone = [generate(*wild, [prompt], max_new_tokens=20, **options)[0] for prompt in PROMPTS]
    assert together[:3] == alone[:3]
    assert len(set(alone)) == 3
    assert (together[3] == together[1]) == (options is not SAMPLED)  # a prompt given twice is drawn twice


def test_a_sampled_text_hangs_on_the_seed(wild):
    first, again, other = (generate(*wild, ["A"], max_new_tokens=20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_cached_decoding_is_decoding_without_a_cache(wild):
    model, params, tokenizer = wild
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    prompt, mask, _ = generation._pad(prompts, 10, 160)
    cache = generation._prefill(model, params, prompt, mask, n_slots=prompt.shape[1] + 10)
    apply = jax.jit(lambda ids, **inputs: model.apply({"params": params}, ids, **inputs))
    tokens = prompt[:, -1:]
    for _ in range(10):
        cached = apply(tokens, cache=cache)
        cache, tokens = cached["cache"], jnp.argmax(cached["logits"], axis=-1).astype(jnp.int32)
        for i, ids in enumerate(prompts):
            whole = apply(jnp.asarray([ids + [0] * (40 - len(ids))]))["logits"][0, len(ids) - 1]
            np.testing.assert_allclose(cached["logits"][i, 0], whole, rtol=0, atol=1e-5 * float(jnp.abs(whole).max()))
            ids.append(int(tokens[i, 0]))
    expected = [tokenizer.decode(ids)[len(text) :] for ids, text in zip(prompts, PROMPTS)]
    assert generate(*wild, PROMPTS, max_new_tokens=10, temperature=0) == expected


def test_scanned_layers_give_the_text_of_unrolled_ones(wild):
    model, params, tokenizer = wild
    scanned = gpt.GPT(dataclasses.replace(model.config, scan=True))
    texts = generate(scanned, stack_layers(params), tokenizer, PROMPTS, max_new_tokens=10, temperature=0)
    assert texts == generate(*wild, PROMPTS, max_new_tokens=10, temperature=0)


def test_one_compilation_serves_a_bucket_whatever_the_values(wild):
    _, params, tokenizer = wild
    prefills, loops = [], []

    class Counted(gpt.GPT):
        def init_cache(self, *args):
            prefills.append(args)
            return super().init_cache(*args)

    def counted(logits, context):
        loops.append(logits.shape)
        return logits

    model = Counted(wild[0].config)
    options = {"processors": [counted], "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.1}
    generate(model, params, tokenizer, ["a" * 2], max_new_tokens=9, temperature=0.5, **options)
    n = len(loops)
    options |= {"top_k": 200, "top_p": 0.5, "repetition_penalty": 2.0, "seed": 3, "stop": ["xyz"]}
    generate(model, jax.tree.map(lambda leaf: 2 * leaf, params), tokenizer, ["b" * 30], max_new_tokens=20, **options)
    generate(model, params, tokenizer, ["c"], max_new_tokens=3, on_text=lambda row, piece: None, **options)
    assert (len(prefills), len(loops)) == (1, n)
    assert set(loops) == {(1, 257)}  # the table's padding is cut off before any processor sees it
    generate(model, params, tokenizer, ["d" * 33], max_new_tokens=9, **options)
    assert len(prefills) == 2


def test_samples_are_those_of_a_prompt_given_as_often(wild):
    found = generate(*wild, ["A", "hello", "A"], max_new_tokens=20, n_samples=2, **SAMPLED)
    expected = generate(*wild, ["A", "A", "hello", "hello", "A", "A"], max_new_tokens=20, **SAMPLED)
    assert found == [expected[:2], expected[2:4], expected[4:]]
    assert len(set(expected)) == 6


@pytest.mark.parametrize("options", [SAMPLED, {"n_beams": 3, "length_penalty": 0.6}], ids=["sampled", "beams"])
def test_details_are_tokens_and_the_models_own_log_probabilities(wild, options):
    model, params, tokenizer = wild
    options = {"max_new_tokens": 20, "repetition_penalty": 1.2, "processors": [force_later(tokenizer)]} | options
    found = generate(*wild, PROMPTS[:3], details=True, **options)
    assert [one["text"] for one in found] == generate(*wild, PROMPTS[:3], **options)
    trees = [(tokenizer.encode(prompt), [one["tokens"]]) for prompt, one in zip(PROMPTS, found)]
    for one, ((expected, _),) in zip(found, scoring.of_tokens(model, params, trees), strict=True):
        assert one["tokens"][-1] == tokenizer.eos_id and tokenizer.decode(one["tokens"]) == one["text"]
        np.testing.assert_allclose(one["log_probs"], expected, rtol=1e-4)
        assert one["log_prob"] == sum(one["log_probs"])


def force_later(tokenizer):
    """A processor that ends a text with its ninth token."""

    def end(logits, context):
        only = jnp.where(jnp.arange(logits.shape[1])[None] == tokenizer.eos_id, 0.0, -jnp.inf)
        return jnp.where(context.n_new == 8, only, logits)

    return end


def test_the_tokens_of_a_text_that_is_stopped_end_with_the_stop_string(wild):
    ids = wild[2].encode("one two. three, four")
    options = {"max_new_tokens": len(ids), "processors": [force(ids)], "stop": [", "]}
    (found,) = generate(*wild, ["A"], details=True, **options)
    assert found["text"] == "one two. three"
    assert wild[2].decode(found["tokens"]) == "one two. three, "
    assert len(found["log_probs"]) == len(found["tokens"])


def test_a_choice_is_the_likeliest_text(wild):
    choices = ["x", "yes", "no", " maybe"]
    pairs = [(prompt, choices) for prompt in PROMPTS]
    likeliest = [max(zip(scores, choices))[1] for scores in scoring.log_likelihoods(*wild, pairs)]
    assert generate(*wild, PROMPTS, choices=choices) == likeliest
    lists = [choices[:1], choices[1:3], choices, ["no"]]
    found = generate(*wild, PROMPTS, choices=lists, details=True)
    scores = scoring.log_likelihoods(*wild, list(zip(PROMPTS, lists)))
    assert [one["text"] for one in found] == [max(zip(s, texts))[1] for s, texts in zip(scores, lists)]
    for one, some in zip(found, scores, strict=True):
        np.testing.assert_allclose(one["log_prob"], max(some).log_prob, rtol=1e-5)
        assert wild[2].decode(one["tokens"]) == one["text"]


@pytest.mark.parametrize("options", [SAMPLED, {"n_beams": 3}], ids=["sampled", "beams"])
def test_banned_and_forced_words(wild, options):
    (free,) = generate(*wild, ["hello"], max_new_tokens=20, **options)
    word = next(c for c in free if c.isascii() and c.isprintable())
    found = generate(*wild, ["hello", "A"], max_new_tokens=20, banned=[word], forced=["zu Q", "{}"], **options)
    assert all(word not in text and "zu Q" in text and "{}" in text for text in found)


def test_beyond_a_window_text_goes_on_from_its_last_half(wild):
    """Against reading the window anew for every token, without a cache; the rows are full at different times."""
    model, params, tokenizer = wild
    prompts, window = ["hello", "A", "the quick brown fox jumps"], 16
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids)["logits"][0])
    expected = []
    for prompt in prompts:
        ids, start = tokenizer.encode(prompt), 0
        for _ in range(30):
            start = start if len(ids) - start <= window else len(ids) - window // 2
            seen = ids[start:]
            ids.append(int(apply(jnp.asarray([seen + [0] * (window - len(seen))]))[len(seen) - 1].argmax()))
        expected.append(tokenizer.decode(ids)[len(prompt) :])
    assert generate(*wild, prompts, max_new_tokens=30, temperature=0, window=window) == expected
    assert generate(*wild, prompts[:1], max_new_tokens=170, temperature=0, window=160)[0].startswith(
        generate(*wild, prompts[:1], max_new_tokens=150, temperature=0)[0]
    )


@pytest.fixture(scope="module")
def banded(wild):
    """With a layer that sees four tokens; and its log p, of a text read as a whole."""
    model = gpt.GPT(dataclasses.replace(wild[0].config, windows=(None, 4)))
    apply = jax.jit(lambda ids: jax.nn.log_softmax(model.apply({"params": wild[1]}, ids)["logits"][0]))
    return (model, *wild[1:]), lambda ids: np.asarray(apply(jnp.asarray([ids + [0] * (64 - len(ids))])))[len(ids) - 1]


@pytest.mark.parametrize("window", [None, 16])
def test_samples_are_as_likely_as_without_a_cache(banded, window):
    """In bands of attention, and beyond a window."""
    run, log_p = banded
    found = generate(*run, PROMPTS[:3], max_new_tokens=24, n_samples=2, window=window, details=True)
    for prompt, samples in zip(PROMPTS, found):
        for one in samples:
            ids, start, expected = run[2].encode(prompt), 0, []
            for token in one["tokens"]:
                start = len(ids) - window // 2 if window and len(ids) - start > window else start
                expected.append(log_p(ids[start:])[token])
                ids.append(token)
            np.testing.assert_allclose(one["log_probs"], expected, atol=1e-3)
    assert len({one["text"] for samples in found for one in samples}) == 6


def test_beams_in_bands_are_those_of_a_search_without_a_cache(banded):
    run, log_p = banded
    found = generate(*run, PROMPTS[:3], max_new_tokens=8, n_beams=3)
    for prompt, text in zip(PROMPTS, found):
        beams, n = [(0.0, run[2].encode(prompt))], len(run[2].encode(prompt))
        for _ in range(8):
            more = [(score + p, [*ids, token]) for score, ids in beams for token, p in enumerate(log_p(ids).tolist())]
            beams = sorted(more, reverse=True)[:3]
            assert all(ids[-1] != run[2].eos_id for _, ids in beams)  # none of these texts ends
        assert text == run[2].decode(beams[0][1][n:])


def test_bfloat16_weights_have_a_cache_of_their_own_kind(wild):
    model = gpt.GPT(dataclasses.replace(wild[0].config, dtype="bfloat16"))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), wild[1])
    prompt, mask, _ = generation._pad([wild[2].encode("hello")], 10, 160)
    cache = generation._prefill(model, params, prompt, mask, n_slots=42)
    assert {str(x.dtype) for x in jax.tree.leaves(cache["layers"])} == {"bfloat16"}
    exact = generation._prefill(*wild[:2], prompt, mask, n_slots=42)
    for a, b in zip(jax.tree.leaves(cache["layers"]), jax.tree.leaves(exact["layers"]), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * float(jnp.abs(b).max()))
    half, options = (model, params, wild[2]), {"max_new_tokens": 9, "temperature": 0, "details": True}
    (found,) = generate(*half, ["hello"], **options)
    (((expected, _),),) = scoring.of_tokens(model, params, [(wild[2].encode("hello"), [found["tokens"]])])
    np.testing.assert_allclose(found["log_probs"], expected, atol=0.5)
    (best,) = generate(*half, ["hello"], max_new_tokens=9, n_beams=3, details=True)
    (((exact, _),),) = scoring.of_tokens(*wild[:2], [(wild[2].encode("hello"), [best["tokens"]])])
    np.testing.assert_allclose(best["log_probs"], exact, atol=0.5)
    assert best["log_prob"] >= found["log_prob"]


def test_a_prompt_that_the_tokenizer_does_not_know_is_read_as_unknown(golden):
    unknown = CHARACTERS.unk_id
    logits = golden[0].apply({"params": golden[1]}, jnp.asarray([[unknown, unknown]]))["logits"][0, -1]
    expected = CHARACTERS.decode([int(jnp.argmax(logits))])
    assert generate(*golden, CHARACTERS, ["\u20ac\n"], max_new_tokens=1, temperature=0) == [expected]


def test_a_text_ends_before_the_end_token(wild):
    ids = [*wild[2].encode("three"), wild[2].eos_id, *wild[2].encode("more")]
    assert generate(*wild, ["A"], max_new_tokens=len(ids), processors=[force(ids)]) == ["three"]


def test_a_text_ends_before_the_first_stop_string(wild):
    text = "one two. three, four"
    options = {"max_new_tokens": len(text), "processors": [force(wild[2].encode(text))]}
    assert generate(*wild, ["A"], stop=["four", "x", ", "], **options) == ["one two. three"]
    assert generate(*wild, ["A"], stop=", ", **options) == ["one two. three"]
    assert generate(*wild, ["A"], stop=["five"], **options) == [text]
    assert generate(*wild, ["one"], stop=["one"], **options) == [""]


def test_rows_stop_each_on_its_own(golden):
    expected = [text(row) for row in GOLDEN["generated/greedy"]]
    prompts = [text(ids[mask == 1]) for ids, mask in zip(GOLDEN["generated/prompt"], GOLDEN["generated/mask"])]
    stop = expected[0][4:7]  # which the others do not hold
    texts = generate(*golden, CHARACTERS, prompts, max_new_tokens=24, temperature=0, stop=[stop])
    assert texts == [expected[0][:4], *expected[1:]]


@pytest.mark.parametrize(
    "text, stop, pieces",
    [
        ("aé€😀b", (), ["a", "é", "€", "😀", "b"]),
        ("x\ny\n\nz", ("\n\n",), ["x", "\ny"]),
        ("ab--c-", ("--->",), ["a", "b", "--c", "-"]),
    ],
    ids=["characters are whole", "a stop string is held back", "and given when it is none"],
)
def test_text_comes_in_pieces_that_stay(wild, text, stop, pieces):
    ids, seen = wild[2].encode(text), []
    options = {"max_new_tokens": len(ids), "processors": [force(ids)], "stop": stop}
    texts = generate(*wild, ["A"], on_text=lambda row, piece: seen.append(piece), **options)
    assert seen == pieces
    assert texts == ["".join(pieces)]


def test_half_a_character_at_the_very_end_is_shown_as_such(wild):
    ids = wild[2].encode("aé")[:2]
    assert generate(*wild, ["A"], max_new_tokens=2, processors=[force(ids)]) == ["a\ufffd"]


def test_words_keep_the_space_before_them():
    tokenizer = tokenizers.build(tokenizers.WordPiece(vocab_size=60), ["to be or not to be"] * 9)
    model = gpt.GPT(gpt.Config(n_layers=1, d_model=8, n_heads=1, vocab_size=tokenizer.vocab_size, n_positions=64))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    ids = tokenizer.encode("or not")
    assert generate(model, params, tokenizer, ["to be"], max_new_tokens=len(ids), processors=[force(ids)]) == [
        " or not"
    ]


def test_an_id_that_the_tokenizer_does_not_know_adds_nothing(wild):
    ids = [*wild[2].encode("a"), 300, *wild[2].encode("b")]
    model = gpt.GPT(dataclasses.replace(wild[0].config, vocab_size=310))
    assert generate(model, wild[1], wild[2], ["A"], max_new_tokens=3, processors=[force(ids)]) == ["ab"]


def test_an_empty_prompt_begins_with_the_begin_token(wild):
    model, params, tokenizer = wild
    logits = model.apply({"params": params}, jnp.asarray([[tokenizer.bos_id]]))["logits"][0, -1]
    expected = tokenizer.decode([int(jnp.argmax(logits))])
    assert generate(*wild, [""], max_new_tokens=1, temperature=0) == [expected]


def test_prompt_and_text_may_fill_the_positions(wild):
    seen = []

    def counted(logits, context):
        seen.append(context.prompt.shape[1] + context.new.shape[1])
        return logits

    for n in (1, 159):
        generate(*wild, ["a" * (160 - n)], max_new_tokens=n, processors=[counted])
    assert seen == [160, 160]
    assert generate(*wild, []) == []


@pytest.mark.parametrize(
    "prompts, options, error, message",
    [
        ("abc", {}, TypeError, "prompts is one string, 'abc'; allowed: a list of strings"),
        (["a"], {"max_new_tokens": 0}, ValueError, "max_new_tokens=0; allowed: 1 and more"),
        (["a", "b" * 111], {}, ValueError, "prompt 1 has 111 tokens and max_new_tokens=50; allowed: .*n_positions=160"),
        (["a"], {"stop": [""]}, ValueError, "stop=.* holds an empty string"),
        (["a"], {"temperature": -1.0}, ValueError, "temperature=-1.0; allowed"),
        (["a"], {"temperature": 0, "top_p": 2.0}, ValueError, "top_p=2.0; allowed"),
        (["a"], {"n_samples": 0}, ValueError, "n_samples=0; allowed: 1 and more"),
        (["a"], {"n_samples": 2, "temperature": 0}, ValueError, "n_samples=2 with temperature=0, which gives one text"),
        (["a"], {"n_beams": 0}, ValueError, "n_beams=0; allowed: 1 and more"),
        (["a"], {"n_beams": 2, "top_p": 0.9}, ValueError, "n_beams=2 with top_p=0.9; allowed: one of the two"),
        (["a"], {"n_beams": 2, "temperature": 0.7}, ValueError, "n_beams=2 with temperature=0.7; allowed"),
        (["a"], {"n_beams": 2, "n_samples": 2}, ValueError, "n_beams=2 with n_samples=2; allowed"),
        (["a"], {"n_beams": 300}, ValueError, "n_beams=300; allowed: at most the 257 words"),
        (["a"], {"window": 161}, ValueError, "window=161; allowed: 2 to model.n_positions=160"),
        (["a"], {"banned": "abc"}, TypeError, "banned is one string, 'abc'; allowed: a list of strings"),
        (["a"], {"banned": ["a", ""]}, ValueError, "banned=.* holds '', which has no token"),
        (
            ["a"],
            {"forced": ["abcd"], "max_new_tokens": 3},
            ValueError,
            "forced words have 4 tokens; .*max_new_tokens=3",
        ),
        (["a"], {"forced": ["abc"], "banned": ["b"]}, ValueError, "forced=.'abc'. holds the banned 'b'"),
        (["a"], {"forced": ["a"], "stop": "b"}, ValueError, "forced=.* with stop=.*; allowed: one of the two"),
        (["a"], {"choices": ["b"], "n_beams": 2}, ValueError, "choices with n_beams=2; allowed: one of the two"),
        (["a"], {"choices": []}, ValueError, "choices=.* for 1 prompts; allowed: one list for all, or one for each"),
        (["a" * 160], {"choices": ["bc", "b"]}, ValueError, "prompt 0 has 160 tokens and a choice 2; .* at most 161,"),
        (["a"], {"choices": ["b"], "length_penalty": 0.6}, ValueError, "choices with length_penalty=0.6; allowed: one"),
        (["a"], {"n_beams": 2, "length_penalty": float("nan")}, ValueError, "length_penalty=nan; allowed: finite"),
        (["a"], {"length_penalty": 0.6}, ValueError, "length_penalty=0.6 without n_beams; allowed: 0, or a beam"),
        (["a"], {"choices": [["b"], ["c"]]}, ValueError, "choices=.* for 1 prompts; allowed: one list"),
    ],
)
def test_what_cannot_be_generated_is_refused(wild, prompts, options, error, message):
    with pytest.raises(error, match=message):
        generate(*wild, prompts, **options)


UNTYPED = inspect.unwrap(generate)  # types are checked in tests alone


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5; allowed: a whole number"),
        ({"top_k": 2.5}, "top_k=2.5; allowed: a whole number"),
        ({"seed": 1.5}, "seed=1.5; allowed: a whole number"),
        ({"prompts": [None]}, "prompts holds None; allowed: a list of strings"),
        ({"prompts": [b"a"]}, "prompts holds b'a'; allowed: a list of strings"),
        ({"prompts": 3}, "prompts holds 3; allowed: a list of strings"),
        ({"forced": ["a", 3]}, "forced holds 3; allowed: a list of strings"),
        ({"choices": [["a", None]]}, "choices holds None; allowed: a list of strings"),
    ],
)
def test_other_kinds_are_refused(wild, options, message):
    with pytest.raises(TypeError, match=message):
        UNTYPED(*wild, **{"prompts": ["a"], **options})


def test_arrays_of_strings_are_lists(wild):
    for options in ({"choices": ["x", "yes"]}, {"choices": [["x", "yes"], ["no", "x"]]}):
        arrays = {name: np.array(x) for name, x in {"prompts": PROMPTS[:2], **options}.items()}
        assert UNTYPED(*wild, **arrays) == generate(*wild, PROMPTS[:2], **options)


@pytest.mark.parametrize(
    "name, words", [("forced", ["\u03c0"]), ("banned", ["a", "a\u03c0"]), ("choices", ["a", "\u03c0"])]
)
def test_words_that_the_tokenizer_does_not_know_are_refused(golden, name, words):
    """They would all be one and the same <unk>."""
    message = f"{name}=.* holds '{words[-1]}', of which the tokenizer does not know all; allowed: strings that"
    with pytest.raises(ValueError, match=message):
        generate(*golden, CHARACTERS, ["0"], **{name: words})


def test_banned_words_that_leave_nothing_are_refused(golden):
    every = [text([i]) for i in range(2, 64)]
    with pytest.raises(ValueError, match="banned=.* leaves no token that stands for text; allowed: fewer words"):
        generate(*golden, CHARACTERS, ["0"], banned=every)
    (found,) = generate(*golden, CHARACTERS, ["0"], banned=every[1:], max_new_tokens=8)
    assert set(found) <= {every[0], "<", "u", "n", "k", ">"}


def test_a_token_id_outside_the_models_vocabulary_is_refused(wild):
    model = gpt.GPT(dataclasses.replace(wild[0].config, vocab_size=50))
    with pytest.raises(ValueError, match=r"prompt 0 has token id [0-9]+; allowed: below model.vocab_size=50"):
        generate(model, wild[1], wild[2], ["z"])


@pytest.mark.parametrize("n, size", [(1, 32), (32, 32), (33, 64), (256, 256), (257, 320), (1000, 1024), (1025, 1280)])
def test_buckets(n, size):
    assert generation.bucket(n) == size
