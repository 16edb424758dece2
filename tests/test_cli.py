"""The command line: options from an experiment's signature and fields, mistakes, and each command on a tiny run."""

import dataclasses
import io
import json
import re
import subprocess
import sys

import pytest

from jaxnlp import cli
from jaxnlp.tasks.prompting import Prompting
from jaxnlp.training import loop

EXPERIMENT = '''
"""A tiny GPT on one sentence.

A second paragraph.
"""
from jaxnlp.data.tokenizers import Characters
from jaxnlp.models import gpt
from jaxnlp.tasks.language_modeling import LanguageModeling
from jaxnlp.training.experiment import Data, Experiment

def experiment(
    length: int = 8,  # tokens a row
    evaluated: bool = True,
) -> Experiment:
    if length < 1:
        raise ValueError(f"length={length}; allowed: 1 and more")
    texts = [{"text": "to be or not to be"}] * 4
    return Experiment(
        model=gpt.Config(vocab_size=16, n_positions=32, n_layers=1, d_model=8, n_heads=2, d_head=4, d_ff=16),
        task=LanguageModeling(length=length),
        data=Data(train=texts, validation=texts if evaluated else None),
        tokenizer=Characters(),
        steps=2,
        batch_size=2,
    )
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "tiny_gpt.py"
    path.write_text(EXPERIMENT.lstrip())
    return path


@pytest.fixture(scope="module")
def run(file):
    folder = file.parent / "run"
    assert cli.main(["train", str(file), "--workdir", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def parsed(file):
    return lambda *arguments: cli.parse_experiment(cli.load_experiment(file), arguments, name="tiny_gpt", prog="jaxnlp")


def test_arguments_and_fields_are_options(parsed):
    experiment, workdir, data_dir = parsed(
        *["--length", "16", "--no-evaluated", "--steps", "50", "--optim.lr", "3e-4", "--model.n-layers", "3"],
        *["--model.dtype", "bfloat16", "--optim.clip", "None", "--ema", "0.99", "--task.prompts", "a", "b"],
        *["--workdir", "there", "--data-dir=data"],
    )
    assert (workdir, data_dir) == ("there", "data")
    assert (experiment.task.length, experiment.task.prompts, experiment.data.validation) == (16, ("a", "b"), None)
    assert (experiment.steps, experiment.ema, experiment.batch_size) == (50, 0.99, 2)
    assert (experiment.optim.lr, experiment.optim.clip) == (3e-4, None)
    assert (experiment.model.n_layers, experiment.model.dtype, experiment.model.d_model) == (3, "bfloat16", 8)


def test_defaults_are_the_experiments_own(parsed, file):
    experiment, workdir, data_dir = parsed()
    assert experiment == cli.load_experiment(file)()
    assert (workdir, data_dir) == ("runs/tiny_gpt", None)


def test_help_shows_both_and_takes_a_list_of_texts_for_no_option(file, capsys):
    assert cli.main(["train", str(file), "--length", "4", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "A tiny GPT on one sentence." in shown
    for option in (
        "--length INT",
        "--evaluated, --no-evaluated",
        "--steps INT",
        "--model.n-layers",
        "--optim.lr FLOAT",
    ):
        assert option in shown
    assert re.search(r"--task.length INT.*\(default: 4\)", shown)
    assert "data.train" not in shown


def test_help_names_the_flags_of_several_processes(capsys):
    assert cli.main(["train", "--help"]) == 0
    assert "--coordinator HOST:PORT --processes N --process I" in capsys.readouterr().out


def test_help_where_an_argument_is_required(tmp_path, capsys):
    path = tmp_path / "named.py"
    path.write_text("def experiment(*, dataset: str): ...")
    assert cli.main(["train", str(path), "--help"]) == 0
    assert "--dataset STR" in capsys.readouterr().out
    assert cli.main(["train", str(path)]) == 2
    assert "--dataset" in capsys.readouterr().err


def test_an_argument_that_is_an_option_already(tmp_path, capsys):
    path = tmp_path / "twice.py"
    for name in ("steps", "process"):
        path.write_text(f"def experiment({name}: int = 3): ...")
        assert cli.main(["train", str(path)]) == 2
        assert f"experiment() has the argument '{name}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "x"], "error: no command 'trian' (did you mean train?); allowed: train, plan, evaluate"),
        (["train", "{name}x"], "(did you mean {name}?)"),
        (["train", "--steps", "5", "tiny_gpt"], "error: no experiment '--steps'; allowed: a .py file, tiny_gpt"),
        (["train", "absent.py"], "error: no such file: absent.py"),
        (["train", "{file}", "--model.n-layer", "3"], "--model.n-layers INT"),
        (["train", "{file}", "--lenght", "3"], "--length INT"),
        (["train", "{file}", "--steps", "many"], "--steps"),
        (["train", "{file}", "--optim.decay", "square"], "cosine"),
        (["train", "{file}", "--optim.lr=-1"], "optim.lr=-1.0; allowed: more than 0"),
        (["train", "{file}", "--length", "0"], "length=0; allowed: 1 and more"),
        (["train", "{file}", "--profile", "20:10"], "--profile=20:10; allowed: FIRST:LAST"),
        (["train", "{file}", "--parallel", "fsdp=2,expert=4"], "found 'expert=4'; allowed: jit, pmap, auto"),
        (["plan", "{file}"], "--topology"),
        (["plan", "{file}", "--topology", "v9:4"], "topology='v9:4'; allowed: v4:XxYxZ"),
        (["train", "{file}", "--processes", "two"], "--processes"),
        (["train", "{file}", "--coordinator", "host"], "error: coordinator='host'; allowed: HOST:PORT"),
        (["evaluate", "absent"], "error: absent: no such folder; allowed"),
        (["generate", "absent"], "--prompt"),
        (["predict", "absent", "absent.txt"], "absent.txt"),
    ],
)
def test_mistakes_are_named_with_exit_code_2(arguments, message, file, capsys, monkeypatch):
    monkeypatch.setattr(cli, "EXPERIMENTS", file.parent)
    names = {"file": str(file), "name": file.stem}
    assert cli.main([argument.format(**names) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message.format(**names) in captured.err
    assert "Traceback" not in captured.err and not captured.out


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "train", lambda arguments: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("stop", "code", "message"),
    [
        (KeyboardInterrupt(), 130, ""),
        (loop.Preempted("saved at step 7"), 75, "saved at step 7\n"),
        (loop.NonFiniteLoss("the loss of step 9"), 70, "the loss of step 9\n"),
    ],
)
def test_exit_codes(stop, code, message, file, monkeypatch, capsys):
    def train(*arguments, **options):
        raise stop

    monkeypatch.setattr(loop, "train", train)
    assert cli.main(["train", str(file)]) == code
    assert capsys.readouterr().err == message


def test_experiments_lists_names_and_first_lines(file, monkeypatch, capsys):
    monkeypatch.setattr(cli, "EXPERIMENTS", file.parent)
    assert cli.main(["experiments"]) == 0
    assert capsys.readouterr().out == "tiny_gpt  A tiny GPT on one sentence.\n"


def test_train_resumes_and_says_where_things_are(run, file, capsys):
    assert cli.main(["train", str(file), "--workdir", run]) == 0
    assert re.fullmatch(
        rf"step 2   validation   .*loss \d.*\n{re.escape(run)}: report.html, loss.png\n", capsys.readouterr().out
    )


def test_generate_prints_what_the_run_gives(run, capsys):
    import jaxnlp

    assert cli.main(["generate", run, "--prompt", "to be", "--max-new-tokens", "6", "--top-k", "3", "--seed", "1"]) == 0
    (expected,) = jaxnlp.load(run).generate(["to be"], max_new_tokens=6, top_k=3, seed=1)
    assert capsys.readouterr().out == f"to be{expected}\n"


def test_generate_prints_samples_choices_and_details(run, capsys):
    import jaxnlp

    loaded = jaxnlp.load(run)
    few = ["generate", run, "--prompt", "to be", "--max-new-tokens", "6"]
    assert cli.main([*few, "--n-samples", "2"]) == 0
    (texts,) = loaded.generate(["to be"], max_new_tokens=6, n_samples=2)
    assert capsys.readouterr().out == "".join(f"to be{text}\n" for text in texts)
    assert cli.main([*few, "--choices", " or", " be"]) == 0
    (text,) = loaded.generate(["to be"], choices=[" or", " be"])
    assert capsys.readouterr().out == f"to be{text}\n"
    assert cli.main([*few, "--n-beams", "2", "--details"]) == 0
    (found,) = loaded.generate(["to be"], max_new_tokens=6, n_beams=2, details=True)
    assert json.loads(capsys.readouterr().out) == {"prompt": "to be", **found}
    assert cli.main([*few, "--banned", "o", "--forced", "be", "--window", "4"]) == 0
    (text,) = loaded.generate(["to be"], max_new_tokens=6, banned=["o"], forced=["be"], window=4)
    assert capsys.readouterr().out == f"to be{text}\n" and "be" in text and "o" not in text
    assert cli.main([*few, "--n-beams", "2", "--top-k", "3"]) == 2
    assert "error: n_beams=2 with top_k=3; allowed: one of the two" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_refused(run, tmp_path, monkeypatch, capsys):
    """As an argument, which Python gives with a half surrogate for each such byte, and in a file."""
    assert cli.main(["generate", run, "--prompt", "to \udcff be"]) == 2
    captured = capsys.readouterr()
    assert "error: the text 'to \\udcff be' is not valid Unicode" in captured.err and not captured.out

    import jaxnlp

    loaded, task = jaxnlp.load(run), Prompting(prompt="{text}", choices=("a", "b"))
    monkeypatch.setattr(jaxnlp, "load", lambda path, **options: dataclasses.replace(loaded, task=task))
    (tmp_path / "texts.txt").write_bytes(b"to be\nto \xff be\n")
    assert cli.main(["predict", run, str(tmp_path / "texts.txt")]) == 2
    assert "error: the text 'to \\udcff be' is not valid Unicode" in capsys.readouterr().err


def test_predict_without_a_task_for_it(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("to be\n"))
    assert cli.main(["predict", run]) == 2
    assert "LanguageModeling predicts nothing" in capsys.readouterr().err


def test_predict_gives_a_line_for_a_line(tmp_path, monkeypatch, capsys):
    class Run:
        def predict(self, items):
            return [{"label": str(item).upper()} for item in items]

    import jaxnlp

    monkeypatch.setattr(jaxnlp, "load", lambda path, **options: Run(), raising=False)
    texts = [f"né {i}" for i in range(cli.ROWS + 1)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    assert cli.main(["predict", "run", str(tmp_path / "texts.txt")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"text": text, "label": text.upper()} for text in texts]
    more = ['["a", "b"]', '{"question": "q", "context": "c"}', "[MASK] is a text"]
    (tmp_path / "items.txt").write_text("\n".join(more))
    assert cli.main(["predict", "run", str(tmp_path / "items.txt")]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"item": ["a", "b"], "label": "['A', 'B']"},
        {"question": "q", "context": "c", "label": "{'QUESTION': 'Q', 'CONTEXT': 'C'}"},
        {"text": "[MASK] is a text", "label": "[MASK] IS A TEXT"},
    ]


def test_evaluate_refuses_a_split_of_data_without_splits(run, capsys):
    assert cli.main(["evaluate", run, "--split", "test"]) == 2
    assert "without splits" in capsys.readouterr().err


def test_help_touches_neither_jax_nor_the_data():
    program = "import sys; from jaxnlp import cli; cli.main(['--help']); sys.exit('jax' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in cli.COMMANDS)
