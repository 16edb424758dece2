"""Draws what a person sees of a run: report.html, one file that opens offline in light and dark, and pictures as PNG.

write_report(folder, exhibits)    from metrics.jsonl, experiment.json and what the task shows (tasks/task.py)
heatmap_png, points_png           one picture
MetricsWriter(folder)             metrics.jsonl and TensorBoard events
"""

import contextlib
import functools
import io
import json
import math
import re
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from etils import epath
from matplotlib import font_manager, rc_context, rcParams
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator
from tensorboardX import SummaryWriter

from jaxnlp.files import is_remote, write_atomically
from jaxnlp.tasks.task import Heatmap, Points, Samples, Table
from jaxnlp.training.folder import Folder
from jaxnlp.training.progress import clock

Record = Mapping[str, Any]  # a line of metrics.jsonl
Picture = Heatmap | Points
Exhibit = Table | Samples | Picture

FLUSH_SECONDS = 10  # at least, between two puts of metrics.jsonl; the store takes one a second of an object

TIMING = ("learning_rate", "tokens_per_second", "seconds", "mfu")
NAMES = {"mfu": "MFU", "bits_per_byte": "bits per byte", "exact_match": "exact match", "tokens_per_second": "tokens/s"}

# Colours of a drawing. In the page they are looked up by name, so that one drawing serves light and dark.
LIGHT = {"ink": "#1f2328", "muted": "#7a828c", "line": "#d9dde2", "train": "#9bb8d9", "validation": "#1f5fa8"}
DARK = {"ink": "#e4e7eb", "muted": "#8b949e", "line": "#30363d", "train": "#3d628c", "validation": "#79b8ff"}
PLACEHOLDERS = {name: f"#0000{i:02x}" for i, name in enumerate(LIGHT, start=1)}


class MetricsWriter:
    """A context that writes each line of metrics to metrics.jsonl and to TensorBoard's events.

    On this machine at once. The store appends nothing: there both are put anew every FLUSH_SECONDS, by `flush`, and at
    the end; events are first written to a folder here.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self._remote = is_remote(folder.path)
        self._here = tempfile.TemporaryDirectory() if self._remote else contextlib.nullcontext(str(folder.path))
        self._waiting: list[Record] = []
        self._flushed = time.monotonic()
        done = folder.read_metrics()
        # TensorBoard drops what an interrupted run had written after the step from which this one goes on.
        self._logdir = self._here.__enter__()
        self._events = SummaryWriter(self._logdir, purge_step=done[-1]["step"] + 1 if done else 0, write_to_disk=True)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._events.close()
        # What ended the training says more than a store that cannot be reached either.
        with self._here, contextlib.suppress(*(() if kind is None else (Exception,))):
            self.flush()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._waiting.append({"step": step, "split": split, **metrics})
        for name, value in metrics.items():
            self._events.add_scalar(f"{name}/{split}", value, step)
        if not self._remote or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Until now, all is in the folder. FolderError if another training has taken it over."""
        self.folder.check_held()
        if self._waiting:
            self.folder.append_metrics(*self._waiting)
            self._waiting.clear()
        if self._remote:
            self._events.flush()
            for path in epath.Path(self._logdir).iterdir():
                write_atomically(self.folder.path / path.name, path.read_bytes())
        self._flushed = time.monotonic()


def write_report(folder: Folder, exhibits: Sequence[Exhibit] = ()) -> None:
    """Draws report.html, loss.png and a PNG of each picture, named by its title, anew from what lies in the folder."""
    records = folder.read_metrics()
    experiment = json.loads(folder.experiment.read_text())
    write_atomically(folder.path / "loss.png", loss_png(records))
    pictures = [exhibit for exhibit in exhibits if isinstance(exhibit, Picture)]
    for name, picture in zip(_file_names([picture.title for picture in pictures]), pictures):
        draw = heatmap_png if isinstance(picture, Heatmap) else points_png
        write_atomically(folder.path / name, draw(picture))
    write_atomically(folder.report, page(folder.path.name, records, experiment, exhibits))


def loss_png(records: Sequence[Record]) -> bytes:
    return _png(_curves(records, "loss", LIGHT, (7.0, 4.0)))


def heatmap_png(heatmap: Heatmap) -> bytes:
    """The larger, the darker. Where no font here has the characters of a name, the picture says so below."""
    return _png(_heatmap(heatmap, LIGHT), heatmap.title)


def points_png(points: Points) -> bytes:
    """A dot and a name at each place; for missing characters see `heatmap_png`."""
    return _png(_points(points, LIGHT), points.title)


def _png(figure: Figure, title: str = "") -> bytes:
    left = {"x": 0.02, "ha": "left"}
    if title:
        lines = textwrap.fill(_label(title, 200), int(9 * figure.get_figwidth()))  # as many characters as are wide
        figure.suptitle(lines, **left, color=LIGHT["ink"], fontsize=11, parse_math=False)
    with _fonts(figure) as complete, io.BytesIO() as file:
        if not complete:
            note = "No font on this machine has every character: report.html is drawn with the browser's."
            figure.supxlabel(note, **left, color=LIGHT["muted"], fontsize=8)
        figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return file.getvalue()


@contextlib.contextmanager
def _fonts(figure: Figure) -> Iterator[bool]:
    """Draws with a font that has the texts' characters; where none has, with boxes instead, and yields False."""
    artists, family = figure.findobj(Text), rcParams["font.family"]
    default = _characters(font_manager.findfont(font_manager.FontProperties(family=family)))
    missing = frozenset(ord(c) for artist in artists for c in artist.get_text() if c != "\n") - default
    other = _font_of(missing) if missing else None
    for artist in artists if other else ():
        artist.set_fontfamily([*family, other])
    with warnings.catch_warnings():
        if missing and not other:
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield not missing or other is not None


@functools.lru_cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(path).get_charmap())


@functools.lru_cache
def _font_of(characters: frozenset[int]) -> str | None:
    """An installed family that has them all, but for matplotlib's last resort, which has a box for each."""
    fonts = [f for f in font_manager.fontManager.ttflist if not f.name.startswith("Last Resort")]
    return next((f.name for f in fonts if f.style == "normal" and characters <= _characters(f.fname)), None)


def plans_png(plans: Sequence[Any]) -> bytes:
    """Memory of a chip by kind, and a step's seconds by estimate, of one plan a row (see plan.py)."""
    figure = Figure(figsize=(9.0, 1.6 + 0.55 * len(plans)), layout="constrained")
    memory, seconds = figure.subplots(1, 2, sharey=True)
    names = [f"{plan.mesh}\nremat {plan.remat}" for plan in plans]
    shades = {"parameters": "#1f5fa8", "optimizer": "#5b8fc7", "average": "#9bb8d9"}
    shades["activations and temporaries"] = "#d9dde2"
    left = [0.0] * len(plans)
    for kind, shade in shades.items():
        sizes = [plan.memory_bytes.get(kind, 0.0) / 2**30 for plan in plans]
        if any(sizes):
            memory.barh(names, sizes, left=left, color=shade, label=kind, height=0.6)
            left = [a + b for a, b in zip(left, sizes)]
    chip = plans[0].memory_bytes.get("chip", math.inf) / 2**30
    if max(left) > chip / 4:
        memory.axvline(chip, color=LIGHT["ink"], linewidth=1.0, linestyle="--")
    memory.set_title("GiB of a chip", loc="left", fontsize=10, color=LIGHT["ink"])
    for i, (name, shade) in enumerate((("xla", "#1f5fa8"), ("roofline", "#9bb8d9"))):
        at = [row + (i - 0.5) * 0.3 for row in range(len(plans))]
        seconds.barh(at, [plan.step_seconds.get(name, 0.0) for plan in plans], color=shade, label=name, height=0.28)
    seconds.set_title("seconds of a step, estimated", loc="left", fontsize=10, color=LIGHT["ink"])
    for axes in (memory, seconds):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(colors=LIGHT["muted"], labelsize=8, length=0)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    memory.invert_yaxis()
    return _png(figure)


def svg(records: Sequence[Record], metric: str, *, width: float = 10.0, height: float = 3.8) -> str:
    """The curves of one metric as inline SVG whose colours are the page's variables."""
    return _inline(_curves(records, metric, PLACEHOLDERS, (width, height)), metric, _name(metric))


def _inline(figure: Figure, key: str, title: str, attributes: str = "") -> str:
    """The figure, drawn in placeholders, as SVG in the page, where no other has the key."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": key}  # text stays text, in the browser's fonts
    with _fonts(figure), rc_context(settings), io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(
        r"<metadata>.*?</metadata>| xmlns(:xlink)?=\"[^\"]*\"|<!--.*?-->|<path [^>]*style=\"fill: none\"/>\s*",
        "",
        drawing,
        flags=re.DOTALL,
    )
    drawing = re.sub(r"\bid=\"|href=\"#|url\(#", lambda found: f"{found[0]}{key}-", drawing)
    for name, colour in PLACEHOLDERS.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    label = f'role="img" aria-label="{escape(title)}"{attributes}'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: label, drawing, count=1)


def _heatmap(heatmap: Heatmap, colours: Mapping[str, str]) -> Figure:
    values, (n_rows, n_columns) = np.array(heatmap.values), (len(heatmap.rows), len(heatmap.columns))
    if values.shape != (n_rows, n_columns) or not values.size:
        found = f"values of shape {values.shape} for {n_rows} rows and {n_columns} columns"
        raise ValueError(f"heatmap {heatmap.title!r}: found {found}; allowed: a value for each pair, one or more")
    rows, columns = ([_label(name) for name in names] for names in (heatmap.rows, heatmap.columns))
    left, top = (0.13 * max(map(len, names)) for names in (rows, columns))  # inches, as what follows
    cell = min(0.3, 14 / n_columns, 40 / n_rows)
    figure = Figure((max(1.5 + left + cell * n_columns, 4), 1.2 + top + cell * n_rows), layout="constrained")
    axes = figure.subplots()
    finite, clear = values[np.isfinite(values)], to_rgb(colours["validation"])
    low, high = finite.min(initial=0), finite.max(initial=0)
    # Fewer shades than the 50 from which matplotlib draws a bar in pixels, whose colour a page could not change.
    shades = LinearSegmentedColormap.from_list("shades", [(*clear, 0.0), (*clear, 1.0)], N=48)
    mesh = axes.pcolormesh(values, cmap=shades, vmin=low, vmax=high if high > low else low + 1, clip_on=False)
    axes.set(xlim=(0, n_columns), ylim=(n_rows, 0), aspect="equal")
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks([i + 0.5 for i in range(len(names))], names, parse_math=False)
    axes.tick_params(labelcolor=colours["ink"], labelsize=min(9, 60 * cell), length=0)
    axes.tick_params("x", labeltop=True, labelbottom=False, rotation=90 * (max(map(len, columns)) > 2))
    bar = figure.colorbar(mesh, ax=axes, shrink=min(1.0, 1.5 / (cell * n_rows)), aspect=12, pad=0.02, anchor=(0, 1))
    bar.ax.tick_params(colors=colours["muted"], labelsize=8, length=0)
    bar.outline.set_edgecolor(colours["line"])
    axes.spines[:].set_color(colours["line"])
    return figure


def _points(points: Points, colours: Mapping[str, str]) -> Figure:
    side, style = min(max(len(points.names) ** 0.5, 5.0), 12.0), {"color": colours["ink"], "fontsize": 8}
    figure = Figure(figsize=(1.3 * side, side), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*zip(*points.places), s=9, color=colours["validation"], linewidths=0)
    for name, place in zip(points.names, points.places, strict=True):
        axes.annotate(_label(name), place, (3, 2), textcoords="offset points", parse_math=False, **style)
    axes.tick_params(colors=colours["muted"], labelsize=8, length=0)
    axes.spines[:].set_color(colours["line"])
    return figure


def _label(name: str, length: int = 24) -> str:
    """The name in one line of at most so many characters, all of which can be seen."""
    name = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in name)
    return "␣" if name.isspace() else name if len(name) <= length else f"{name[: length - 1]}…"


def _file_names(titles: Sequence[str]) -> list[str]:
    """ "Attention: 하나 + 1" -> "attention-하나-1.png"; the second of a name gets "-2", and none is "loss.png"."""
    found = ["loss"]
    for title in titles:
        name = re.sub(r"\W+", "-", title.lower()).strip("-")[:60].strip("-") or "picture"
        names = (name if i == 1 else f"{name}-{i}" for i in range(1, 2 + len(found)))
        found.append(next(name for name in names if name not in found))
    return [f"{name}.png" for name in found[1:]]


def _curves(records: Sequence[Record], metric: str, colours: Mapping[str, str], size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colours["line"])
    axes.grid(axis="y", color=colours["line"], linewidth=0.6)
    axes.tick_params(colors=colours["muted"], labelsize=9, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_axisbelow(True)
    for split, thick in (("train", 1.2), ("validation", 1.8)):
        points = [(r["step"], r[metric]) for r in records if r["split"] == split and _finite(r.get(metric))]
        if not points:
            continue
        marker = "o" if split == "validation" or len(points) == 1 else None
        axes.plot(*zip(*points), color=colours[split], linewidth=thick, marker=marker, markersize=3.2, label=split)
    if metric == "tokens_per_second":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    if metric in ("tokens_per_second", "learning_rate"):
        axes.set_ylim(bottom=0)
    axes.set_title(_name(metric), loc="left", color=colours["ink"], fontsize=11)
    axes.set_xlabel("step", color=colours["muted"], fontsize=9, loc="right")
    handles, labels = axes.get_legend_handles_labels()
    if metric == "loss" and len(labels) > 1:  # the colours say the same in the smaller drawings
        axes.legend(handles, labels, frameon=False, fontsize=9, labelcolor=colours["ink"], loc="upper right")
    return figure


# The page


def page(name: str, records: Sequence[Record], experiment: Mapping[str, Any], exhibits: Sequence[Exhibit] = ()) -> str:
    """The whole HTML document; `experiment` is the content of experiment.json."""
    last = records[-1]["step"] if records else 0
    found = dict.fromkeys(metric for record in records for metric in record)
    # Perplexity is exp(loss): the same curve.
    quality = [metric for metric in found if metric not in ("step", "split", "loss", "perplexity", *TIMING)]
    small = [*quality, *(metric for metric in ("learning_rate", "tokens_per_second", "mfu") if metric in found)]
    header = f"<header><h1>{escape(name)}</h1><p>{escape(_summary(experiment, last))}</p></header>"
    parts = [header, _tiles(records)]
    if records:
        figures = "".join(f"<figure>{svg(records, metric, width=3.6, height=2.3)}</figure>" for metric in small)
        parts.append(f"<section><figure>{svg(records, 'loss')}</figure><div class=grid>{figures}</div></section>")
    parts += [_exhibit(exhibit, f"exhibit{i}") for i, exhibit in enumerate(exhibits)]
    parts.append(_configuration(experiment))
    variables = ["".join(f"--{name}:{colour};" for name, colour in theme.items()) for theme in (LIGHT, DARK)]
    return PAGE.format(title=escape(name), style=STYLE, light=variables[0], dark=variables[1], body="\n".join(parts))


def _summary(experiment: Mapping[str, Any], last: int) -> str:
    """ "classification, gpt, step 200 of 200"."""
    kinds = [experiment[part]["type"].split(".")[2] for part in ("task", "model") if "type" in (experiment[part] or {})]
    kinds = [kind.replace("_", " ") for kind in kinds]
    return ", ".join([*kinds, f"step {last:,} of {experiment['steps']:,}"])


def _tiles(records: Sequence[Record]) -> str:
    """The figures that a person looks for first: the last evaluation, speed and time."""
    tiles = []
    evaluations = [r for r in records if r["split"] == "validation"]
    if evaluations:
        final = {name: value for name, value in evaluations[-1].items() if name not in ("step", "split", *TIMING)}
        tiles += [(f"validation {_name(name)}", _number(value)) for name, value in final.items()]
    training = [r for r in records if r["split"] == "train"]
    if not evaluations and training:
        tiles.append(("train loss", _number(training[-1]["loss"])))
    if speeds := sorted(r["tokens_per_second"] for r in training if "tokens_per_second" in r):
        tiles.append(("tokens/s, median", f"{speeds[len(speeds) // 2]:,.0f}"))
    if seconds := sum(r.get("seconds", 0.0) for r in records):
        tiles.append(("training and evaluation", clock(seconds)))
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    return f"<dl class=tiles>{shown}</dl>"


def _exhibit(exhibit: Exhibit, key: str) -> str:
    if isinstance(exhibit, Samples):
        shown = "".join(
            f"<blockquote><span class=given>{escape(given)}</span>{escape(made)}</blockquote>"
            for given, made in exhibit.texts
        )
    elif isinstance(exhibit, Table):
        shown = _table(exhibit.columns, exhibit.rows)
    else:
        figure = (_heatmap if isinstance(exhibit, Heatmap) else _points)(exhibit, PLACEHOLDERS)
        size = f' style="max-width:{figure.get_figwidth():.1f}in"'  # a small one is not blown up to the page's width
        shown = f"<figure>{_inline(figure, key, exhibit.title, size)}</figure>"
    return f"<section><h2>{escape(exhibit.title)}</h2>{shown}</section>"


def _configuration(experiment: Mapping[str, Any]) -> str:
    """Every field of the experiment under its option's name, grouped by what it belongs to."""
    groups: dict[str, list[tuple[str, str]]] = {"run": []}
    for name, value in experiment.items():
        if isinstance(value, dict) and "type" in value:
            fields = [row for key, inner in value.items() if key != "type" for row in _flat(key, inner)]
            groups[f"{name}: {_kind(value['type'])}"] = fields
        elif name != "type":
            groups["run"] += _flat(name, value)
    tables = "".join(f"<div><h3>{escape(title)}</h3>{_table((), rows)}</div>" for title, rows in groups.items())
    return f"<section><h2>Configuration</h2><div class='grid fields'>{tables}</div></section>"


def _flat(name: str, value: Any) -> Iterable[tuple[str, str]]:
    """("train", {"type": "….TFDS", "name": "a"}) -> ("train", "sources.TFDS"), ("train.name", "a")."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [(name, _kind(inner))] if key in ("type", "external") else _flat(f"{name}.{key}", inner)
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "none" if value is None else str(value)


def _kind(name: str) -> str:
    """ "jaxnlp.models.gpt.Config" -> "gpt.Config"."""
    return ".".join(name.split(".")[-2:])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    """The rest of a <td> tag and its content."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f" class=number>{_number(value)}" if number else f">{escape(str(value))}"


def _number(value: float) -> str:
    """1234567 -> "1,234,567", 0.123456 -> "0.1235", 12345.6 -> "12,346"."""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


STYLE = """
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; font-weight: 600; margin: 0; } h2 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .8rem; }
h3 { overflow-wrap: anywhere; font-size: .85rem; font-weight: 500; color: var(--muted); margin: 0 0 .3rem; }
header p { color: var(--muted); margin: .2rem 0 0; } section { margin-top: 2.5rem; } figure { margin: 0; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: inherit !important; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem 2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.8rem 0 0; }
dt { color: var(--muted); font-size: .82rem; } dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
blockquote { margin: 0 0 .8rem; padding: .7rem 1rem; border-left: 2px solid var(--validation); background: var(--panel);
  white-space: pre-wrap; overflow-wrap: anywhere; font: 13.5px/1.55 ui-monospace, monospace; }
.given { color: var(--muted); } table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.fields td:first-child { white-space: nowrap; }
th { font-weight: 500; color: var(--muted); } .number { font-variant-numeric: tabular-nums; }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ {light} --paper: #fff; --panel: #f6f8fa; }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} --paper: #0d1117; --panel: #161b22; }} }}
{style}</style>
{body}
</html>
"""
