"""Tokenizers: exact round trips, determinism, and ids worked out by hand or by the published algorithms."""

import inspect
import itertools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from jaxnlp.data.tokenizers import ByteBPE, Characters, Tokenizer, TokenizerFile, WordPiece, build

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "wordpiece.py"
BERT = runpy.run_path(str(GOLDEN))
HARD = [
    "",
    " ",
    "  two  spaces, it's fine\n\n\ttabs\r\n",
    "한국어 문장을 통째로",
    "e\u0301a\u0308 n\u0303 \u1112\u1161\u11ab",
    "👩‍👩‍👧 🇰🇷 🏳️‍🌈",
    "\x00\x01\x1f\x7f\x85\u00a0\u200b\u2028\ufeff\ufffd",
    "\U0010ffff\ue000 العربية עברית",
    "<|endoftext|> <unk> [MASK] ##a Ġ",
]
ENGLISH = ["the cat sat on the mat, the cat and the hat", "lower lowest newer newest widest"]


@pytest.fixture(scope="module", params=[ByteBPE(400), Characters()], ids=repr)
def exact(request):
    return build(request.param, HARD + ENGLISH)


@pytest.fixture(scope="module")
def wordpiece():
    return build(WordPiece(200), [*ENGLISH, "한국어 문장 한국 문장"])


class TestExact:
    @pytest.mark.parametrize("text", HARD)
    def test_round_trip(self, exact, text):
        assert exact.decode(exact.encode(text)) == text

    def test_batch_is_one_by_one(self, exact):
        assert exact.encode_batch(HARD) == [exact.encode(text) for text in HARD]

    def test_no_text_forges_the_end(self, exact):
        assert exact.eos_id not in exact.encode("a <|endoftext|> b")
        assert exact.decode([exact.eos_id, *exact.encode("the"), exact.eos_id, exact.pad_id]) == "the"

    def test_byte_lengths(self, exact):
        for text in HARD:
            assert exact.byte_lengths[exact.encode(text)].sum() == len(text.encode())
        assert exact.byte_lengths[exact.eos_id] == 0
        assert exact.byte_lengths.shape == (exact.vocab_size,)


@pytest.mark.parametrize("text", ["a\ud800b", "\udcff"])
def test_half_a_character_is_refused(exact, wordpiece, text):
    for call in (exact.encode, lambda x: exact.encode_batch(["a", x]), lambda x: wordpiece.offsets(["a", x])):
        with pytest.raises(ValueError, match=r"text '.*\\ud.*' is not valid Unicode: '.ud...' is half a .*; allowed"):
            call(text)
    with pytest.raises(ValueError, match="is not valid Unicode"):
        build(Characters(), [text])


@pytest.mark.parametrize("text", [None, b"abc", 3, ("a", "b")])
def test_what_is_no_text_is_refused(exact, text):
    """Where no types are checked, as they are in tests."""
    calls = (inspect.unwrap(Tokenizer.encode), text), (inspect.unwrap(Tokenizer.encode_batch), ["a", text])
    for call, given in calls:
        with pytest.raises(TypeError, match=f"is a {type(text).__name__}; allowed: a str"):
            call(exact, given)


def test_bytes_never_seen_round_trip():
    tokenizer = build(ByteBPE(300), ["nothing but ascii"])
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id is None


def test_byte_bpe_merges_by_rank():
    """Against the algorithm as Sennrich et al. (2016) give it: join the pair that was learned first, until none is."""
    tokenizer = build(ByteBPE(290), ENGLISH)
    merges = [tuple(pair) for pair in json.loads(tokenizer.backend.to_str())["model"]["merges"]]
    assert merges[0] == ("a", "t")  # the commonest pair: five times
    for word in ["the", "cat", "lowest", "unseenword", "that"]:
        symbols = list(word)
        while ranked := [(merges.index(p), i) for i, p in enumerate(itertools.pairwise(symbols)) if p in merges]:
            _, i = min(ranked)
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
        assert [tokenizer.token(i) for i in tokenizer.encode(word)] == symbols


def test_no_prefix_space_and_gpt2_words():
    tokenizer = build(ByteBPE(257), ["x"])
    assert [tokenizer.token(i) for i in tokenizer.encode("a b")] == ["a", "Ġ", "b"]


def test_a_streams_prefixes_are_stable():
    """Up to a final U+FFFD: what `decode` promises to who prints ids as they come."""
    tokenizer = build(ByteBPE(257), ["x"])
    text = "한 👩 é!"
    ids = tokenizer.encode(text)
    shown = [tokenizer.decode(ids[:n]).rstrip("\ufffd") for n in range(len(ids) + 1)]
    assert all(text.startswith(part) for part in shown)
    assert shown[-1] == text


def test_characters():
    tokenizer = build(Characters(), ["to be"])
    assert tokenizer.encode("bet") == [3, 4, 6]
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == [
        "<|endoftext|>",
        "<unk>",
        " ",
        "b",
        "e",
        "o",
        "t",
    ]
    assert tokenizer.encode("b한t") == [3, tokenizer.unk_id, 6]
    assert tokenizer.decode(tokenizer.encode("b한t")) == "b<unk>t"
    assert tokenizer.byte_lengths[tokenizer.unk_id] == 0


class TestWordPiece:
    def test_longest_piece_first(self, wordpiece):
        vocab = wordpiece.backend.get_vocab()
        for word in ("lowest", "theatre", "catnewest"):
            expected, rest, prefix = [], word, ""
            while rest:
                n = next(n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocab)
                expected.append(prefix + rest[:n])
                rest, prefix = rest[n:], "##"
            assert [wordpiece.token(i) for i in wordpiece.encode(word)] == expected

    def test_normalised(self, wordpiece):
        assert wordpiece.decode(wordpiece.encode("  THE\tcát, sat ")) == "the cat, sat"

    def test_hangul_stays_whole(self, wordpiece):
        whole = [wordpiece.token(i) for i in wordpiece.encode("한국어 문장")]
        assert "".join(whole).replace("##", "") == "한국어문장"
        split = build(WordPiece(200, hangul=False), ["한국어 문장"])
        letters = unicodedata.normalize("NFD", "한국어")
        assert wordpiece.decode(wordpiece.encode("한국어")) == "한국어"
        assert split.decode(split.encode("한국어")) == letters != "한국어"

    def test_rare_characters_are_unknown(self):
        """The limit of vocab_size / 4: here 50 characters, of a text with 26 common ones and 2,000 rare ones."""
        letters = "abcdefghijklmnopqrstuvwxyz"
        tokenizer = build(WordPiece(200), [letters * 9, *(f"a{chr(0xAC00 + i)}" for i in range(2000))])
        assert tokenizer.vocab_size <= 200
        assert tokenizer.decode(tokenizer.encode(letters)) == letters
        assert tokenizer.encode("a\ub3cf") == [tokenizer.unk_id]

    def test_cased(self):
        tokenizer = build(WordPiece(100, lowercase=False), ["The Café 한국"])
        assert tokenizer.decode(tokenizer.encode("The Café 한국")) == "The Café 한국"

    def test_unknown_and_special(self, wordpiece):
        assert wordpiece.encode("中") == [wordpiece.unk_id]
        assert wordpiece.decode([wordpiece.bos_id, *wordpiece.encode("the 中"), wordpiece.eos_id]) == "the [UNK]"
        assert [wordpiece.token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert (wordpiece.pad_id, wordpiece.unk_id, wordpiece.bos_id, wordpiece.eos_id) == (0, 1, 2, 3)
        assert wordpiece.byte_lengths is None


SPECS = [ByteBPE(300), WordPiece(150), Characters()]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_saved_and_loaded(tmp_path, spec):
    tokenizer = build(spec, HARD + ENGLISH)
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = build(TokenizerFile(str(path)))
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode_batch(HARD) == tokenizer.encode_batch(HARD)
        assert (loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
            tokenizer.eos_id,
            tokenizer.pad_id,
            tokenizer.vocab_size,
        )


def test_offsets_are_places_in_the_text(exact):
    """Of every character there is: without the white space that a word may begin with."""
    for text, (ids, places) in zip(HARD, exact.offsets(HARD), strict=True):
        assert ids == exact.encode(text) and len(places) == len(ids)
        assert sorted({i for start, end in places for i in range(start, end)}) == list(range(len(text)))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_offsets_keep_accents_and_syllables_whole(form):
    words = [unicodedata.normalize(form, word) for word in ("Été", "à", "ÇA", "한국어", "문장을", "ok", "ⵣ", "👍🏽")]
    tokenizer = build(WordPiece(200), words * 2)
    text = "  ".join(words)
    ids, places = tokenizer.offsets([text])[0]
    assert ids == tokenizer.encode(text)
    assert [text[start:end] for start, end in places] == words


def test_training_is_deterministic():
    """Another process, with other hash seeds and one thread, learns the same."""
    corpus = [f"{word}{n} {word} {HARD[n % len(HARD)]}" for n in range(50) for word in ENGLISH[0].split()]
    script = (
        "import json, sys; from jaxnlp.data.tokenizers import *; corpus = json.load(sys.stdin)\n"
        "for spec in (ByteBPE(300), WordPiece(150), Characters()): print(build(spec, corpus).fingerprint)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(corpus),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [build(spec, iter(corpus)).fingerprint for spec in SPECS]


GPT1 = dict(np.load(GOLDEN.with_name("gpt1_bpe.npz")))


class TestFiles:
    @pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
    def test_gpt2s_own_files(self, tmp_path, names):
        tokens = ["a", "b", "c", "Ġ", "ab", "Ġab", "<|endoftext|>"]
        (tmp_path / names[0]).write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (tmp_path / names[1]).write_text("#version: 0.2\na b\nĠ ab\n")
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.encode("ab ab ca") == [4, 5, 3, 2, 0]
        assert tokenizer.decode([4, 5, 3, 2, 0, 6]) == "ab ab ca"
        assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.pad_id == 6
        np.testing.assert_array_equal(tokenizer.byte_lengths, [1, 1, 1, 1, 2, 3, 0])

    @pytest.mark.parametrize(("space", "ids"), [(None, [5, 4, 5]), (True, [4, 5, 4, 5])])
    def test_robertas_own_files(self, tmp_path, space, ids):
        """Its settings say whether the first word has a space before it; the one before <mask> is the mask's."""
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", "a", "<mask>"]
        (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        if space is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": space}))
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.encode("a a") == ids
        assert tokenizer.backend.get_added_tokens_decoder()[6].lstrip

    @pytest.mark.parametrize(("config", "text"), [(None, "ab c"), ({"do_lower_case": False}, "[UNK] c")])
    def test_berts_own_file(self, tmp_path, config, text):
        (tmp_path / "vocab.txt").write_text("[PAD]\n[unused0]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\nc\n")
        if config:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.decode(tokenizer.encode("AB c")) == text
        assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3, 4)

    def test_a_vocabulary_with_capitals_is_cased(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nA\na\n")
        assert Tokenizer.load(tmp_path).encode("A a") == [5, 6]


class TestBerts:
    """Token for token as transformers' BertTokenizer, on what is hard."""

    @pytest.mark.parametrize("mode", BERT["MODES"])
    def test_ids_are_transformers(self, tmp_path, mode):
        golden = np.load(GOLDEN.with_suffix(".npz"))
        (tmp_path / "vocab.txt").write_text("\n".join(golden["vocabulary"].tolist()) + "\n", encoding="utf-8")
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        settings = dict(zip(names, BERT["MODES"][mode], strict=True))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = Tokenizer.load(tmp_path)
        expected = np.split(golden[f"{mode}/ids"], golden[f"{mode}/ends"][:-1])
        for text, ids in zip(BERT["TEXTS"], expected, strict=True):
            assert [*map(tokenizer.token, tokenizer.encode(text))] == [*map(tokenizer.token, ids.tolist())], text
        saved = Tokenizer.from_json(tokenizer.to_json())
        assert saved.encode_batch(BERT["TEXTS"]) == [ids.tolist() for ids in expected]

    def test_hangul_alone_is_otherwise(self):
        """Whole syllables where BERT has letters; nothing else differs."""
        whole, split = (build(WordPiece(2000, hangul=hangul), BERT["TEXTS"]) for hangul in (True, False))
        for text in BERT["TEXTS"]:
            a, b = (tokenizer.backend.normalizer.normalize_str(text) for tokenizer in (whole, split))
            assert a == unicodedata.normalize("NFC", b)
        assert "한국어" in whole.decode(whole.encode(unicodedata.normalize("NFD", "한국어 문장")))


class TestGPT1s:
    """Token for token as transformers' OpenAIGPTTokenizer, on what is hard."""

    @pytest.fixture(params=[("vocab.json", "merges.txt"), ("encoder_bpe_40000.json", "vocab_40000.bpe")])
    def tokenizer(self, request, tmp_path):
        for name, content in zip(request.param, (GPT1["vocabulary"], GPT1["merges"]), strict=True):
            (tmp_path / name).write_text(str(content), encoding="utf-8")
        return Tokenizer.load(tmp_path)

    def test_ids_are_transformers(self, tokenizer):
        expected = np.split(GPT1["ids"], GPT1["ends"][:-1])
        assert len(np.unique(GPT1["ids"])) > 150
        for text, ids, decoded in zip(BERT["TEXTS"], expected, GPT1["decoded"], strict=True):
            assert [*map(tokenizer.token, tokenizer.encode(text))] == [*map(tokenizer.token, ids.tolist())], text
            known = ids[ids != tokenizer.unk_id]
            assert len(known) < len(ids) or tokenizer.decode(ids.tolist()) == decoded
        saved = Tokenizer.from_json(tokenizer.to_json())
        assert saved.encode_batch(BERT["TEXTS"]) == [ids.tolist() for ids in expected]

    def test_it_has_no_special_tokens_but_the_unknown(self, tokenizer):
        assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.pad_id == tokenizer.unk_id == 0
        assert tokenizer.byte_lengths is None  # its ids do not spell capitals
        assert tokenizer.decode(tokenizer.encode("The Quick 👍 fox")) == "the quick <unk>fox"


class TestBadInput:
    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="found nothing; allowed: a tokenizer.json, or a folder with"):
            Tokenizer.load(tmp_path / "nowhere")

    def test_a_folder_without(self, tmp_path):
        (tmp_path / "vocab.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match="found vocab.json; allowed: "):
            Tokenizer.load(tmp_path)

    def test_not_a_tokenizer(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text('{"half": ')
        with pytest.raises(ValueError, match="not a tokenizer.json"):
            Tokenizer.load(tmp_path)

    def test_no_end_of_text(self, tmp_path):
        (tmp_path / "vocab.json").write_text('{"a": 0}')
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(ValueError, match=r"found no <\|endoftext\|>"):
            Tokenizer.load(tmp_path)

    def test_vocabulary_too_small(self):
        with pytest.raises(ValueError, match="ByteBPE.vocab_size=256; allowed: 257"):
            build(ByteBPE(256), [])

    def test_id_outside(self, exact):
        with pytest.raises(
            ValueError, match=f"token id: found {exact.vocab_size}; allowed: 0 to {exact.vocab_size - 1}"
        ):
            exact.token(exact.vocab_size)
