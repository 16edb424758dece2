"""What a person sees while a run trains: a bar on a terminal, now and then a line elsewhere. All on stderr."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

QUIET_SECONDS = 10.0  # between two lines of a run that no terminal shows
HIDDEN = (
    "learning_rate",
    "tokens_per_second",
    "seconds",
    "mfu",
)  # in metrics.jsonl, but not in a line about how good it is


class Progress:
    """A context: `update` after each call of the step, `validated` after each evaluation."""

    def __init__(self, steps: int, start: int = 0, *, shown: bool = True):
        self.steps, self.step, self.start, self.shown = steps, start, start, shown
        console = Console(stderr=True, quiet=not shown)
        self._bar = None
        if console.is_terminal:
            columns = (
                TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=None), TextColumn("{task.fields[shown]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Bar(*columns, console=console, expand=True)
            self._task = self._bar.add_task("train", total=steps, completed=start, shown="compiling")
        self._shown, self._logged = "compiling", start
        self._began = self._last_line = time.perf_counter()

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """`metrics` are those of the last line in metrics.jsonl if it is new, else empty."""
        self.step = step
        if metrics:
            self._shown = f"loss {metrics['loss']:.4f}   {metrics.get('tokens_per_second', 0):,.0f} tokens/s"
            if "seconds" in metrics:
                self._shown += f"   {metrics['seconds'] / (step - self._logged):.3g} s a step"
            self._logged = step
            if "mfu" in metrics:
                self._shown += f"   MFU {metrics['mfu']:.1%}"
        elif self._shown == "compiling":
            self._shown = ""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=self._shown)
        elif metrics and (step == self.steps or time.perf_counter() - self._last_line > QUIET_SECONDS):
            self._last_line = time.perf_counter()
            left = (self._last_line - self._began) / (step - self.start) * (self.steps - step)
            self.say(f"step {step:,} of {self.steps:,}   {self._shown}   {clock(left)} left")

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self.say(f"step {step:,} of {self.steps:,}   validation   {line(metrics)}")

    def say(self, text: str) -> None:
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def line(metrics: Mapping[str, float]) -> str:
    """{"loss": 1.5, "bits_per_byte": 2.1} -> "loss 1.5000   bits per byte 2.1000", timing left out."""
    return "   ".join(f"{name.replace('_', ' ')} {v:.4f}" for name, v in metrics.items() if name not in HIDDEN)


def clock(seconds: float) -> str:
    """75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
