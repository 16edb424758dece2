"""Text as it comes, token by token: what of it is settled, and where it ends."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxnlp.data.tokenizers import Tokenizer


@dataclasses.dataclass
class Row:
    """One prompt's text as it grows."""

    prompt: list[int]
    ids: list[int] = dataclasses.field(default_factory=list)  # with the end token
    text: str = ""  # as far as it is settled
    done: bool = False
    start: int = 0  # of prompt and ids, the first that the model sees

    def read(self, ids: list[int], tokenizer: Tokenizer, stop: Sequence[str], last: bool) -> str:
        """Takes all new token ids so far, and returns what they add to the text."""
        if self.done:
            return ""
        if tokenizer.eos_id in ids:
            ids = ids[: ids.index(tokenizer.eos_id) + 1]
        self.ids = ids
        text = self._decode(ids, tokenizer)
        ends = [text.index(s) for s in stop if s in text]
        self.done = last or bool(ends)
        if ends:
            whole = (n for n in range(len(ids)) if any(s in self._decode(ids[:n], tokenizer) for s in stop))
            self.ids, text = ids[: next(whole, len(ids))], text[: min(ends)]
        if not self.done:
            text = text[: settled(text, stop)]
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def seen(self, window: int) -> list[int]:
        """What the model sees of prompt and text: all from `start` on, which moves when that is more than a window."""
        tokens = [*self.prompt, *self.ids]
        if len(tokens) - self.start > window:
            self.start = len(tokens) - window // 2
        return tokens[-1:] if self.done else tokens[self.start :]

    def details(self, log_probs: Sequence[float]) -> dict[str, Any]:
        """`log_probs` is of the ids, and may go on beyond them."""
        log_probs = list(log_probs[: len(self.ids)])
        return {"text": self.text, "tokens": self.ids, "log_probs": log_probs, "log_prob": sum(log_probs)}

    def _decode(self, ids: list[int], tokenizer: Tokenizer) -> str:
        # With the prompt before them: a token may give its leading space only after another one.
        return tokenizer.decode([*self.prompt, *ids])[len(tokenizer.decode(self.prompt)) :]


def settled(text: str, stop: Sequence[str]) -> int:
    """Characters that later tokens cannot change: not half a character, nor the beginning of a stop string.

    settled("a b\\ufffd", ()) is 3, and settled("end\\n", ["\\n\\n"]) is 3.
    """
    n = len(text.rstrip("\ufffd"))
    begun = (
        i for i in range(max(0, n - max(map(len, stop), default=0)), n) if any(s.startswith(text[i:n]) for s in stop)
    )
    return next(begun, n)
