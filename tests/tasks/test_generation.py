"""Text in, text out: against Hugging Face's texts, one by one, in chunks, and against recomputing without a cache."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import tokenizers
from jaxnlp.models import gpt
from jaxnlp.nn.blocks import stack_layers
from jaxnlp.tasks import generation
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


@pytest.mark.parametrize("texts, options", [("greedy", {}), ("penalised", {"repetition_penalty": 1.5})])
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
    ],
)
def test_what_cannot_be_generated_is_refused(wild, prompts, options, error, message):
    with pytest.raises(error, match=message):
        generate(*wild, prompts, **options)


def test_a_token_id_outside_the_models_vocabulary_is_refused(wild):
    model = gpt.GPT(dataclasses.replace(wild[0].config, vocab_size=50))
    with pytest.raises(ValueError, match=r"prompt 0 has token id [0-9]+; allowed: below model.vocab_size=50"):
        generate(model, wild[1], wild[2], ["z"])


@pytest.mark.parametrize("n, size", [(1, 32), (32, 32), (33, 64), (256, 256), (257, 320), (1000, 1024), (1025, 1280)])
def test_buckets(n, size):
    assert generation.bucket(n) == size
