"""Sources: TFDS sets read at random without TensorFlow, as plain Python values, and errors that say what there is."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxnlp.data import corpora
from jaxnlp.data.corpora import text_files
from jaxnlp.data.sources import TFDS, Joined, class_names, fingerprint, open_source

F = tfds.features
EXAMPLES = [
    {
        "id": f"q{i}",
        "n": i,
        "score": i / 2,
        "tokens": ["한국", "b"][: i % 3],
        "tags": ["O", "B"][: i % 3],
        "answers": {"text": ["x", "yy"][: i % 3], "start": [i, 0][: i % 3]},
    }
    for i in range(10)
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A set as others prepare it, and one of our own text files."""

    class Nested(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, classes = "nested", ("O", "B")
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small")]  # noqa: RUF012
        url_infos = {}  # noqa: RUF012

        def _info(self):
            features = {
                "id": F.Text(),
                "n": np.int32,
                "score": np.float32,
                "tokens": F.Sequence(F.Text()),
                "tags": F.Sequence(F.ClassLabel(names=self.classes)),
                "answers": F.Sequence({"text": F.Text(), "start": np.int32}),
            }
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": enumerate(EXAMPLES), "test": enumerate(EXAMPLES[:3])}

        def _generate_examples(self, examples):
            return examples

    class Other(Nested, skip_registration=True):
        name, classes = "other", ("B", "O")

    folder = tmp_path_factory.mktemp("tfds")
    with corpora.quiet():
        for made in (Nested, Other):
            made(data_dir=folder, file_format="array_record").download_and_prepare()
    (folder / "a.txt").write_text("to be\nor not\n")
    text_files.prepare("tiny_shakespeare", {"train": [str(folder / "a.txt")]}, data_dir=str(folder), unit="line")
    return str(folder)


def test_plain_values(data_dir):
    examples = open_source(TFDS("nested/small", data_dir=data_dir))
    assert len(examples) == 10
    for found, expected in zip(examples, EXAMPLES):
        assert list(found["tokens"]) == expected["tokens"]
        assert list(found["answers"]["text"]) == expected["answers"]["text"]
        np.testing.assert_array_equal(found["answers"]["start"], expected["answers"]["start"])
        np.testing.assert_array_equal(found["tags"], [["O", "B"].index(tag) for tag in expected["tags"]])
        assert (found["id"], found["n"], found["score"]) == (expected["id"], expected["n"], expected["score"])
        assert [type(found[name]) for name in ("id", "n", "score")] == [str, int, float]


@pytest.mark.parametrize(
    ("split", "numbers"), [("test", range(3)), ("train[:30%]", range(3)), ("train[8:]+test", [8, 9, 0, 1, 2])]
)
def test_splits_as_tfds_writes_them(data_dir, split, numbers):
    assert [e["n"] for e in open_source(TFDS("nested/small", split), data_dir)] == list(numbers)


def test_a_prepared_folder_comes_before_the_catalogue(data_dir):
    """The catalogue has a tiny_shakespeare too, which would have to be downloaded."""
    examples = open_source(TFDS("tiny_shakespeare"), data_dir)
    assert [e["text"] for e in examples] == ["to be", "or not"]


def test_class_names(data_dir):
    assert class_names(TFDS("nested/small"), "tags", data_dir) == ("O", "B")
    assert class_names(TFDS("nested/small"), "id", data_dir) is None
    assert class_names([{"label": 1}], "label") is None
    with pytest.raises(
        ValueError, match="feature 'label' of 'nested/small': not found; there are answers, id, n, score"
    ):
        class_names(TFDS("nested/small"), "label", data_dir)


class Squares:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"n": i * i}


def test_any_object_is_a_source():
    squares = Squares()
    assert open_source(squares) is squares


def test_joined(data_dir):
    small, test = TFDS("nested/small", "train[8:]"), TFDS("nested/small", "test")
    joined = open_source(Joined((small, test)), data_dir)
    assert [e["n"] for e in joined] == [8, 9, 0, 1, 2]
    assert (len(joined), joined[-1]["n"]) == (5, 2)
    with pytest.raises(IndexError):
        joined[5]
    assert class_names(Joined((small, test)), "tags", data_dir) == ("O", "B")
    with pytest.raises(
        ValueError, match="the parts differ in the classes of feature 'tags': nested/small: .*other/small"
    ):
        class_names(Joined((small, TFDS("other/small"))), "tags", data_dir)
    with pytest.raises(ValueError, match="Joined: found no parts; allowed: one or more"):
        Joined(())


class TestFingerprint:
    def test_of_examples(self):
        one = [{"text": "a", "x": np.arange(3)}, {"text": "b", "x": np.arange(2)}]
        same = [{"x": np.arange(3), "text": "a"}, {"text": "b", "x": np.arange(2)}]
        other = [{"text": "a", "x": np.arange(3)}, {"text": "b", "x": np.arange(1, 3)}]
        assert fingerprint(one) == fingerprint(same) != fingerprint(other)
        assert fingerprint(one) != fingerprint(one[:1])
        assert fingerprint(Squares()) == fingerprint([{"n": 0}, {"n": 1}, {"n": 4}])

    def test_of_joined_sets(self, data_dir):
        one, other = TFDS("nested/small", "train"), TFDS("nested/small", "test")
        found = {fingerprint(Joined(parts), data_dir) for parts in ((one,), (one, other), (other, one), (one, one))}
        assert len(found) == 4

    def test_of_a_set(self, data_dir, tmp_path):
        nested = TFDS("nested/small", "train")
        assert fingerprint(nested, data_dir) == fingerprint(TFDS("nested/small", "train", data_dir))
        assert fingerprint(nested, data_dir) != fingerprint(TFDS("nested/small", "test"), data_dir)

    def test_of_other_text_of_the_same_size_under_the_same_name(self, tmp_path):
        found = []
        for text in ("to be", "or so"):
            (tmp_path / "a.txt").write_text(text)
            text_files.prepare("mine", {"train": [str(tmp_path / "a.txt")]}, data_dir=str(tmp_path))
            found.append(fingerprint(TFDS("mine"), str(tmp_path)))
        assert found[0] != found[1]


class TestBadInput:
    def test_no_such_set(self, data_dir):
        with pytest.raises(ValueError) as error:
            open_source(TFDS("nestd"), data_dir)
        for part in (
            "'nestd'",
            data_dir,
            "prepared there: nested, other, tiny_shakespeare",
            "made here: comve, ko_en, multi30k, nsmc, number_words, python_docs",
            "near: nested",
        ):
            assert part in str(error.value)
        assert "python -m jaxnlp.data.corpora.text_files --name nestd" in str(error.value)

    def test_no_such_config(self, data_dir):
        with pytest.raises(ValueError, match="'glue/sst3': not in .*BuilderConfig sst3 not found"):
            open_source(TFDS("glue/sst3"), data_dir)

    def test_needs_tensorflow(self, data_dir):
        with pytest.raises(ValueError, match="super_glue.*No module named 'tensorflow'"):
            open_source(TFDS("super_glue/boolq"), data_dir)

    def test_no_such_split(self, data_dir):
        with pytest.raises(
            ValueError, match=r"split 'dev' of 'nested/small' in .*: not found; there are train \(10\), test"
        ):
            open_source(TFDS("nested/small", "dev"), data_dir)

    def test_empty_split(self, data_dir):
        with pytest.raises(ValueError, match=r"split 'test\[:0\]' of .*: found no examples; there are train \(10\)"):
            open_source(TFDS("nested/small", "test[:0]"), data_dir)

    def test_written_as_tfrecord(self, tmp_path):
        folder = tmp_path / "old" / "1.0.0"
        folder.mkdir(parents=True)
        info = {"name": "old", "version": "1.0.0", "fileFormat": "tfrecord"}
        info["splits"] = [{"name": "train", "shardLengths": ["1"], "numBytes": "1"}]
        (folder / "dataset_info.json").write_text(json.dumps(info))
        features = F.FeaturesDict({"text": F.Text()})
        features.save_config(folder)
        with pytest.raises(ValueError, match="'old' in .*: found files of format tfrecord; allowed: array_record"):
            open_source(TFDS("old"), str(tmp_path))

    def test_no_source(self):
        with pytest.raises(TypeError, match="source: found generator; allowed: TFDS"):
            open_source(example for example in [])
        with pytest.raises(ValueError, match="source: found no examples"):
            open_source([])


def test_default_directory_and_no_tensorflow(data_dir):
    """TFDS_DATA_DIR is read when TFDS is imported, hence the process; its terminal stays clean."""
    script = (
        "import sys; from jaxnlp.data.sources import *; print(len(open_source(TFDS('nested/small'))));"
        "assert 'tensorflow' not in sys.modules"
    )
    environment = os.environ | {"TFDS_DATA_DIR": data_dir}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("10\n", "")
