"""Sets that this Python makes of itself: what is tagged, what is paired, what the files of others become."""

import pytest

from jaxnlp.data.corpora import python_pairs, python_tags, sick, wnut17


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ('The "try" statement, if any.', "The/O try/KEYWORD statement/O ,/O if/O any/O ./O"),
        ("Return ``len(x)`` or `None`.", "Return/O `/O `/O len/O (/O x/O )/O `/O `/O or/O None/KEYWORD ./O"),
        ("Call `len()` of 'os.path'", "Call/O len/BUILTIN of/O os.path/O"),
        ("Raises ValueError in 'time'", "Raises/O ValueError/EXCEPTION in/O time/MODULE"),
        ("don't import it", "don't/O import/O it/O"),
    ],
)
def test_code_is_what_the_text_writes_as_code(sentence, expected):
    assert " ".join(f"{word}/{tag}" for word, tag in python_tags.tagged(sentence)) == expected


@pytest.mark.slow
def test_sentences_are_in_one_split_each_and_have_a_tag():
    parts = python_tags.PythonTags(data_dir="unused")._examples()
    texts = {split: {" ".join(one["tokens"]) for one in found} for split, found in parts.items()}
    assert not (texts["train"] & texts["validation"] or texts["train"] & texts["test"])
    assert all(set(one["tags"]) - {"O"} for found in parts.values() for one in found)
    assert all(len(one["tags"]) == len(one["tokens"]) for found in parts.values() for one in found)
    counts = [sum(tag in one["tags"] for one in parts["train"]) for tag in python_tags.TAGS[1:]]
    assert len(parts["train"]) > 500 and min(counts) > 20


def test_half_of_the_pairs_go_on():
    found = [{"kind": "class", "title": str(i), "text": f"Line {i} of it.\n\nBody {i}."} for i in range(400)]
    pairs = list(python_pairs._paired(found))
    for pair in pairs:
        follows = pair["text"].split()[1] == pair["next"].split()[1].strip(".")
        assert follows == (pair["label"] == 0)
    assert 150 < sum(pair["label"] for pair in pairs) < 250


def test_files_of_others_become_examples():
    text = "Jim\tB-person\nHenson\tI-person,O\n\nhi\tO\nbroken\n:)\tO\n"
    assert list(wnut17._posts(text)) == [
        {"tokens": ["Jim", "Henson"], "ner": ["B-person", "I-person"]},
        {"tokens": ["hi"], "ner": ["O"]},
        {"tokens": [":)"], "ner": ["O"]},
    ]
    rows = 'pair_ID\tA\tB\tscore\tlabel\n7\tA dog\tA "cat\n8\tx\ty\t1\tNEUTRAL\n'.replace(
        '"cat', '"cat\t4.5\tENTAILMENT'
    )
    files = dict.fromkeys(sick.SICK.PARTS.values(), rows)
    found = list(sick.SICK(data_dir="unused")._examples(files)["train"])
    assert found[0] == {
        "sentence_A": "A dog", "sentence_B": 'A "cat', "relatedness_score": 4.5, "entailment_label": "ENTAILMENT",
    }  # fmt: skip
    assert len(found) == 2
