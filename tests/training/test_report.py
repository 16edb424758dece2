"""What a person sees of a run: the page, the picture, the events, the lines on the console."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxnlp.tasks.task import Heatmap, Points, Samples, Table
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

HEATMAP = Heatmap(
    "Attention: 하나 + 1", ("one", "$a$ <b>"), ("하나", "+", "</s>"), ((0.0, 1.0, 0.5), (-1.0, 0.0, 0.25))
)
POINTS = Points("Words", ("하나", "둘", "a & b"), ((0.0, 0.0), (1.0, 2.0), (-1.0, 0.5)))


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


def test_pictures_stand_in_the_page_and_beside_it(folder):
    """Names are text for the browser's fonts, colours are the page's variables, nothing is drawn in pixels."""
    write(folder, [10])
    report.write_report(folder, [HEATMAP, *EXHIBITS, POINTS, HEATMAP])
    text = folder.report.read_text()
    tags = Tags(text)
    assert tags.open == [] and tags.fetched == [] and len(set(tags.ids)) == len(tags.ids)
    assert "<image" not in text and "#0000" not in text and "data:image" not in text
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 4 + 3
    for drawing, names in ((drawings[4], ("하나", "$a$ &lt;b&gt;", "&lt;/s&gt;")), (drawings[5], ("둘", "a &amp; b"))):
        shown = re.findall(r">([^<>]+)</text>", drawing)
        assert set(names) <= set(shown)
    names = {path.name for path in folder.path.glob("*.png")}
    assert names == {"loss.png", "attention-하나-1.png", "attention-하나-1-2.png", "words.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.path.glob("*.png"))
    first = folder.report.read_bytes()
    report.write_report(folder, [HEATMAP, *EXHIBITS, POINTS, HEATMAP])
    assert folder.report.read_bytes() == first


def test_a_cell_is_darker_where_its_value_is_larger():
    page = report.page("a", [], {**EXPERIMENT, "steps": 1}, [HEATMAP])
    mesh = page[page.index("QuadMesh") :].partition("</g>")[0]
    assert re.findall(r"fill: var\(--validation\)", mesh) == ["fill: var(--validation)"] * 5  # -1 is not seen
    opacity = [float(found) for found in re.findall(r"fill-opacity: ([\d.]+)|validation\)\"", mesh) if found]
    np.testing.assert_allclose(opacity, [0.5, 0.75, 0.5, 0.625], atol=0.02)  # and 1 is without


def test_characters_without_a_font_are_drawn_as_boxes_and_said(monkeypatch):
    seen = []
    suptitle, supxlabel = Figure.suptitle, Figure.supxlabel
    monkeypatch.setattr(Figure, "suptitle", lambda *a, **k: (seen.append(a[1]), suptitle(*a, **k)))
    monkeypatch.setattr(Figure, "supxlabel", lambda *a, **k: (seen.append(a[1]), supxlabel(*a, **k)))
    monkeypatch.setattr(report, "_font_of", lambda characters: None)
    report.heatmap_png(HEATMAP)
    assert seen[0] == HEATMAP.title and seen[1].startswith("No font on this machine has every character")
    seen.clear()
    report.points_png(dataclasses.replace(POINTS, names=("a", "b", "c")))
    assert seen == ["Words"]


def test_a_font_that_has_the_characters_is_found():
    family = report._font_of(frozenset(map(ord, "aß")))
    assert family and not family.startswith("Last Resort")
    assert report._font_of(frozenset([0x10FFFD])) is None  # of the private use


def test_file_names():
    titles = ["Loss", "a/b: c", "…", "A-B C", "x" * 99, "../etc"]
    assert report._file_names(titles) == [
        "loss-2.png",
        "a-b-c.png",
        "picture.png",
        "a-b-c-2.png",
        "x" * 60 + ".png",
        "etc.png",
    ]


@pytest.mark.parametrize("values", [((0.0,),), (), ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))])
def test_a_heatmap_has_a_value_for_each_pair(values):
    with pytest.raises(ValueError, match=r"heatmap 'Attention: 하나 \+ 1': found values of shape .* 2 rows and 3 col"):
        report.heatmap_png(dataclasses.replace(HEATMAP, values=values))


def test_a_heatmap_of_equal_or_broken_values_and_of_hostile_names_is_drawn():
    hostile = ("\n\x00", "a" * 99, "$")
    for value in (0.0, float("nan"), 3.0):
        report.heatmap_png(Heatmap("$", ("$\\frac$",), hostile, ((value,) * 3,)))
    assert (
        Tags(report.page("a", [], {**EXPERIMENT, "steps": 1}, [Heatmap("$", ("",), hostile, ((0.5,) * 3,))])).open == []
    )


def test_labels_can_be_seen():
    assert [report._label(name) for name in (" ", "\n", "", "a\tb\x00", "x" * 30)] == [
        "␣",
        "␣",
        "",
        "a b\ufffd",
        "x" * 23 + "…",
    ]
