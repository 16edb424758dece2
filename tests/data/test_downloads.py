"""Sets that are downloaded, here from a server of this machine: what they become, and what is said of bad ones."""

import gzip
import hashlib
import http.server
import tarfile
import threading

import pytest

from jaxnlp.data import corpora
from jaxnlp.data.corpora import (
    comve,
    ko_en,
    multi30k,
    nsmc,
    sick,
    swag,
    text_files,
    wnut17,
)
from jaxnlp.data.sources import TFDS, class_names, open_source


@pytest.fixture
def serve(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = lambda *arguments: Quiet(*arguments, directory=str(folder))  # noqa: E731

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(*arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def served_texts(builder, monkeypatch):
    """A few lines for each file, whose hashes take the place of the true ones'."""
    texts = {file: "".join(f"{file} {i} é\n" for i in range(3)).encode() for file in builder.SHA256}
    monkeypatch.setattr(builder, "SHA256", {file: hashlib.sha256(t).hexdigest() for file, t in texts.items()})
    return texts


def test_multi30k(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(multi30k, "URL", url)
    for file, text in served_texts(multi30k.Multi30k, monkeypatch).items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(text))
    for split, file in (("train", "train"), ("validation", "val"), ("test_2016", "test_2016_flickr")):
        found = list(open_source(TFDS("multi30k", split), str(tmp_path)))
        expected = [{language: f"{file}.{language} {i} é" for language in ("en", "de", "fr")} for i in range(3)]
        assert sorted(found, key=lambda e: e["en"]) == expected


def test_ko_en(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(ko_en, "URL", url)
    (folder / "korean-english-jhe").mkdir()
    (folder / "korean-english-news-v1").mkdir()
    texts = served_texts(ko_en.KoEn, monkeypatch)
    for file, text in texts.items():
        (folder / "korean-english-jhe" / file).write_bytes(text)
    for part in ("korean-english-park.dev", "korean-english-park.test"):
        with tarfile.open(folder / "korean-english-news-v1" / f"{part}.tar.gz", "w:gz") as archive:
            for language in ("ko", "en"):
                archive.add(folder / "korean-english-jhe" / f"{part}.{language}", f"{part}.{language}")
    for split, n in (("train", 9), ("test", 3)):
        found = list(open_source(TFDS("ko_en", split), str(tmp_path)))
        assert len(found) == n
        assert all(e["ko"].replace(".ko", ".en") == e["en"] for e in found)


def files(builder, texts, folder, monkeypatch):
    """The files with these texts, whose hashes take the place of the true ones'."""
    for file, text in texts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(
        builder, "SHA256", {file: hashlib.sha256(text.encode()).hexdigest() for file, text in texts.items()}
    )


def test_comve(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(comve, "URL", url)
    texts = {}
    for data, answers in comve.ComVE.PARTS.values():
        texts[data] = f'id,FalseSent,OptionA,OptionB,OptionC\r\n7,"{data}, é",a,"b\n""b""",c\r\n3,x,d,e,f\r\n'
        texts[answers] = "3,A\r\n7,C\r\n"
    files(comve.ComVE, texts, folder, monkeypatch)
    for split, (data, _) in comve.ComVE.PARTS.items():
        found = list(open_source(TFDS("comve", split), str(tmp_path)))
        first = {"context": f"{data}, é", "choices": ["a", 'b\n"b"', "c"], "label": 2}
        assert sorted(found, key=lambda e: e["label"]) == [
            {"context": "x", "choices": ["d", "e", "f"], "label": 0}, first,
        ]  # fmt: skip


def test_swag(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(swag, "URL", url)
    names = ",video-id,sent1,sent2,ending0,ending1,ending2,ending3"
    row = '0,v,"A, b.",He,goes.,stops.,é.,"says ""no"""'
    texts = dict.fromkeys(("train.csv", "val.csv"), f"{names},label\n{row},3\n")
    files(swag.SWAG, texts | {"test.csv": f"{names}\n{row}\n"}, folder, monkeypatch)
    expected = dict(zip(swag.TEXTS, ("A, b.", "He", "goes.", "stops.", "é.", 'says "no"'), strict=True))
    for split, label in (("train", 3), ("validation", 3), ("test", -1)):
        assert list(open_source(TFDS("swag", split), str(tmp_path))) == [{**expected, "label": label}]


def test_sick(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(sick, "URL", url)
    names = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    rows = {file: f'{names}\n7\t{file} "A\té\t4.5\tNEUTRAL\n1\ta\tb\t1\tCONTRADICTION\n' for file in sick.SICK.SHA256}
    files(sick.SICK, rows, folder, monkeypatch)
    assert class_names(TFDS("sick"), "entailment_label", str(tmp_path)) == sick.LABELS
    for split, file in sick.SICK.PARTS.items():
        found = list(open_source(TFDS("sick", split), str(tmp_path)))
        assert sorted(found, key=lambda e: e["relatedness_score"]) == [
            {"sentence_A": "a", "sentence_B": "b", "relatedness_score": 1.0, "entailment_label": 2},
            {"sentence_A": f'{file} "A', "sentence_B": "é", "relatedness_score": 4.5, "entailment_label": 1},
        ]


def test_nsmc(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(nsmc, "URL", url)
    rows = {file: f'id\tdocument\tlabel\n9\t"{file} 좋다\t1\n8\t\t0\n7\t별로\t0\n' for file in nsmc.NSMC.SHA256}
    files(nsmc.NSMC, rows, folder, monkeypatch)
    assert class_names(TFDS("nsmc"), "label", str(tmp_path)) == ("negative", "positive")
    for split, file in nsmc.NSMC.PARTS.items():
        found = list(open_source(TFDS("nsmc", split), str(tmp_path)))
        expected = [{"document": "별로", "label": 0}, {"document": f'"{file} 좋다', "label": 1}]
        assert sorted(found, key=lambda e: e["label"]) == expected


def test_wnut17(tmp_path, serve, monkeypatch):
    """Posts apart by empty lines or lines of white space; a word without a tag parts them, too."""
    folder, url = serve
    monkeypatch.setattr(wnut17, "URL", url)
    text = "Paris\tB-location\n!\tO\n\nuntagged\nÉmile\tB-person,B-group\nZ\tI-person\n\t\n\n"
    files(wnut17.WNUT17, dict.fromkeys(wnut17.WNUT17.SHA256, text), folder, monkeypatch)
    names = class_names(TFDS("wnut17"), "ner", str(tmp_path))
    assert names == wnut17.TAGS
    for split in wnut17.WNUT17.PARTS:
        found = [(e["tokens"], [names[i] for i in e["ner"]]) for e in open_source(TFDS("wnut17", split), str(tmp_path))]
        assert sorted(found) == [
            (["Paris", "!"], ["B-location", "O"]),
            (["Émile", "Z"], ["B-person", "I-person"]),
        ]


def test_another_file_than_the_one_meant(tmp_path, serve, monkeypatch):
    folder, url = serve
    monkeypatch.setattr(multi30k, "URL", url)
    for file in multi30k.Multi30k.SHA256:
        (folder / f"{file}.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(ValueError, match="found sha256 d9298a10.*; allowed: [0-9a-f]{64}"):
        open_source(TFDS("multi30k"), str(tmp_path))


def test_no_network(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(multi30k, "URL", serve[1])
    monkeypatch.setattr(multi30k.Multi30k, "SHA256", {"train.en": ""})  # which is not there
    with pytest.raises(ValueError, match="'multi30k' cannot be downloaded: .*copy it to .*multi30k"):
        open_source(TFDS("multi30k"), str(tmp_path))


def test_a_folder_prepared_elsewhere_serves(tmp_path, monkeypatch):
    for language, text in (("de", "eins\n"), ("en", "one\n"), ("fr", "un\n")):
        (tmp_path / language).write_text(text)
    files = [f"{language}={tmp_path / language}" for language in ("en", "de", "fr")]
    text_files.prepare("multi30k", {"train": files}, data_dir=str(tmp_path))
    monkeypatch.setattr(multi30k.Multi30k, "_download", None)
    assert list(open_source(TFDS("multi30k"), str(tmp_path))) == [{"de": "eins", "en": "one", "fr": "un"}]


def test_every_builder_is_known():
    assert set(corpora.BUILDERS) == {
        "comve", "ko_en", "multi30k", "nsmc", "number_words", "sick", "swag", "wnut17",
        "python_docs", "python_pairs", "python_summaries", "python_tags",
    }  # fmt: skip
    for name in corpora.BUILDERS:
        assert corpora.builder(name, "unused").name == name
