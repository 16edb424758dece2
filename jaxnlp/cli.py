"""The command line: train, plan, evaluate, generate, predict, export, experiments.

An experiment's file has a function `experiment(**arguments) -> Experiment`. The function's arguments and the fields of
the Experiment that it returns are options alike, typed by their annotations:

    jaxnlp train quickstart_classify --scratch --steps 50 --optim.lr 3e-4
                                     argument  field      field of a field

Exit codes: 2 for what the caller can mend, 130 interrupted, and those of training/loop.py. JAX is imported late.
"""

import ast
import dataclasses
import difflib
import glob
import importlib.util
import inspect
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import AvoidSubcommands, Positional, SuppressFixed

PACKAGE = Path(__file__).parent
EXPERIMENTS = PACKAGE.parent / "experiments"  # of a checkout
ACCELERATORS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*")  # where Linux has a TPU or a GPU
ROWS = 32  # texts that `predict` takes at a time

Folder = Annotated[Positional[str], tyro.conf.arg(metavar="RUN", help="a run's folder, or a Hugging Face directory")]
Step = Annotated[Literal["latest", "best"] | int, tyro.conf.arg(help="which checkpoint")]
Average = Annotated[bool, tyro.conf.arg(help="the moving average of the parameters")]
Mean = Annotated[int, tyro.conf.arg(help="the mean of so many checkpoints, the latest")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if importlib.util.find_spec("libtpu") and not any(map(glob.glob, ACCELERATORS)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu is there for `plan`: elsewhere it would look for its TPU
    try:
        if name in ("-h", "--help"):
            print(_usage())
        elif name in COMMANDS:
            COMMANDS[name](rest)
        else:
            raise ValueError(f"no command {name!r}{_nearest(name, COMMANDS)}; allowed: {', '.join(COMMANDS)}")
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # the parser's, or an experiment's own
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (ValueError, RuntimeError, OSError) as error:
        if not _is_answer(error):
            raise
        code = getattr(error, "exit_code", 2)
        print(f"error: {error}" if code == 2 else str(error), file=sys.stderr)
        return code
    return 0


OTHERS = """On several
machines, each runs the same command; where they cannot find one another by themselves, with
--coordinator HOST:PORT --processes N --process I [--connect-timeout SECONDS]. A trace of some steps, for
TensorBoard and Perfetto: --profile FIRST:LAST"""


def train(arguments: Sequence[str]) -> None:
    """Trains an experiment, or goes on where its folder's last checkpoint is."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: jaxnlp train EXPERIMENT [--workdir DIR] [--data-dir DIR] [--steps N] [--optim.lr 3e-4 …]\n")
        print(f"EXPERIMENT is a file or one of these; `jaxnlp train EXPERIMENT --help` shows its options. {OTHERS}\n")
        return experiments()
    path = experiment_path(name)

    from jaxnlp.training import loop, processes
    from jaxnlp.training.progress import line

    profile = None
    if not {"-h", "--help"} & set(rest):
        _, rest = tyro.cli(processes.initialize, args=rest, return_unknown_args=True)
        profile, rest = tyro.cli(_steps, args=rest, return_unknown_args=True)
    function = load_experiment(path)
    experiment, workdir, data_dir = parse_experiment(function, rest, name=path.stem, prog=f"jaxnlp train {name}")
    folder = loop.train(experiment, workdir, data_dir=data_dir, profile=profile)
    if not processes.first():
        return
    evaluations = [record for record in folder.read_metrics() if record.pop("split") == "validation"]
    for record in evaluations[-1:]:
        print(f"step {record.pop('step'):,}   validation   {line(record)}")
    print(f"{folder.path}: report.html, loss.png")


def _steps(profile: str | None = None) -> tuple[int, int] | None:
    """ "10:20" -> (10, 20)."""
    first, _, last = (profile or "1:1").partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile={profile}; allowed: FIRST:LAST, numbers of steps such as 10:20")
    return None if profile is None else (int(first), int(last))


def plan(arguments: Sequence[str]) -> None:
    """Tells whether an experiment fits a pod of TPUs, and how fast it is there, without one."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: jaxnlp plan EXPERIMENT --topology v5p:8x8x8 [--mesh fsdp=64,tensor=8 | --search] [--json] …\n")
        print("EXPERIMENT is a file or one of these; `jaxnlp plan EXPERIMENT --help` shows the options.\n")
        return experiments()
    plans, asked = planned(arguments)
    from jaxnlp.training import plan as planning
    from jaxnlp.training import report

    if asked.json:
        shown = [dataclasses.asdict(plan) for plan in plans]
        print(json.dumps(shown if asked.search else shown[0], indent=1, allow_nan=False))
    else:
        print("\n\n".join(map(planning.text, plans)))
    if asked.picture is not None:
        asked.picture.write_bytes(report.plans_png(plans))


def planned(arguments: Sequence[str]) -> tuple[list[Any], "Planning"]:
    """The plans that `plan` prints, and what was asked."""
    name, *rest = arguments
    prog = f"jaxnlp plan {name}"
    from jaxnlp.training import hlo

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs
    with hlo.without_tpu():
        asked, others = tyro.cli(Planning, args=rest, prog=prog, return_unknown_args=True)
        asked.check()
        path = experiment_path(name)
        experiment, _, _ = parse_experiment(load_experiment(path), others, name=path.stem, prog=prog)

        from jaxnlp.training import plan as planning

        if not asked.search:
            return [planning.plan(experiment, asked.topology, asked.mesh)], asked
        say = lambda plan: print(planning.line(plan), file=sys.stderr, flush=True)  # noqa: E731
        return planning.search(experiment, asked.topology, asked.seconds or 600.0, say)[: asked.best or 3], asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planning:
    """What `plan` asks beside the experiment."""

    topology: str  # v4:XxYxZ, v5p:XxYxZ, v5e:XxY or v6e:XxY chips; a100:N, h100:N, h200:N, cpu:N
    mesh: str | None = None  # instead of the experiment's --parallel
    search: bool = False  # try meshes and remat policies
    seconds: float | None = None  # of a search: 600, if not given
    best: int | None = None  # plans that a search prints: 3, if not given
    json: bool = False  # instead of text: an object, or of a search a list
    picture: Path | None = None  # a PNG of memory and time to write

    def check(self) -> None:
        """ValueError for options that would do nothing."""
        if self.search and self.mesh is not None:
            raise ValueError(
                f"--mesh {self.mesh} with --search, which tries meshes of its own; allowed: one of the two"
            )
        if self.picture is not None and not self.picture.absolute().parent.is_dir():
            raise ValueError(f"--picture {self.picture}: no such folder; allowed: a file in a folder that is there")
        for name in ("seconds", "best"):
            value = getattr(self, name)
            if value is not None and not (self.search and value > 0):
                raise ValueError(f"--{name} {value}; allowed: more than 0, and with --search alone")


def evaluate(
    run: Folder,
    *,
    split: str | None = None,
    step: Step = "latest",
    ema: Average = False,
    average: Mean = 1,
    data_dir: str | None = None,
) -> None:
    """Prints the metrics of a run over its validation part, or over another split of the same set, as JSON.

    Args:
        split: as TFDS writes it, such as "test"
        data_dir: where the data lies
    """
    import jaxnlp

    loaded = jaxnlp.load(run, step=step, ema=ema, average=average)
    if loaded.experiment is None:
        raise ValueError(
            f"{run} is no run, and names no data; allowed: a run, or jaxnlp.evaluate(…, source=) in Python"
        )
    source = loaded.experiment.data.validation
    if split is not None:
        if not hasattr(source, "split"):
            raise ValueError(f"--split={split}: the run's data are {source!r}, without splits; leave --split out")
        source = dataclasses.replace(source, split=split)
    print(json.dumps(jaxnlp.evaluate(loaded, source=source, data_dir=data_dir)))


def export(
    run: Folder,
    directory: Positional[str],
    *,
    merge: bool = False,
    step: Step = "latest",
    ema: Average = False,
    average: Mean = 1,
) -> None:
    """Writes a run as a directory that from_pretrained of Hugging Face's transformers reads.

    Args:
        directory: a new folder
        merge: write a run's folder instead, which is whole where this one adapts another's parameters
    """
    import jaxnlp

    loaded = jaxnlp.load(run, step=step, ema=ema, average=average)
    jaxnlp.export(loaded, directory, format="run" if merge else "huggingface")
    print(f"written: {directory}")


def generate(
    run: Folder,
    *,
    prompt: str,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    banned: tuple[str, ...] = (),
    forced: tuple[str, ...] = (),
    seed: int = 0,
    stop: tuple[str, ...] = (),
    n_samples: int | None = None,
    n_beams: int | None = None,
    length_penalty: float = 0.0,
    choices: tuple[str, ...] | None = None,
    window: int | None = None,
    details: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
    step: Step = "latest",
    ema: Average = False,
    average: Mean = 1,
) -> None:
    """Prints the prompt and the text that goes on from it, as it comes.

    Args:
        temperature: 0 takes the best token each time
        top_k: sample among that many of the best tokens
        top_p: sample among the best tokens that together have this probability
        repetition_penalty: more than 1 makes tokens that were there less likely
        banned: strings that do not come in the text
        forced: strings that do
        stop: strings that end the text
        n_samples: print so many texts, a line each
        n_beams: search the likeliest text with so many beams, and sample nothing
        length_penalty: of the search: more than 0 favours long texts
        choices: print which of these strings is the likeliest instead
        window: go on beyond the model's positions, reading at most so many tokens
        details: print a JSON object a text, with its tokens and their log-probabilities
        dtype: of parameters and cache; as the run was trained, if not given
    """
    import jaxnlp

    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "banned": banned,
        "forced": forced,
        "seed": seed,
        "stop": stop,
        "n_samples": n_samples,
        "n_beams": n_beams,
        "length_penalty": length_penalty,
        "choices": choices,
        "window": window,
        "details": details,
    }
    loaded = jaxnlp.load(run, step=step, ema=ema, average=average, dtype=dtype)
    if n_samples is n_beams is choices is None and not details:
        loaded.tokenizer.encode(prompt)  # what cannot be read cannot be printed
        print(prompt, end="", flush=True)
        loaded.generate([prompt], on_text=lambda row, piece: print(piece, end="", flush=True), **options)
        return print()
    (found,) = loaded.generate([prompt], **options)
    for one in [found] if n_samples is None else found:
        print(json.dumps({"prompt": prompt, **one}, ensure_ascii=False) if details else prompt + one)


def predict(
    run: Folder,
    file: Positional[Path | None] = None,
    /,
    *,
    step: Step = "latest",
    ema: Average = False,
    average: Mean = 1,
) -> None:
    """Prints a JSON object for each line.

    Args:
        file: a text a line, or as JSON what else the task reads: ["a text", "a second"], {"question": …, "context": …};
            standard input if there is none
    """
    import jaxnlp

    with sys.stdin if file is None else file.open(encoding="utf-8", errors="surrogateescape") as lines:
        loaded = jaxnlp.load(run, step=step, ema=ema, average=average)
        items = (_item(line.rstrip("\n")) for line in lines)
        while rows := list(itertools.islice(items, ROWS)):
            for item, prediction in zip(rows, loaded.predict(rows)):
                given = item if isinstance(item, dict) else {"text" if isinstance(item, str) else "item": item}
                print(json.dumps({**given, **prediction}, ensure_ascii=False), flush=True)


def _item(line: str) -> Any:
    """The line, or what it is as a JSON array or object."""
    try:
        return json.loads(line) if line[:1] in ("[", "{") else line
    except ValueError:  # "[MASK] is a text"
        return line


def experiments() -> None:
    """Lists the experiments of this checkout."""
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in _files()}
    width = max(map(len, docstrings), default=0)
    for name, docstring in docstrings.items():
        print(f"{name:{width}}  {_first_line(docstring)}")


def experiment_path(name: str) -> Path:
    """The experiment's file: a path, or a name in the checkout's experiments/."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"no such file: {name}")
        return Path(name)
    names = [path.stem for path in _files()]
    if name not in names:
        raise ValueError(f"no experiment {name!r}{_nearest(name, names)}; allowed: a .py file, {', '.join(names)}")
    return EXPERIMENTS / f"{name}.py"


def load_experiment(path: Path) -> Callable[..., Any]:
    """The file's function `experiment`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses of the file are looked up
    spec.loader.exec_module(module)
    if not hasattr(module, "experiment"):
        raise ValueError(f"{path} has no function experiment(**arguments) -> Experiment")
    return module.experiment


def parse_experiment(
    function: Callable[..., Any], arguments: Sequence[str], *, name: str, prog: str
) -> tuple[Any, str, str | None]:
    """The Experiment, the run's folder and the data's that the options ask for.

    The function's arguments are read first, as the Experiment that it makes of them has the defaults of all the rest.
    """
    from jaxnlp.training import processes
    from jaxnlp.training.experiment import Experiment

    parameters = inspect.signature(function).parameters
    options = {"workdir", "data_dir", *(field.name for field in dataclasses.fields(Experiment))}
    taken = parameters.keys() & (options | inspect.signature(processes.initialize).parameters.keys())
    if taken:
        raise ValueError(f"experiment() has the argument {min(taken)!r}, which is an option already: rename it")
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    needed = {f"--{name.replace('_', '-')}" for name, p in parameters.items() if p.default is p.empty}
    quiet = arguments if needed - given else [a for a in arguments if a not in ("-h", "--help")]
    made, _ = tyro.cli(function, args=quiet, prog=prog, return_unknown_args=True)
    # A source that is an object or a list has no options: tyro would make some of each of its items.
    opaque = {part: source for part, source in vars(made.data).items() if not dataclasses.is_dataclass(source)}
    shown = dataclasses.replace(made.data, **dict.fromkeys(opaque, object()))

    @dataclasses.dataclass(frozen=True)
    class Options:
        arguments: Annotated[Any, tyro.conf.arg(name="", constructor=function)]
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = dataclasses.replace(made, data=shown)
        workdir: str = f"runs/{name}"  # the run's folder
        data_dir: str | None = None  # where TFDS keeps its data

    description = _first_line(function.__globals__["__doc__"])
    if prog.startswith("jaxnlp train"):
        description += f"\n\n{OTHERS}"
    config = (AvoidSubcommands, SuppressFixed)
    options = tyro.cli(Options, args=arguments, prog=prog, description=description, config=config)
    data = dataclasses.replace(options.experiment.data, **opaque)
    return dataclasses.replace(options.experiment, data=data), options.workdir, options.data_dir


def _command(function: Callable[..., None]) -> Callable[[Sequence[str]], None]:
    return lambda arguments: tyro.cli(function, args=arguments, prog=f"jaxnlp {function.__name__}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "plan": plan,
    "evaluate": _command(evaluate),
    "generate": _command(generate),
    "predict": _command(predict),
    "export": _command(export),
    "experiments": _command(experiments),
}


def _usage() -> str:
    functions = (train, plan, evaluate, generate, predict, export, experiments)
    lines = [f"  {function.__name__:12} {_first_line(inspect.getdoc(function))}" for function in functions]
    return "\n".join(["usage: jaxnlp COMMAND …  (jaxnlp COMMAND --help shows its options)\n", *lines])


def _files() -> list[Path]:
    return sorted(EXPERIMENTS.glob("*.py"))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _is_answer(error: Exception) -> bool:
    """Whether the message is meant for the caller: raised by our own code or an experiment's, or by the system.

    What libraries raise is a mistake of ours, and its traceback is wanted. JAX keeps the whole traceback of an error
    within what it compiles as the cause of the one that it shows.
    """
    whole = error.__cause__ if type(error.__cause__).__name__ == "UnfilteredStackTrace" else error
    *_, (frame, _) = traceback.walk_tb(whole.__traceback__)
    ours = Path(frame.f_code.co_filename).is_relative_to(PACKAGE) or "experiment" in frame.f_globals
    return ours or isinstance(error, OSError) or hasattr(error, "exit_code")
