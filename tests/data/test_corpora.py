"""Our own sets: python_docs as it is on this Python and on a library of a few files; numbers in words; a user's files,
and bad ones.
"""

import collections
import hashlib
import importlib
import json
import os
import subprocess
import sys
import sysconfig

import pytest

from jaxnlp.data.corpora import (
    number_words,
    python_docs,
    text_files,
)
from jaxnlp.data.sources import TFDS, class_names, fingerprint, open_source

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where `python_docs` is made, by the first test that opens it."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def found(data_dir):
    return {split: list(open_source(TFDS("python_docs", split), data_dir)) for split in SPLITS}


class TestPythonDocs:
    def test_prepared_is_what_is_read_again(self, found):
        again = python_docs.documents()
        for split in SPLITS:
            assert [d["text"] for d in found[split]] == [d["text"] for d in again[split]]
            assert [d["title"] for d in found[split]] == [d["title"] for d in again[split]]

    def test_sizes(self, found):
        sizes = {split: sum(len(d["text"].encode()) for d in found[split]) for split in SPLITS}
        total = sum(sizes.values())
        assert total > 1_900_000
        assert 0.8 < sizes["train"] / total < 0.92
        assert 0.03 < sizes["test"] / total < 0.12 and 0.03 < sizes["validation"] / total < 0.12

    def test_nothing_leaks(self, found):
        modules = [{d["module"] for d in found[split]} for split in SPLITS]
        assert not modules[0] & modules[1] and not modules[0] & modules[2] and not modules[1] & modules[2]
        texts = [d["text"] for split in SPLITS for d in found[split]]
        assert len(texts) == len(set(texts))
        assert all(text == text.strip() != "" for text in texts)

    def test_groups(self, found, data_dir):
        names = class_names(TFDS("python_docs"), "group", data_dir)
        assert names == tuple(python_docs.GROUPS)
        assert {d["group"] for d in found["train"]} == {-1, *range(len(names))}
        assert len({d["group"] for d in found["validation"]} - {-1}) >= 8

    def test_known_documents(self, found, data_dir):
        kinds = class_names(TFDS("python_docs"), "kind", data_dir)
        by_title = {d["title"]: d for split in SPLITS for d in found[split]}
        move = by_title["collections.OrderedDict.move_to_end"]
        assert move["text"].startswith("Move an existing element to the end")
        assert (kinds[move["kind"]], move["module"]) == ("function", "collections")
        assert kinds[by_title["lambda"]["kind"]] == "topic" and by_title["lambda"]["group"] == -1
        assert kinds[by_title["json"]["kind"]] == "module"


def test_every_module_is_in_one_group():
    modules = [module for group in python_docs.GROUPS.values() for module in group.split()]
    assert not [module for module, n in collections.Counter(modules).items() if n > 1]


def test_another_python_makes_another_set(found, data_dir, monkeypatch):
    here = fingerprint(TFDS("python_docs"), data_dir)
    assert here == fingerprint(TFDS("python_docs"), data_dir)
    name = python_docs.PythonDocs.BUILDER_CONFIGS[0].name
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version", "3.99.0 (another build)")
        assert importlib.reload(python_docs).PythonDocs.BUILDER_CONFIGS[0].name != name
    assert importlib.reload(python_docs).PythonDocs.BUILDER_CONFIGS[0].name == name


def test_split_by_a_hash_of_the_module():
    split = lambda module, kind="function": python_docs.split_of({"module": module, "kind": kind})  # noqa: E731
    # from coreutils' sha256sum: the first 16 digits modulo 10 are 0, 1 and 7
    assert [split(module) for module in ("socket", "unittest.mock", "json")] == ["validation", "test", "train"]
    assert split("socket", "topic") == "train"


def test_a_library_of_a_few_files(tmp_path, monkeypatch):
    library = {
        "json/__init__.py": '"""Module\n\n    indented."""\nclass A:\n    "Class."\n    def f(self): "Method."\n',
        "json/tool.py": "if 1:\n  async def g():\n    'Async.'\n    def h(): 'Inner.'\nelse:\n  def g(): 'Else.'\n",
        "zipfile.py": "def f(): 'Method.'\ndef g(): '''\n    '''\ndef h(): return 'no docstring'\n",
        "test/test_json.py": '"Left out."',
        "site-packages/x.py": '"Left out too."',
        "_new.py": "raise ImportError('read, not run')\ndef f():\n    '''Latin é.'''\n",
    }
    for name, text in library.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    found = [d for documents in python_docs.documents().values() for d in documents if d["kind"] != "topic"]
    assert sorted((d["title"], d["kind"], d["text"], d["module"], d["group"]) for d in found) == [
        ("_new.f", "function", "Latin é.", "_new", -1),
        ("json", "module", "Module\n\nindented.", "json", "data_formats"),
        ("json.A", "class", "Class.", "json", "data_formats"),
        ("json.A.f", "function", "Method.", "json", "data_formats"),
        ("json.tool.g", "function", "Async.", "json.tool", "data_formats"),
        ("json.tool.g", "function", "Else.", "json.tool", "data_formats"),
        ("json.tool.g.h", "function", "Inner.", "json.tool", "data_formats"),
    ]


class TestNumberWords:
    WORDS = {  # noqa: RUF012  from grammars, not from the program
        1: ("one", "일", "하나", "un", "eins"),
        16: ("sixteen", "십육", "열여섯", "seize", "sechzehn"),
        20: ("twenty", "이십", "스물", "vingt", "zwanzig"),
        71: ("seventy-one", "칠십일", "일흔하나", "soixante et onze", "einundsiebzig"),
        80: ("eighty", "팔십", "여든", "quatre-vingts", "achtzig"),
        99: ("ninety-nine", "구십구", "아흔아홉", "quatre-vingt-dix-neuf", "neunundneunzig"),
        101: ("one hundred and one", "백일", "백하나", "cent un", "einhunderteins"),
        1000: ("one thousand", "천", "천", "mille", "eintausend"),
        10000: ("ten thousand", "만", "만", "dix mille", "zehntausend"),
        10030: ("ten thousand and thirty", "만 삼십", "만 서른", "dix mille trente", "zehntausenddreißig"),
        80200: (
            "eighty thousand, two hundred",
            "팔만 이백",
            "팔만 이백",
            "quatre-vingt mille deux cents",
            "achtzigtausendzweihundert",
        ),
        101045: (
            "one hundred and one thousand and forty-five",
            "십만 천사십오",
            "십만 천마흔다섯",
            "cent un mille quarante-cinq",
            "einhunderteintausendfünfundvierzig",
        ),
        312111: (
            "three hundred and twelve thousand, one hundred and eleven",
            "삼십일만 이천백십일",
            "삼십일만 이천백열하나",
            "trois cent douze mille cent onze",
            "dreihundertzwölftausendeinhundertelf",
        ),
    }

    @pytest.mark.parametrize("number", WORDS)
    def test_words(self, number):
        languages = ("en", "ko", "ko_native", "fr", "de")
        expected = dict(zip(languages, self.WORDS[number], strict=True))
        assert number_words.written(number) == {"number": str(number), **expected}

    def test_splits(self):
        splits = number_words.numbers()
        every = [n for found in splits.values() for n in found]
        assert len(set(every)) == len(every)
        for part, split in enumerate(SPLITS):
            lengths = collections.Counter(len(str(n)) for n in splits[split])
            assert lengths == {digits: counts[part] for digits, counts in number_words.PARTS.items()}
            first = {len(str(n)) for n in splits[split][:200]}
            assert first >= {4, 5, 6}, "a part of a split has one length alone"
        assert {n for n in every if n < 1000} == set(range(1, 1000))
        # from coreutils' sha256sum: the first 16 digits of "1/0", "1/1", … modulo 9 draw 7, 8, 1, 5, 6, 2, 4, 0, 3
        assert [n for split in ("validation", "test") for n in splits[split] if n < 10] == [1, 4]
        digest = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
        assert digest.startswith("1acd03669ecef256"), (
            "another choice of numbers: figures measured before are of another set"
        )

    def test_is_made_on_first_use(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(number_words, "PARTS", {1: (7, 1, 1), 2: (20, 5, 10)})
        found = {split: list(open_source(TFDS("number_words", split), str(tmp_path))) for split in SPLITS}
        assert capsys.readouterr().err.count("preparing number_words/1.0.0") == 1
        expected = number_words.numbers()
        for split in SPLITS:
            assert found[split] == [number_words.written(n) for n in expected[split]]


class TestTextFiles:
    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def write(name, content):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            return name

        return write

    def prepare(self, tmp_path, files, name="mine", **options):
        splits = files if isinstance(files, dict) else {"train": files}
        return text_files.prepare(name, splits, data_dir=str(tmp_path / "tfds"), **options)

    def read(self, tmp_path, split="train", name="mine"):
        return list(open_source(TFDS(name, split), str(tmp_path / "tfds")))

    @pytest.mark.parametrize(
        ("unit", "texts"),
        [
            ("file", ["one\ntwo\r\n\n \n한국어 three\n"]),
            ("paragraph", ["one\ntwo", "한국어 three"]),
            ("line", ["one", "two", "한국어 three"]),
        ],
    )
    def test_txt(self, tmp_path, write, unit, texts):
        write("a.txt", "\ufeffone\ntwo\r\n\n \n한국어 three\n")
        assert self.prepare(tmp_path, ["a.txt"], unit=unit) == {"train": len(texts)}
        assert [e["text"] for e in self.read(tmp_path)] == texts

    def test_patterns_and_splits_keep_their_order(self, tmp_path, write):
        for name in "cab":
            write(f"{name}.txt", name * 3)
        write("v.txt", "validation")
        counts = self.prepare(tmp_path, {"train": ["[a-c].txt"], "validation": ["v.txt"]})
        assert counts == {"train": 3, "validation": 1}
        assert [e["text"] for e in self.read(tmp_path)] == ["aaa", "bbb", "ccc"]
        assert [e["text"] for e in self.read(tmp_path, "validation")] == ["validation"]

    def test_tsv_with_a_label(self, tmp_path, write):
        write("a.tsv", 'title\tsentiment\ttext\nA\tpos\tthrills "x"\n\nB\tneg\t\n')
        write("b.tsv", "text\ttitle\tsentiment\nok\tC\tneg\n")
        self.prepare(tmp_path, {"train": ["a.tsv"], "test": ["b.tsv"]}, label="sentiment", columns=["text"])
        assert self.read(tmp_path) == [{"text": 'thrills "x"', "sentiment": 1}, {"text": "", "sentiment": 0}]
        assert self.read(tmp_path, "test") == [{"text": "ok", "sentiment": 0}]
        assert class_names(TFDS("mine"), "sentiment", str(tmp_path / "tfds")) == ("neg", "pos")

    def test_jsonl(self, tmp_path, write):
        write("a.jsonl", '{"q": "x\\ny", "a": "1", "l": 0}\n\n{"a": "é", "q": "", "l": 1, "more": [1]}\n')
        self.prepare(tmp_path, ["a.jsonl"], label="l")
        assert self.read(tmp_path) == [{"q": "x\ny", "a": "1", "l": 0}, {"q": "", "a": "é", "l": 1}]

    def test_line_parallel(self, tmp_path, write):
        write("a.de", "\ufeffeins\r\n\nzwei = 2\u2028\n")  # U+2028 ends no line
        write("a.en", "one\n\ntwo = 2\n")
        write("b.de", "drei")
        write("b.en", "three\n")
        write("t.de", "vier\n")
        write("t.en", "four\n")
        counts = self.prepare(tmp_path, {"train": ["de=[ab].de", "en=a.en", "en=b.en"], "test": ["en=t.en", "de=t.de"]})
        assert counts == {"train": 4, "test": 1}
        assert [(e["de"], e["en"]) for e in self.read(tmp_path)] == [
            ("eins", "one"),
            ("", ""),
            ("zwei = 2\u2028", "two = 2"),
            ("drei", "three"),
        ]
        assert self.read(tmp_path, "test") == [{"de": "vier", "en": "four"}]

    def test_line_parallel_from_the_command_line(self, tmp_path, write, capsys):
        files = [f"de={write('a.de', 'eins')}", f"en={write('a.en', 'one')}"]
        text_files.main(["--name", "mine", "--data-dir", "tfds", "--train", *files])
        assert capsys.readouterr().out == "train: 1 documents\n"
        assert self.read(tmp_path) == [{"de": "eins", "en": "one"}]

    @pytest.mark.parametrize(
        ("files", "options", "message"),
        [
            (
                ["x=long", "y=short"],
                {},
                "long, line 3: no partner; found 3 lines in long, 2 lines in short; allowed: as",
            ),
            (["x=short", "y=short", "z=long"], {}, "long, line 3: no partner; found 2 lines in short, 3 lines in long"),
            (["x=short", "x=long"], {}, "'train': found files 2 of x; allowed: as many of each of two features"),
            (["x=short", "x=long", "y=long"], {}, "'train': found files 2 of x, 1 of y; allowed: as many of each"),
            (["x=short", "y=none"], {}, "split 'train': found no file none in "),
            (["x=short", "y=short"], {"label": "y"}, "label=y: found FEATURE=FILE files; allowed: with .jsonl and"),
            (["x=empty", "y=empty"], {}, "split 'train': found no documents in x=empty, y=empty"),
        ],
    )
    def test_bad_line_parallel(self, tmp_path, write, files, options, message):
        for name, content in (("long", "a\nb\nc\n"), ("short", "a\n\n"), ("empty", "")):
            write(name, content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            self.prepare(tmp_path, files, **options)
        assert not (tmp_path / "tfds").exists()

    def test_line_parallel_and_other_files(self, tmp_path, write):
        pair = [f"x={write('a.txt', 'a')}", "y=a.txt"]
        with pytest.raises(
            ValueError, match="files: found .txt, FEATURE=FILE; allowed: one kind of .*, or FEATURE=FILE"
        ):
            self.prepare(tmp_path, {"train": pair, "test": ["a.txt"]})
        with pytest.raises(ValueError, match="a.txt, a.txt, line 1: no column y; there are x, z"):
            self.prepare(tmp_path, {"train": pair, "test": ["x=a.txt", "z=a.txt"]})

    def test_again_replaces(self, tmp_path, write):
        write("a.txt", "old")
        write("b.txt", "new")
        self.prepare(tmp_path, {"train": ["a.txt"], "test": ["a.txt"]})
        self.prepare(tmp_path, ["b.txt"])
        assert self.read(tmp_path) == [{"text": "new"}]
        assert sorted(os.listdir(tmp_path / "tfds")) == ["mine"]

    @pytest.mark.parametrize(
        ("name", "content", "options", "message"),
        [
            ("a.txt", b"\xc3\xa9\n\n\xc3\xa9\xff!", {}, r"a.txt: not UTF-8: byte 0xff at offset 6"),
            ("a.txt", b"cut \xc3", {}, r"a.txt: not UTF-8: byte 0xc3 at offset 4"),
            ("a.txt", b" \n\n", {}, r"split 'train': found no documents in a.txt"),
            ("a.txt", b"x", {"unit": "word"}, r"unit: found 'word'; allowed: file, paragraph, line"),
            ("a.txt", b"x", {"label": "y"}, r"label=y: found .txt files; allowed: with .jsonl and .tsv"),
            ("a.txt", b"x", {"name": "My-Set"}, r"name: found 'My-Set'; allowed: lower-case letters"),
            ("a.csv", b"x", {}, r"files: found .csv; allowed: one kind of .txt, .jsonl, .tsv"),
            ("a.tsv", b"", {}, r"split 'train': found no documents in a.tsv"),
            ("a.tsv", b"a\tb\n", {}, r"split 'train': found no documents in a.tsv"),
            ("a.tsv", b"a\tb\n1\t2\n3\n", {}, r"a.tsv, line 3: found 1 columns; the header has 2"),
            ("a.tsv", b"a\tb\n1\t2\n", {"columns": ["c"]}, r"a.tsv, line 2: no column c; there are a, b"),
            ("a.tsv", b"a\tb\n1\t2\n", {"label": "c"}, r"a.tsv, line 2: no column c; there are a, b"),
            ("a.jsonl", b'{"a": "x"}\n\n{"b": "y"}\n', {}, r"a.jsonl, line 3: no column a; there are b"),
            ("a.jsonl", b'{"a": "x"}\n{"a": 5}\n', {}, r"a.jsonl, line 2: a=5; allowed: a string"),
            ("a.jsonl", b'{"a": "x"}\n{"a": \n', {}, r"a.jsonl, line 2: not JSON"),
            ("a.jsonl", b"[1]\n", {}, r"a.jsonl, line 1: found list; allowed: an object"),
        ],
    )
    def test_bad_input_leaves_what_was_there(self, tmp_path, write, name, content, options, message):
        self.prepare(tmp_path, [write("before.txt", "before")])
        with pytest.raises(ValueError, match=message):
            self.prepare(tmp_path, [write(name, content)], **options)
        assert self.read(tmp_path) == [{"text": "before"}]
        assert sorted(os.listdir(tmp_path / "tfds")) == ["mine"]

    def test_no_file(self, tmp_path, write):
        with pytest.raises(FileNotFoundError, match=r"split 'train': found no file books/\*.txt in "):
            self.prepare(tmp_path, ["books/*.txt"])
        assert not (tmp_path / "tfds").exists()

    def test_a_split_without_documents_and_no_train(self, tmp_path, write):
        files = {"train": [write("a.txt", "x")], "test": [write("b.txt", "")]}
        with pytest.raises(ValueError, match=r"split 'test': found no documents in b.txt"):
            self.prepare(tmp_path, files)
        with pytest.raises(ValueError, match="splits: found test; allowed: train, and any others"):
            self.prepare(tmp_path, {"test": ["a.txt"]})
        assert not (tmp_path / "tfds").exists()

    def test_a_label_that_train_does_not_have(self, tmp_path, write):
        files = {"train": [write("a.tsv", "t\tl\nx\tno\n")], "test": [write("b.tsv", "t\tl\nx\tno\ny\tmaybe\n")]}
        with pytest.raises(ValueError, match="b.tsv, line 3: l='maybe'; allowed, as in train: no"):
            self.prepare(tmp_path, files, label="l")

    def test_an_error_while_writing_leaves_what_was_there(self, tmp_path, write, monkeypatch):
        self.prepare(tmp_path, [write("before.txt", "before")])

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("tensorflow_datasets.core.dataset_info.DatasetInfo.write_to_directory", full)
        with pytest.raises(OSError, match="No space left"):
            self.prepare(tmp_path, [write("a.txt", "new")])
        assert self.read(tmp_path) == [{"text": "before"}]
        assert sorted(os.listdir(tmp_path / "tfds")) == ["mine"]

    def test_command_line(self, tmp_path, write):
        write("a.jsonl", json.dumps({"text": "x", "label": "yes"}))
        command = [sys.executable, "-m", "jaxnlp.data.corpora.text_files", "--name", "mine", "--data-dir", "tfds"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

        def call(*arguments):
            return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)

        good = call("--train", "a.jsonl", "--test", "*.jsonl", "--label", "label")
        assert (good.returncode, good.stdout, good.stderr) == (0, "train: 1 documents, test: 1 documents\n", "")
        assert self.read(tmp_path, "test") == [{"text": "x", "label": 0}]
        bad = call("--train", "b.jsonl")
        assert (bad.returncode, bad.stdout) == (2, "")
        assert bad.stderr == f"split 'train': found no file b.jsonl in {tmp_path}\n"
