"""Writes wordpiece.npz: texts that are hard to part into words, as ids of transformers' BertTokenizer.

    python tests/golden/wordpiece.py         where transformers is installed

Each of MODES has its ids, text after text, and where each text's end. The vocabulary lies beside them: it is made here
of the texts' own letters, whole or decomposed, lower-cased or not, so that little is unknown.

google-research/bert itself writes the sigma at a word's end as ς; transformers writes σ, as everywhere.
"""

import pathlib
import unicodedata

import numpy as np

MODES = {  # do_lower_case, strip_accents, tokenize_chinese_chars
    "uncased": (True, None, True),
    "cased": (False, None, True),
    "uncased_with_accents": (True, False, True),
    "cased_without_accents": (False, True, True),
    "chinese_words": (True, None, False),
}

TEXTS = [
    "",
    " \t\n\r ",
    "The quick brown fox, jumped over 13 lazy dogs!",
    "don't can't U.S.A. e.g. 3.14 1,000 $5 50% a+b=c x^2 <tag> `code` ~home",
    "unaffable unwanted running jumped",
    "한국어 문장을 통째로, 그대로. 값이 없다",
    unicodedata.normalize("NFD", "한국어 문장"),
    "나는 BERT를 좋아한다",
    "👩‍👩‍👧 🏳️‍🌈 🇰🇷 👍🏽 ❤️ ❤ a👍b",
    "e\u0301 é à ñ ü ẞ ß ö\u0323 q\u0307\u0323 Å \u212b Café CAFÉ naïve",
    "a\x00b c\x01d\x1fe \x7f \x85 f\ufffdg \u0085x",
    "zero\u200bwidth zero\u200dwidth zero\ufeffwidth soft\u00adhyphen left\u200eright",
    "tab\there no\u00a0break thin\u2009space ideo\u3000graphic line\u2028sep para\u2029sep new\x0bline form\x0cfeed",
    "中文字符没有空格abc中def 日本語テスト ひらがな カタカナ ｶﾞｷﾞ 𠀀𪜀 々〇",
    "ภาษาไทย हिन्दी العربية עִבְרִית தமிழ்",
    "İstanbul ISTANBUL ıspanak Iğdır",
    "ΟΔΟΣ Οδός ΣΑΣ ὈΔΥΣΣΕΎΣ ᾳ",
    "ﬁne ﬂow oﬃce ſtraße ﷺ № ½ ² Ⅷ ℡ ㎏ ｆｕｌｌ Ｗｉｄｔｈ",
    "a" * 100 + " " + "a" * 101 + " " + "é" * 100 + " " + "é" * 101 + " " + "한" * 50,
    "[MASK] [CLS]a[SEP] [PAD] [UNK] [mask] [unused1] ##ing [ MASK ]",
    "“quotes” ‘single’ – — … ·bullet• «guillemets» ¿qué? 。、！？",
    "Ǆ ǅ ǆ Ǳ ŉ ΐ ǰ ÿ Ÿ Ǎ",
    "\u0301leading \u0301 mark, \u20e3 1\u20e3 keycap \ufe0f",
    "\U0010ffff\ue000private \u0378unassigned",
    "mixed한글english中文123",
]


def vocabulary() -> list[str]:
    """The special tokens, the texts' letters in every form, at the beginning of a word and within, and some words."""
    letters = set()
    for text in TEXTS:
        for form in (text, text.lower(), text.upper()):
            for normal in ("NFC", "NFD"):
                letters |= set(unicodedata.normalize(normal, form))
    letters = sorted(c for c in letters if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cn"))
    words = (
        "the quick brown fox jump ##ed over lazy dog ##s un ##aff ##able ##ing want run cafe ##width 한국어 ##국어 문장"
    )
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, *letters, *("##" + c for c in letters if c != "한"), *words.split()]))


if __name__ == "__main__":
    from transformers import BertTokenizer

    words = vocabulary()
    ids = {word: i for i, word in enumerate(words)}
    arrays = {"vocabulary": np.array(words)}
    for name, (lower, strip, chinese) in MODES.items():
        tokenizer = BertTokenizer(ids, do_lower_case=lower, strip_accents=strip, tokenize_chinese_chars=chinese)
        found = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in TEXTS]
        arrays[f"{name}/ids"] = np.array([i for one in found for i in one], np.int32)
        arrays[f"{name}/ends"] = np.cumsum([len(one) for one in found])
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
