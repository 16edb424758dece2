"""Text to ids and back: byte-level BPE, WordPiece and characters by the library `tokenizers`, SentencePiece by its own.

A specification says how a tokenizer is made (`build`); a `Tokenizer` encodes, decodes and is saved as `tokenizer.json`.

    >>> tokenizer = build(Characters(), ["to be"])
    >>> tokenizer.encode("bet")                       # 0 is <|endoftext|>, 1 is <unk>, then the characters in order
    [3, 4, 6]
    >>> tokenizer.decode([3, 4, 6, 0])
    'bet'

Ids are those of the text alone: a task adds [CLS], [SEP] or the end of text. A special token's name inside a text is
text like any other, so that no document can forge the end of a document. Training is deterministic.

Byte-level BPE: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (any text, exactly).
WordPiece: Devlin et al., "BERT", 2019; Schuster and Nakajima, 2012 (normalised text; longest match first).
GPT-1's BPE: Radford et al., 2018; Sennrich et al., 2016 (normalised text; </w> ends a word), of files alone.
"""

import base64
import collections
import dataclasses
import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from jaxnlp.data.sentencepiece import SentencePiece
from jaxnlp.files import write_atomically

END = "<|endoftext|>"  # GPT-2's end of text; also begins a text and pads
WORD_END = "</w>"  # how a GPT-1 token ends with which a word does
BPE_FILES = (  # of GPT-2 or GPT-1 by transformers, and by OpenAI
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


class Tokenizer:
    """A thin wrapper: ids of texts, texts of ids, and what the special ids are."""

    def __init__(self, backend: "tokenizers.Tokenizer | SentencePiece"):
        backend.encode_special_tokens = True  # "<|endoftext|>" in a document is text, not the document's end
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend

    def encode(self, text: str) -> list[int]:
        """TypeError of what is no string, ValueError of one that is not valid Unicode."""
        (text,) = valid([text])
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, one thread a core."""
        return [e.ids for e in self.backend.encode_batch(list(valid(texts)), add_special_tokens=False)]

    @property
    def gives_places(self) -> bool:
        """Whether there are `offsets`."""
        return not isinstance(self.backend, SentencePiece)

    def offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Of each text its ids, and where in it each stands: text[start:end].

        "Été!" -> ([7, 9], [(0, 3), (3, 4)]), whether its accents are characters of their own or not. Several ids of
        one character have the same place, and a byte-level token's begins with the white space before the word.

        Raises:
            ValueError: of a SentencePiece model, which gives no places.
        """
        if not self.gives_places:
            raise ValueError("the tokenizer is a SentencePiece model, which gives no places; allowed: tokenizer.json")
        found = self.backend.encode_batch(list(valid(texts)), add_special_tokens=False)
        return [(e.ids, _with_marks(text, e.offsets)) for text, e in zip(texts, found, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens; an unknown character shows as <unk> or [UNK].

        Byte-level ids that end within a character give U+FFFD there. Who prints ids as they come therefore prints
        the text up to a final U+FFFD, and holds that back until later ids complete it.
        """
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    @property
    def target(self) -> "Tokenizer":
        """That of the texts to be written, where those read have their own: see `Pair`."""
        return self

    def spell(self, id: int) -> str:
        """What a person reads as the token: its text, or its name where it has none of its own."""
        text = self.backend.decode([int(id)], skip_special_tokens=True).strip()
        return text if text and "\ufffd" not in text else self.token(id)

    def token(self, id: int) -> str:
        token = self.backend.id_to_token(int(id))
        if token is None:
            raise ValueError(f"token id: found {id}; allowed: 0 to {self.vocab_size - 1}")
        return token

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_id(self) -> int:
        return self._first(END, "[SEP]", "</s>", *self._lacking_end)

    @property
    def bos_id(self) -> int:
        return self._first(END, "[CLS]", "<s>", "<pad>", *self._lacking_end)  # Marian begins with <pad>

    @property
    def pad_id(self) -> int:
        return self._first("[PAD]", "<pad>", END, *self._lacking_end)

    @functools.cached_property
    def _lacking_end(self) -> tuple[str, ...]:
        """GPT-1's vocabulary has no end: <unk>, which it never saw, stands for it."""
        suffix = getattr(getattr(self.backend, "model", None), "end_of_word_suffix", None)
        return ("<unk>",) if suffix == WORD_END else ()

    @property
    def unk_id(self) -> int | None:
        """None where every text has ids."""
        return next((i for i in map(self.backend.token_to_id, ("<unk>", "[UNK]")) if i is not None), None)

    @property
    def mask_id(self) -> int | None:
        """What a masked language model fills in; None where there is no such token."""
        return next((i for i in map(self.backend.token_to_id, ("[MASK]", "<mask>")) if i is not None), None)

    def extended(self, tokens: Sequence[str]) -> "Tokenizer":
        """This one with more special tokens, whose ids follow its own; what is special already stays as it is.

        Raises:
            ValueError: of a name that is a word of the vocabulary, and of a tokenizer that has no place for more.
        """
        if not tokens:
            return self
        if isinstance(self.backend, SentencePiece) or self.target is not self:
            kind = "a SentencePiece model" if isinstance(self.backend, SentencePiece) else "a pair of them"
            raise ValueError(
                f"tokens {', '.join(tokens)} for a tokenizer that is {kind}; allowed: tokenizer.json of one"
            )
        known = {token: self.backend.token_to_id(token) for token in tokens}
        if words := [token for token, id in known.items() if id is not None and id not in self.special_ids]:
            raise ValueError(f"tokens: {words[0]!r} is a word of the vocabulary; allowed: names that are none")
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_special_tokens(list(tokens))
        return Tokenizer(backend)

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Those that stand for no text, and for text that is not known."""
        if isinstance(self.backend, SentencePiece):
            found = {self.backend.token_to_id(token) for token in SentencePiece.SPECIAL}
        else:
            found = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        return tuple(sorted(found | ({self.unk_id} - {None})))

    @functools.cached_property
    def begins_word(self) -> Bool[np.ndarray, " V"]:
        """Of each id, whether a word begins with it: not with ##, and in byte-level BPE only after white space."""
        tokens = [self.backend.id_to_token(i) or "" for i in range(self.vocab_size)]
        if isinstance(self.backend, SentencePiece) or isinstance(self.backend.decoder, decoders.Metaspace):
            return np.array([token.startswith("\u2581") for token in tokens])
        if isinstance(self.backend.model, models.WordPiece):
            inside = self.backend.model.continuing_subword_prefix
            return np.array([not token.startswith(inside) for token in tokens])
        if isinstance(self.backend.decoder, decoders.ByteLevel):  # whose Ġ, Ċ and ĉ are space, end of line and tab
            return np.array([token.startswith(("Ġ", "Ċ", "ĉ")) for token in tokens])
        return np.ones(len(tokens), bool)

    def _first(self, *names: str) -> int:
        ids = [i for i in map(self.backend.token_to_id, names) if i is not None]
        if not ids:
            raise ValueError(f"tokenizer: found none of the special tokens {', '.join(names)} in its vocabulary")
        # RoBERTa's vocabulary has GPT-2's end as a word like any other.
        return next((i for i in ids if i in self.special_ids), ids[0])

    @functools.cached_property
    def byte_lengths(self) -> Int[np.ndarray, " V"] | None:
        """UTF-8 bytes of text that each id stands for: 0 for special tokens, and for <unk>, whose bytes are not known.

        None where ids do not spell the text exactly (WordPiece, SentencePiece, GPT-1's BPE).
        """
        if isinstance(self.backend, SentencePiece) or isinstance(self.backend.model, models.WordPiece):
            return None
        if self.backend.normalizer is not None:  # GPT-1's BPE, of small letters alone
            return None
        special = {*self.backend.get_added_tokens_decoder(), self.unk_id}
        tokens = ["" if i in special else self.token(i) for i in range(self.vocab_size)]
        if isinstance(self.backend.decoder, decoders.ByteLevel):  # whose alphabet has one character a byte
            return np.array([len(token) for token in tokens], np.int32)
        return np.array([len(token.encode()) for token in tokens], np.int32)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self.backend.to_str(pretty=True)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        parts = json.loads(text)
        if parts.keys() == {"source", "target"}:
            return PairTokenizer(*(cls.from_json(json.dumps(parts[name])) for name in ("source", "target")))
        if parts.keys() == {"sentencepiece", "vocabulary"}:
            return cls(SentencePiece(base64.b64decode(parts["sentencepiece"]), parts["vocabulary"]))
        return cls(tokenizers.Tokenizer.from_str(text))

    def save(self, path) -> None:
        """Writes tokenizer.json."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path) -> "Tokenizer":
        """From tokenizer.json, or a folder that holds it or other files (see `TokenizerFile`)."""
        path = epath.Path(path)
        folder = {p.name for p in path.iterdir()} if path.is_dir() else set()
        if path.is_file() or "tokenizer.json" in folder:
            file = path / "tokenizer.json" if folder else path
            try:
                return cls.from_json(file.read_text(encoding="utf-8"))
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"tokenizer {file}: not a tokenizer.json: {error}") from error
        if {"source.spm", "target.spm", "vocab.json"} <= folder:
            return _marian(path, "target_vocab.json" if "target_vocab.json" in folder else "vocab.json")
        for vocab, merges in BPE_FILES:
            if {vocab, merges} <= folder:
                return cls(_with_added(_bpe(path / vocab, path / merges), path))
        if "vocab.txt" in folder:
            return cls(_with_added(_bert(path / "vocab.txt"), path))
        raise FileNotFoundError(
            f"tokenizer {path}: found {', '.join(sorted(folder)) or 'nothing'}; allowed: a tokenizer.json, or a folder"
            f" with tokenizer.json, {', '.join(' + '.join(pair) for pair in BPE_FILES)}, vocab.txt, or source.spm +"
            " target.spm + vocab.json"
        )


@dataclasses.dataclass(frozen=True)
class ByteBPE:
    """Byte-level byte-pair encoding with GPT-2's pre-tokenisation; every text comes back exactly."""

    vocab_size: int = 8192  # at most; a small text gives fewer. At least the 256 bytes and the end of text

    def build(self, texts: Iterable[str]) -> Tokenizer:
        if self.vocab_size < 257:
            raise ValueError(f"ByteBPE.vocab_size={self.vocab_size}; allowed: 257 (256 bytes and {END}) or more")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return Tokenizer(backend)


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """BERT's WordPiece over BERT's normalised text; pieces inside a word begin with ##.

    Rare characters are unknown: those beyond the vocab_size / 4 most frequent, as each may take two ids.
    """

    vocab_size: int = 30522  # at most; BERT's (uncased)
    lowercase: bool = True  # and strip accents, as BERT's uncased models do
    hangul: bool = True  # keep Korean syllables whole; BERT's uncased models leave them split into letters

    def build(self, texts: Iterable[str]) -> Tokenizer:
        backend = _wordpiece(models.WordPiece(unk_token="[UNK]"), self.lowercase, self.hangul)
        texts = [backend.normalizer.normalize_str(text) for text in texts]
        counts = collections.Counter()
        for text in texts:
            counts.update(text)
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        kept, rare = ranked[: self.vocab_size // 4], ranked[self.vocab_size // 4 :]
        # The trainer numbers the characters inside words in a random order, and merges by number, unless it has them.
        inside = sorted("##" + character for character in kept if not character.isspace())
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[*BERT_SPECIALS, *inside],
            limit_alphabet=len(counts),
            show_progress=False,
        )
        without_rare = str.maketrans(dict.fromkeys(rare, " "))
        backend.train_from_iterator((text.translate(without_rare) for text in texts), trainer)
        model = models.WordPiece(backend.get_vocab(), unk_token="[UNK]")
        return Tokenizer(_with_bert_specials(_wordpiece(model, self.lowercase, self.hangul)))


@dataclasses.dataclass(frozen=True)
class Characters:
    """One id a character (code point) of the training text, in code point order; any other character is <unk>."""

    def build(self, texts: Iterable[str]) -> Tokenizer:
        characters = set()
        for text in texts:
            characters.update(text)
        vocab = {token: i for i, token in enumerate([END, "<unk>", *sorted(characters)])}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([END])
        return Tokenizer(backend)


class PairTokenizer(Tokenizer):
    """The source's tokenizer, which has the target's beside it; both lie in one tokenizer.json."""

    def __init__(self, source: Tokenizer, target: Tokenizer):
        super().__init__(source.backend)
        self._target = target

    @property
    def target(self) -> Tokenizer:
        return self._target

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        parts = {"source": super().to_json(), "target": self.target.to_json()}
        return json.dumps({name: json.loads(part) for name, part in parts.items()}, ensure_ascii=False, indent=2)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A vocabulary for the texts that are read, and one for those that are written; trained on them in turns."""

    source: Any  # ByteBPE(…), WordPiece(…), Characters(), TokenizerFile(…)
    target: Any

    def build(self, texts: Iterable[str]) -> Tokenizer:
        texts = list(texts)
        return PairTokenizer(build(self.source, texts[::2]), build(self.target, texts[1::2]))


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that exists: tokenizer.json, or a folder with it, with GPT-2's, GPT-1's or RoBERTa's vocab.json +
    merges.txt (OpenAI's encoder.json + vocab.bpe, and encoder_bpe_40000.json + vocab_40000.bpe, are the same files),
    with BERT's vocab.txt, either with added_tokens.json, or with Marian's source.spm + target.spm + vocab.json."""

    path: str  # of the file or the folder

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        return Tokenizer.load(self.path)


def build(spec: ByteBPE | WordPiece | Characters | Pair | TokenizerFile, texts: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that a specification describes, trained on the texts where it is trained at all."""
    return spec.build(valid(texts))


def valid(texts: Iterable[Any]) -> Iterator[str]:
    """The texts, one by one. TypeError of what is no string, ValueError of one with half a surrogate pair.

    Such halves stand for bytes that are no UTF-8, in a command's arguments and wherever errors="surrogateescape" is.
    """
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"the text {str(text)[:80]!r} is a {type(text).__name__}; allowed: a str")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                around = text[max(error.start - 20, 0) : error.start + 20]
                found = f"the text {around!r} is not valid Unicode: {text[error.start]!r} is half a character"
                raise ValueError(f"{found}; allowed: whole ones, as text.encode(errors='replace').decode()") from error
        yield text


def _with_marks(text: str, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places that end after the accents and the letters of a syllable that a normaliser took away or joined."""
    if text.isascii():
        return places
    found, following = [], [start for start, _ in places[1:]] + [len(text)]
    for (start, end), limit in zip(places, following, strict=True):
        while end < limit and (unicodedata.category(text[end]) == "Mn" or "\u1160" <= text[end] <= "\u11ff"):
            end += 1
        found.append((start, end))
    return found


def _marian(path: epath.Path, target_vocabulary: str) -> PairTokenizer:
    parts = {"source.spm": "vocab.json", "target.spm": target_vocabulary}
    made = []
    for model, vocabulary in parts.items():
        try:
            ids = json.loads((path / vocabulary).read_text(encoding="utf-8"))
            made.append(Tokenizer(SentencePiece((path / model).read_bytes(), ids)))
        except ValueError as error:
            raise ValueError(f"tokenizer {path}, {model} with {vocabulary}: {error}") from error
    return PairTokenizer(*made)


def _byte_level(model: models.BPE, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _wordpiece(
    model: models.WordPiece,
    lowercase: bool,
    hangul: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
) -> tokenizers.Tokenizer:
    """`strip_accents=None` does as `lowercase`; each Chinese character is a word of its own, or not."""
    strip_accents = lowercase if strip_accents is None else strip_accents
    backend = tokenizers.Tokenizer(model)
    options = {"strip_accents": strip_accents, "handle_chinese_chars": chinese_characters}
    steps = [normalizers.BertNormalizer(lowercase=lowercase, **options)]
    if strip_accents and hangul:
        steps.append(normalizers.NFC())  # stripping accents decomposed every syllable into its letters
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _bpe(vocab: epath.Path, merges: epath.Path) -> tokenizers.Tokenizer:
    words, options = _json(vocab), _json(vocab.with_name("tokenizer_config.json"))
    if END not in words and any(word.endswith(WORD_END) for word in words):
        return _gpt1(vocab, merges)
    backend = _byte_level(models.BPE.from_file(str(vocab), str(merges)), options.get("add_prefix_space", False))
    special = ROBERTA_SPECIALS if {"<s>", "</s>"} <= words.keys() else (END,)
    if not words.keys() & set(special):
        raise ValueError(f"tokenizer {vocab}: found no {END}; allowed: GPT-2's vocabulary, which has it, or RoBERTa's")
    backend.add_special_tokens(
        [AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in special if token in words]
    )
    return backend


def _gpt1(vocab: epath.Path, merges: epath.Path) -> tokenizers.Tokenizer:
    """As transformers reads it, which parts words as BERT does; OpenAI's code, by ftfy and spaCy, parts some others."""
    options = {"unk_token": "<unk>", "end_of_word_suffix": WORD_END, "fuse_unk": False}
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges), **options))
    if backend.token_to_id("<unk>") is None:
        raise ValueError(f"tokenizer {vocab}: found no <unk>; allowed: GPT-1's vocabulary, which has it")
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return backend


def _bert(vocab: epath.Path) -> tokenizers.Tokenizer:
    """Without a tokenizer_config.json that tells, a vocabulary without upper-case letters is an uncased model's."""
    model = models.WordPiece.from_file(str(vocab), unk_token="[UNK]")
    options = _json(vocab.with_name("tokenizer_config.json"))
    words = set(vocab.read_text(encoding="utf-8").splitlines()) - set(BERT_SPECIALS)
    uncased = not any(word != word.lower() for word in words if not word.startswith("["))
    backend = _wordpiece(
        model,
        lowercase=options.get("do_lower_case", uncased),
        hangul=False,
        strip_accents=options.get("strip_accents"),
        chinese_characters=options.get("tokenize_chinese_chars", True),
    )
    return _with_bert_specials(backend)


def _json(file: epath.Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _with_added(backend: tokenizers.Tokenizer, folder: epath.Path) -> tokenizers.Tokenizer:
    """With the words of added_tokens.json, whose ids follow those of the vocabulary."""
    file = folder / "added_tokens.json"
    for token, id in sorted(_json(file).items(), key=lambda pair: pair[1]):
        if backend.token_to_id(token) is None:
            backend.add_tokens([token])
        if (found := backend.token_to_id(token)) != id:
            raise ValueError(f"tokenizer {file}: {token!r} is {id}; allowed: {found}, after the vocabulary")
    return backend


def _with_bert_specials(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """All but [UNK]: what is special vanishes in decoding, and a word that was not understood should show."""
    backend.add_special_tokens([t for t in BERT_SPECIALS if t != "[UNK]" and backend.token_to_id(t) is not None])
    return backend
