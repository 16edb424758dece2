"""SentencePiece models (Kudo and Richardson, 2018) under the names that the library `tokenizers` gives to its own."""

import base64
import json
import types
from collections.abc import Mapping, Sequence


class SentencePiece:
    """A SentencePiece model (Kudo and Richardson, 2018), whose pieces have the ids of a vocabulary, as Marian's have.

    What `Tokenizer` uses of a tokenizers.Tokenizer, by the library `sentencepiece`. ">>deu<<" at the beginning of a
    text, which tells a model of many languages what to write, is one token. ValueError for what is no such model.
    """

    SPECIAL = ("</s>", "<pad>")  # with <unk>, which shows where it is decoded

    def __init__(self, model: bytes, vocabulary: Mapping[str, int]):
        try:
            import sentencepiece
        except ImportError as error:
            raise RuntimeError("a SentencePiece tokenizer needs its library: pip install 'jaxnlp[hub]'") from error
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from error
        if absent := [token for token in (*self.SPECIAL, "<unk>") if token not in vocabulary]:
            raise ValueError(f"the vocabulary has no {', '.join(absent)}; allowed: one with it, as Marian's")
        self.model, self.vocabulary = model, dict(vocabulary)
        self.tokens = {id: token for token, id in vocabulary.items()}

    def no_truncation(self) -> None:
        pass

    no_padding = no_truncation

    def encode(self, text: str, add_special_tokens: bool = False) -> types.SimpleNamespace:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list[types.SimpleNamespace]:
        ends = [text.find("<<") + 2 if text.startswith(">>") and "<<" in text else 0 for text in texts]
        pieces = self.processor.encode([text[end:] for text, end in zip(texts, ends, strict=True)], out_type=str)
        whole = ([text[:end]] * bool(end) + found for text, end, found in zip(texts, ends, pieces, strict=True))
        unknown = self.vocabulary["<unk>"]
        return [types.SimpleNamespace(ids=[self.vocabulary.get(piece, unknown) for piece in found]) for found in whole]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        pieces = [token for token in map(self.tokens.get, ids) if token is not None and token not in self.SPECIAL]
        return self.processor.decode_pieces(pieces).replace("\u2581", " ").strip()

    def id_to_token(self, id: int) -> str | None:
        return self.tokens.get(id)

    def token_to_id(self, token: str) -> int | None:
        return self.vocabulary.get(token)

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return max(self.tokens) + 1

    def to_str(self, pretty: bool = False) -> str:
        return json.dumps({"sentencepiece": base64.b64encode(self.model).decode(), "vocabulary": self.vocabulary})
