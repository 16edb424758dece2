"""LAMBADA: the last word of a passage, which only the whole of it makes likely (Paperno et al., 2016).

    accuracy               passages whose last word is the likeliest: each of its tokens after those before it, greedily
    last_token_accuracy    passages whose very last token is, after all others
    perplexity             exp(- sum_i log p(word_i | passage_i) / passages): a whole word is counted as one
    token_perplexity       exp(- sum_i log p(word_i | passage_i) / tokens of all words)

The last word is what follows the last white space, read with that before it. OpenAI's GPT-2 figures (Radford et al.,
2019, table 3: 45.99 for 117M) are of the text as it was written, and of about what `last_token_accuracy` counts
(github.com/openai/gpt-2/issues/131); whole words, as lm-evaluation-harness has them, are harder: 32.56 there for the
same model (its issue 2159). TFDS's public set `lambada` holds the authors' own lower-cased words with spaces before
punctuation, on which figures are others again.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from flax import linen as nn

from jaxnlp import metrics
from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.tasks import inputs, scoring
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.tasks.task import require


@dataclasses.dataclass(frozen=True)
class LastWord:
    """A task that is only evaluated: `run.predict(texts, task=LastWord())`, `evaluate(run, task=…, source=…)`."""

    text: str = "passage"  # the feature that holds the text

    heads: ClassVar[tuple[()]] = ()

    def parts(self, text: str) -> tuple[str, str]:
        """The text without its last word, and this with the white space before it: "To be\\n" -> ("To", " be")."""
        found = re.fullmatch(r"(.*\S)(\s+\S+)\s*", text, re.DOTALL)
        if found is None:
            raise ValueError(f"the text {text[:80]!r} has not two words; allowed: a last word, and some before it")
        return found[1], found[2]

    def predict(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, items: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """{"word", "log_prob", "likeliest"} of each text's last word: the last says so of each of its tokens.

        Items are texts, alone or under the feature's name.
        """
        LanguageModeling().check(model)
        words = [self.parts(*inputs.parts(item, (self.text,))) for item in items]
        trees = scoring.encode(tokenizer, [(before, [word]) for before, word in words])
        found = itertools.chain(*scoring.of_tokens(model, params, trees))
        return [
            {"word": word.strip(), "log_prob": float(log_p.sum()), "likeliest": best.tolist()}
            for (_, word), (log_p, best) in zip(words, found, strict=True)
        ]

    def score(
        self, model: nn.Module, params: Mapping[str, Any], tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """What the module's docstring defines; accuracy_low and accuracy_high bound Wilson's interval of 95 %."""
        texts = [require(examples[i], self.text, "text") for i in range(len(examples))]
        if not texts:
            raise ValueError("no examples; allowed: one and more")
        found = self.predict(model, params, tokenizer, texts)
        right, n = sum(all(one["likeliest"]) for one in found), len(found)
        nats = -sum(one["log_prob"] for one in found)
        low, high = metrics.interval(right, n)
        return {
            "accuracy": right / n,
            "accuracy_low": low,
            "accuracy_high": high,
            "last_token_accuracy": float(np.mean([one["likeliest"][-1] for one in found])),
            "perplexity": math.exp(min(nats / n, 700.0)),
            "token_perplexity": math.exp(min(nats / sum(len(one["likeliest"]) for one in found), 700.0)),
        }
