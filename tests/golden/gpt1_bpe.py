"""Writes gpt1_bpe.npz: texts that are hard to part into words, as ids of transformers' OpenAIGPTTokenizer.

    python tests/golden/gpt1_bpe.py          where transformers is installed

The texts are wordpiece.py's. `ids` are theirs, text after text, `ends` where each ends, and `decoded` what transformers
makes of them; `vocabulary` (vocab.json) and `merges` (merges.txt) are made here of the texts by Sennrich et al.'s
algorithm, the most frequent pair first, 300 times.
"""

import collections
import json
import pathlib

import numpy as np

MERGES = 300


def learned(words: collections.Counter) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """<unk>, the characters within and at the end of words but the rarest, and a token for each merge."""
    parts = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    counts = collections.Counter(token for word, n in words.items() for token in parts[word] * n)
    vocabulary = {token: i for i, token in enumerate(["<unk>", *sorted(t for t in counts if ord(t[0]) < 0x1F000)])}
    merges = []
    for _ in range(MERGES):
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(parts[word], parts[word][1:], strict=False):
                pairs[pair] += n * (pair[0] in vocabulary and pair[1] in vocabulary)
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(best)
        vocabulary.setdefault("".join(best), len(vocabulary))
        for word, tokens in parts.items():
            merged = []
            for token in tokens:
                if merged and (merged[-1], token) == best:
                    merged[-1] += token
                else:
                    merged.append(token)
            parts[word] = merged
    return vocabulary, merges


def arrays() -> dict[str, np.ndarray]:
    import transformers
    from wordpiece import TEXTS

    backend = transformers.OpenAIGPTTokenizer()._tokenizer
    words = collections.Counter()
    for text in TEXTS:
        words.update(w for w, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    vocabulary, merges = learned(words)
    tokenizer = transformers.OpenAIGPTTokenizer(vocab=vocabulary, merges=merges)
    ids = [tokenizer.encode(text) for text in TEXTS]
    return {
        "ids": np.concatenate(ids).astype(np.int32),
        "ends": np.cumsum([len(found) for found in ids]),
        "decoded": np.array([tokenizer.decode(found) for found in ids]),
        "vocabulary": np.array(json.dumps(vocabulary)),
        "merges": np.array("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""])),
    }


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays())
