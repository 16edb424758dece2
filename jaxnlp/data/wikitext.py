"""WikiText as people write it: what its tokenisation put in is taken out again (Radford et al., 2019, section 3.1).

    " 17 @-@ inch , it 's ( then ) $ 1 @,@ 000 \\n"  ->  "17-inch, it's (then) $1,000\\n"

A model of text as it is written reads WikiText so, and its perplexity is stated for a word of the original:
experiments/studies/zero_shot.py.

GPT-2's rules were not published. These are ours: what white space stood there cannot always be told, so quotation marks
are closed in turns within a line, single ones stay as they are, and so does <unk>.
"""

import re

RULES = (
    (r" @(.)@ ", r"\1"),  # within a number or a word
    (r" '(?=(s|t|d|m|re|ve|ll)\b)", "'"),
    (r'(?<!\S)" ([^"\n]*) "(?!\S)', r'"\1"'),
    (r" (?=[.,;:!?%)\]])", ""),
    (r"(?<=[(\[$£€]) ", ""),
    (r"(?<=\d) – (?=\d)", "–"),
    (r"(?<==) (?==)", ""),  # of a heading
    (r"^[ \t]+|[ \t]+$", ""),
)


def detokenized(text: str) -> str:
    """ " The <unk> is \\" new \\" . \\n" -> "The <unk> is \\"new\\".\\n"."""
    for pattern, plain in RULES:
        text = re.sub(pattern, plain, text, flags=re.MULTILINE)
    return text


def n_words(text: str) -> int:
    """Of the original, as models of its words count them: an end of line, their <eos>, is one more."""
    return len(text.split()) + text.count("\n")
