"""Writes tagging.npz: which token belongs to which word, by transformers' BertTokenizer for sentences given in words.

    python tests/golden/tagging.py          where transformers is installed

Sentences are hard ones: accents, Korean, emoji, signs within words, a word of 120 letters, one of signs alone.
"""

import pathlib
import tempfile

import numpy as np

SENTENCES = [
    ["Jim", "Henson", "was", "a", "puppeteer", "."],
    ["l'été", "naïve", "Café-au-lait", "İstanbul"],
    ["한국어", "문장", "日本語", "ok"],
    ["U.S.A.", "co-founder", "#jaxnlp", "@user_1", "http://a.b/c"],
    ["x" * 120, "\U0001f600", "a\U0001f600b", "…"],
]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.-'#@_:/1"]
PIECES += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz1"]
PIECES += ["jim", "hen", "##son", "was", "puppet", "##eer", "ete", "naive", "cafe", "ok", "founder", "日", "本", "語"]


def tokenizer():
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
        return transformers.BertTokenizerFast.from_pretrained(folder)


if __name__ == "__main__":
    arrays = {}
    for i, words in enumerate(SENTENCES):
        found = tokenizer()(words, is_split_into_words=True)
        arrays[f"{i}/input_ids"] = np.array(found["input_ids"])
        arrays[f"{i}/word_ids"] = np.array([-1 if w is None else w for w in found.word_ids()])
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
