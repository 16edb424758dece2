"""`number_words`: numbers from 1 to 999,999 written out in English, Korean, French and German, without a download.

A translation set with one right answer, and with numbers in validation and test that do not occur in train:

    number        digits, "12345"
    en            "twelve thousand, three hundred and forty-five"
    ko            Sino-Korean, a space after 만 (10,000): "만 이천삼백사십오"
    ko_native     as things are counted: native below a hundred, Sino-Korean above: "만 이천삼백마흔다섯"
    fr            "douze mille trois cent quarante-cinq"
    de            "zwölftausenddreihundertfünfundvierzig"

Native Korean has words for 1 to 99 alone. Zero is left out: its word occurs in no other number. The words are
num2words', but for the native ones, and for German numbers such as 101,000 (see `german`). Which numbers are in which
split is decided by a hash, so on every machine alike; `PARTS` gives how many of each length.
"""

import hashlib
import itertools
from collections.abc import Iterator

import num2words
import tensorflow_datasets as tfds

SPLITS = ("train", "validation", "test")
PARTS = {  # digits: numbers in train, validation and test; all of up to three digits, then as many of each length
    1: (7, 1, 1),
    2: (75, 5, 10),
    3: (750, 50, 100),
    4: (6400, 320, 640),
    5: (6400, 320, 640),
    6: (6400, 320, 640),
}

ONES = ["", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉"]
TENS = ["", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔"]


def numbers() -> dict[str, list[int]]:
    """By split; within a split in the order of the hash, so that any part of it has all lengths."""
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for digits, counts in PARTS.items():
        drawn = _drawn(digits)
        for split, count in zip(SPLITS, counts, strict=True):
            splits[split] += itertools.islice(drawn, count)
    return {split: sorted(found, key=lambda number: _hash(str(number))) for split, found in splits.items()}


def _drawn(digits: int) -> Iterator[int]:
    """Numbers of so many digits, each once, as a hash draws them."""
    first, seen = 10 ** (digits - 1), set()
    for i in itertools.count():
        number = first + _hash(f"{digits}/{i}") % (9 * first)
        if number not in seen:
            seen.add(number)
            yield number


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def written(number: int) -> dict[str, str]:
    """The example of a number, 1 to 999,999."""
    return {
        "number": str(number),
        "en": num2words.num2words(number, lang="en"),
        "ko": num2words.num2words(number, lang="ko"),
        "ko_native": native(number),
        "fr": num2words.num2words(number, lang="fr"),
        "de": german(number),
    }


def native(number: int) -> str:
    """12345 -> "만 이천삼백" + "마흔다섯"."""
    above, below = number // 100 * 100, number % 100
    high = num2words.num2words(above, lang="ko") if above else ""
    low = TENS[below // 10] + ONES[below % 10]
    return f"{high} {low}".strip() if above % 10_000 == 0 else high + low


def german(number: int) -> str:
    """num2words, where its thousands do not end in "eins": 101,000 is "einhunderteintausend"."""
    return num2words.num2words(number, lang="de").replace("einstausend", "eintausend")


class NumberWords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; `TFDS("number_words")` uses it."""

    name = "number_words"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}  # noqa: RUF012  nothing is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        features = dict.fromkeys(("number", "en", "ko", "ko_native", "fr", "de"), tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description="Numbers written out in English, Korean (Sino-Korean and native), French and German.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(found) for split, found in numbers().items()}

    def _generate_examples(self, found: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
        return enumerate(map(written, found))
