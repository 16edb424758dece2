"""What a person sees of a run: the page, the picture, the events, the lines on the console."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from jaxnlp.tasks.task import Samples, Table
from jaxnlp.training import progress, report
from jaxnlp.training.folder import Folder

EXPERIMENT = {
    "type": "jaxnlp.training.experiment.Experiment",
    "model": {"type": "jaxnlp.models.gpt.Config", "d_model": 8},
    "task": {"type": "jaxnlp.tasks.language_modeling.LanguageModeling", "text": "<b>"},
    "data": {
        "type": "jaxnlp.training.experiment.Data",
        "train": {"type": "jaxnlp.data.sources.TFDS", "name": "python_docs"},
        "validation": {"external": "builtins.list"},
    },
    "tokenizer": None,
    "steps": 1000,
}
EXHIBITS = [
    Samples("Samples", (("to be ", "or <script>alert(1)</script>\nnot"),)),
    Table("Classes", ("class", "n", "f1"), (("io & net", 1234567, 0.123456),)),
]


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "my <run>")
    folder.path.mkdir()
    folder.experiment.write_text(json.dumps(EXPERIMENT))
    return folder


def write(folder, steps):
    with report.MetricsWriter(folder) as writer:
        for step in steps:
            loss = 5.0 / step
            writer.write(step, "train", {"loss": loss, "learning_rate": 1e-3, "tokens_per_second": 1e4, "seconds": 1.0})
            writer.write(step, "validation", {"loss": loss + 1, "accuracy": 0.5, "seconds": 0.5})


class Tags(HTMLParser):
    """Tags that are open, and everything that would be fetched."""

    VOID = ("meta", "path", "use", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_whole_and_stands_alone(folder):
    write(folder, [10, 20, 30])
    report.write_report(folder, EXHIBITS)
    text = folder.report.read_text()
    tags = Tags(text)
    assert tags.open == [] and tags.fetched == [] and "http" not in text
    assert len(set(tags.ids)) == len(tags.ids)
    assert "<script" not in text and "<b>" not in text and "my &lt;run&gt;" in text
    assert text.count("<svg") == 4  # loss, accuracy, learning rate, tokens/s
    assert "step 30 of 1,000" in text
    for shown in (
        "or &lt;script&gt;alert(1)&lt;/script&gt;\nnot",
        "io &amp; net",
        "1,234,567",
        "0.1235",
        "1.167",
        "0:04",
    ):
        assert shown in text
    assert "prefers-color-scheme: dark" in text and "#0000" not in text
    assert folder.path.joinpath("loss.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_holds_every_point(folder):
    write(folder, [10, 20, 30])
    drawing = report.svg(folder.read_metrics(), "loss")
    lines = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--(train|validation)\)', drawing)
    points = {split: len(re.findall("[ML]", path)) for path, split in lines if path.count("L") == 2}
    assert points == {"train": 3, "validation": 3}


@pytest.mark.parametrize("losses", [[], [math.nan], [1.0], [1.0, math.inf, 2.0]])
def test_page_of_a_run_that_did_not_get_far(folder, losses):
    for step, loss in enumerate(losses, start=1):
        folder.append_metrics({"step": step, "split": "train", "loss": loss})
    report.write_report(folder)
    assert Tags(folder.report.read_text()).open == []


def test_page_is_the_same_each_time(folder):
    write(folder, [10])
    report.write_report(folder, EXHIBITS)
    first = folder.report.read_bytes(), folder.path.joinpath("loss.png").read_bytes()
    report.write_report(folder, EXHIBITS)
    assert (folder.report.read_bytes(), folder.path.joinpath("loss.png").read_bytes()) == first


def test_metrics_go_to_the_file_and_to_tensorboard(folder):
    write(folder, [10])
    assert folder.read_metrics()[1] == {"step": 10, "split": "validation", "loss": 1.5, "accuracy": 0.5, "seconds": 0.5}
    (events,) = folder.path.glob("events.*")
    content = events.read_bytes()
    assert b"loss/train" in content and b"accuracy/validation" in content


def test_progress_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.Progress(2000, start=1000) as shown:
        shown.update(1400, {})
        shown.update(1500, {"loss": 1.5, "tokens_per_second": 12345.6})
        shown.validated(1500, {"loss": 2.0, "bits_per_byte": 1.25, "seconds": 3.0})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1,500 of 2,000   loss 1.5000   12,346 tokens/s   0:0")
    assert second == "step 1,500 of 2,000   validation   loss 2.0000   bits per byte 1.2500"


def test_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.Progress(200) as shown:
        shown.update(100, {"loss": 1.5, "tokens_per_second": 12345.6})
        shown.validated(100, {"loss": 2.0})
        shown.update(200, {})
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "step 100 of 200   validation   loss 2.0000" in plain
    assert re.search(r"step 200/200 .*loss 1.5000   12,346 tokens/s", plain)


def test_clock():
    assert [progress.clock(seconds) for seconds in (4.6, 75, 3675)] == ["0:05", "1:15", "1:01:15"]
