"""Directories as transformers writes them: config.json, *.safetensors and the tokenizer's files, read and written.

    found = Directory("opus-mt-en-de")
    found.config, found.task, found.tokenizer(), found.params()
    write("out", config, params, tokenizer, task)

What a family of models calls its settings and tensors stands in its own file, bert.py for one. Every tensor of a
directory is accounted for, or an error lists those that are not. Nothing is unpickled.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import importlib.util
import json
import operator
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import processors

from jaxnlp.data.tokenizers import Tokenizer
from jaxnlp.files import is_remote
from jaxnlp.interop import bert, gpt, marian, sentences
from jaxnlp.interop.tables import Row, as_json
from jaxnlp.models.heads import LanguageModel, shapes
from jaxnlp.nn.blocks import unstack_layers
from jaxnlp.tasks.embedding import Embedding
from jaxnlp.tasks.inputs import Template, template
from jaxnlp.tasks.labelled import Texts
from jaxnlp.tasks.masked_lm import MaskedLM
from jaxnlp.tasks.tagging import Tagging

FAMILIES = {**bert.DIALECTS, **gpt.DIALECTS, "marian": marian}  # by the model_type of config.json
OF_TASK = (  # a later one's count
    *("tokenizer_config.json", "config.json", "generation_config.json"),
    *("sentence_bert_config.json", "1_Pooling/config.json"),  # of sentence-transformers
)
FILES = ("*.json", "*.safetensors", "*.txt", "*.spm", "*.bpe")  # of a directory
OWN_ENDS = (  # classes that put special tokens round texts themselves, whatever tokenizer.json says; None: the model's
    None,
    *(f"{name}Tokenizer{fast}" for name in ("Bert", "DistilBert", "Roberta", "XLMRoberta") for fast in ("", "Fast")),
)
AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that read tokenizer.json alone
LETTERS = {  # settings of tokenizer_config.json, and the fields of tokenizer.json that say the same
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "add_prefix_space": "add_prefix_space",
}
ON_HUB = r"\w[\w.-]*(/\w[\w.-]*)?"  # a model's name there
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = """\
{found} may run any program when it is read, and is not; allowed: *.safetensors. To write those once, where PyTorch and
transformers are installed and the file can be trusted:
  python -c "import transformers as t; {steps}\""""


class DirectoryError(RuntimeError):
    """A directory that cannot be read as a model, and why."""


def find(path: str | os.PathLike) -> "Directory | None":
    """The directory there, or that of a model of this name on the Hugging Face Hub; None for anything else.

    The Hub is asked where `huggingface_hub` is installed (the extra `hub`) and no such folder can be meant.

    Raises:
        DirectoryError: as `Directory`, or the Hub has no such model or cannot be reached.
    """
    if is_remote(path):
        return None
    folder, name = pathlib.Path(path).expanduser(), os.fspath(path)
    if (folder / "config.json").is_file():
        return Directory(folder)
    if folder.parent != pathlib.Path(".") and folder.parent.exists():
        return None
    if folder.exists() or not re.fullmatch(ON_HUB, name) or importlib.util.find_spec("huggingface_hub") is None:
        return None
    import huggingface_hub

    try:
        return Directory(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)), on_hub=name)
    except (OSError, ValueError) as error:
        allowed = "a folder, or a name on the Hugging Face Hub, which gave none"
        raise DirectoryError(f"{name}: no such folder; allowed: {allowed}: {error}") from error


class Directory:
    """A model as transformers wrote it; DirectoryError for what is none, or none that is known here.

    `params` are read a tensor at a time. `on_hub` is its name on the Hub, which may have more of its files.
    """

    def __init__(self, path: str | os.PathLike, on_hub: str | None = None):
        self.path, self.on_hub = pathlib.Path(path).expanduser(), on_hub
        settings = self._json("config.json")
        kind = settings.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise DirectoryError(f"{self.path}/config.json: model_type={kind!r}; allowed: {', '.join(FAMILIES)}")
        self.family = FAMILIES[kind]
        made = settings.get("architectures") or list(self.family.ARCHITECTURES)
        if not isinstance(made, list) or made[0] not in list(self.family.ARCHITECTURES):
            allowed = ", ".join(self.family.ARCHITECTURES)
            raise DirectoryError(f"{self.path}/config.json: architectures={made}; allowed: {allowed}")
        self.architecture, self.settings = made[0], settings | {"architectures": made[0]}
        self.named = bool(settings.get("architectures"))
        with self._tensors() as tensors:
            names = tensors.shapes.keys()
        of_task = functools.reduce(operator.or_, map(self._json, OF_TASK)) | {"architectures": made[0]}
        with self._reading("config.json"):
            self.config = self.family.config(self.settings, names)
            self.task = self.family.task(of_task, names)
        self.of_task = of_task

    def tokenizer(self) -> Tokenizer:
        """DirectoryError where its ids are not the model's, or too many; ValueError, FileNotFoundError for files."""
        tokenizer = Tokenizer.load(self.path)
        output = getattr(self.config, "output_vocab_size", self.config.vocab_size)
        sizes = {"vocab_size": (self.config.vocab_size, tokenizer), "decoder_vocab_size": (output, tokenizer.target)}
        for name, (size, one) in sizes.items():
            if one.vocab_size > size:
                message = f"{name}={size}; allowed: {one.vocab_size}, the tokenizer's, and more"
                raise DirectoryError(f"{self.path}/config.json: {message}")
        for name, found in self.family.ids(tokenizer).items():
            if self.settings.get(name) not in (None, found, [found]) and name not in getattr(self.family, "free", ()):
                message = f"{name}={self.settings[name]}; allowed: {found}, as the tokenizer beside it has it"
                raise DirectoryError(f"{self.path}/config.json: {message}")
        self._check_letters(tokenizer)
        return tokenizer

    def _check_letters(self, tokenizer: Tokenizer) -> None:
        """DirectoryError where tokenizer_config.json, which most classes of transformers follow, says otherwise.

        What it leaves to a class, and normalizers that are sequences, are not compared.
        """
        said, file = self._json("tokenizer_config.json"), json.loads(tokenizer.to_json())
        if said.get("tokenizer_class") in AS_WRITTEN:
            return
        has = (file.get("normalizer") or {}) | (file.get("pre_tokenizer") or {})
        for name, field in LETTERS.items():
            if not self.family.ENDS and field != "add_prefix_space":  # GPT-1's class has small letters alone
                continue
            found = has["lowercase"] if field == "strip_accents" and has.get(field, "") is None else has.get(field)
            if found is not None and said.get(name) not in (None, found):
                message = f"{name}={said[name]}; allowed: {found}, as tokenizer.json has it"
                raise DirectoryError(f"{self.path}/tokenizer_config.json: {message}")

    def task_with(self, tokenizer: Tokenizer) -> Any:
        """The task as the tokenizer beside it puts special tokens round texts, and as sentence-transformers pools.

        DirectoryError for a way of either that is not known here.
        """
        if isinstance(self.task, Embedding):
            with self._reading("modules.json or 1_Pooling"):
                return sentences.task_of(self.of_task, self._json("modules.json", list), self.task.length)
        by_class = self.family.ENDS and self._json("tokenizer_config.json").get("tokenizer_class") in OWN_ENDS
        if by_class or self.family is marian or not (self.family.ENDS or isinstance(self.task, Texts)):
            return self.task
        form, found, none = template(tokenizer), _ends(tokenizer), ([], [])
        if found not in (none, own := (list(form.start), list(form.end))):
            message = f"puts the tokens {found} before and after a text; allowed: none, or {own}"
            raise DirectoryError(f"{self.path}/tokenizer.json {message}")
        if not self.family.ENDS:
            return dataclasses.replace(self.task, ends=found != none)
        if not isinstance(self.task, MaskedLM | Tagging):
            self._check_pair(tokenizer, form)
        return self.task

    def _check_pair(self, tokenizer: Tokenizer, form: Template) -> None:
        """DirectoryError where tokenizer.json has a form of a pair, and that is another."""
        a, pair = tokenizer.encode("a"), tokenizer.backend.encode("a", "a")
        own = {name: x.tolist() for name, x in form.join(a, a).items()}
        ids, kinds = own["input_ids"], own.get("token_type_ids", [0] * len(own["input_ids"]))
        if pair.ids not in (a + a, ids) or (pair.ids == ids and self.config.n_segments > 1 and pair.type_ids != kinds):
            found = f"{pair.ids}, of types {pair.type_ids}; allowed: {ids}, of {kinds}"
            raise DirectoryError(f"{self.path}/tokenizer.json reads the pair a, a as {found}")

    def params(
        self,
        place: Callable[[str, np.ndarray], Any] = lambda path, x: jax.device_put(x),
        dtype: Any = jnp.float32,
    ) -> dict[str, Any]:
        """The parameters, of unrolled layers; `place` brings each, by its path, to where it is wanted.

        DirectoryError, which lists them all, for tensors that are missing, of another shape or not known.
        """
        config = dataclasses.replace(self.config, scan=False)
        by_path = shapes(config, self.task.heads)
        rows, words = self.family.rows(config, self.task.heads), _words(config)
        with self._tensors() as tensors:
            where = self._checked(config, rows, by_path, tensors)
            found = {}
            for row in rows:
                shape = by_path[row.ours].shape
                parts = [tensors.read(where[name]).astype(dtype, copy=False) for name in row.names]
                found[row.ours] = place(row.ours, row.to_ours(parts, shape, words(row)))
        return unflatten_dict(found, sep="/")

    def _checked(
        self, config: Any, rows: list[Row], shapes: Mapping[str, Any], tensors: "_Tensors"
    ) -> Mapping[str, str]:
        """The name under which each tensor of the rows is found here."""
        words, copies = _words(config), self.family.copies(config, self.task.heads)
        wanted = {name: row.theirs_shape(shapes[row.ours].shape, words(row)) for row in rows for name in row.names}
        where = {name: name for name in wanted}
        for copy, name in copies.items():
            if name not in tensors.shapes and copy in tensors.shapes:
                where[name] = copy
        problems = [f"{name}: missing" for name in wanted if where[name] not in tensors.shapes]
        for name, shape in wanted.items():
            found = tensors.shapes.get(where[name], shape)
            if found != shape:
                problems.append(f"{where[name]}: shape {found}; allowed: {shape}")
        constants = self.family.constants(config, tensors.shapes)
        others = [name for name in tensors.shapes if name not in wanted and name not in where.values()]
        for name in others:
            if name in copies and copies[name] in where:
                if not np.array_equal(tensors.read(name), tensors.read(where[copies[name]])):
                    problems.append(f"{name}: differs from {where[copies[name]]}; allowed: the same values")
            elif name in constants:
                x, known = tensors.read(name), constants[name]
                if known is not None and not (x.shape == known.shape and np.allclose(x, known, atol=1e-3)):
                    problems.append(f"{name}: not the constant that it is; allowed: that, or nothing")
            else:
                problems.append(f"{name}: not known")
        if problems:
            count = f"{len(problems)} tensor{'s' * (len(problems) > 1)}"
            described = "as its config.json describes it"
            if not self.named:
                described = f"{described}, without saying which of the architectures"
            raise DirectoryError(
                f"{self.path} does not hold a {self.architecture} {described}, at {count}:\n  " + "\n  ".join(problems)
            )
        return where

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (AttributeError, TypeError, ValueError) as error:
            raise DirectoryError(f"{self.path}/{name}: {error}") from error

    def _tensors(self) -> "_Tensors":
        return _Tensors(self.path, self.architecture, self.on_hub)

    def _json(self, name: str, kind: type = dict) -> Any:
        """The object in a file, or the list, empty where it is absent; only config.json has to be there."""
        file = self.path / name
        if not file.is_file():
            if name == "config.json":
                raise DirectoryError(f"{self.path}: no config.json; allowed: a directory as transformers writes it")
            return kind()
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DirectoryError(f"{file}: not JSON: {error}") from error
        if not isinstance(found, kind):
            raise DirectoryError(f"{file}: a {type(found).__name__}; allowed: a {kind.__name__}")
        return found


def write(path: str | os.PathLike, config: Any, params: Mapping[str, Any], tokenizer: Tokenizer, task: Any) -> None:
    """What transformers' from_pretrained reads as the same model; whole, or not at all.

    Of an `Embedding`, sentence-transformers too. ValueError for a model or a task that transformers does not have;
    FileExistsError for a folder with something in it.
    """
    if not hasattr(task, "heads"):  # the name of a user's own
        raise ValueError(f"the task {task.name}, which is not jaxnlp's own; allowed: a run with one of its tasks")
    if getattr(task, "symmetric", False):
        raise ValueError("task.symmetric=True, whose two orders transformers does not add up; allowed: False")
    kind = next((kind for kind, family in FAMILIES.items() if family.writes(config, tokenizer)), None)
    if kind is None:
        raise ValueError(
            f"the model {type(config).__module__}; allowed with format='huggingface': {', '.join(FAMILIES)}"
        )
    family, heads = FAMILIES[kind], task.heads
    made = _classes(family, heads)
    if not made:  # a language model beside another head has no parameters: it is kept, or there, in what can have it
        others = tuple(head for head in heads if not isinstance(head, LanguageModel))
        heads = others if _classes(family, others) else (LanguageModel(), *others)
        made = _classes(family, heads)
    if not made:
        raise ValueError(f"a {kind} with the heads {task.heads}; transformers has: {', '.join(family.ARCHITECTURES)}")
    path = pathlib.Path(path).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already; allowed: a new folder, or an empty one")
    settings = {"architectures": made[:1], **family.settings(config, task), "model_type": kind, "dtype": "float32"}
    for name, id in family.ids(tokenizer).items():
        if settings.setdefault(name, id) != id:
            raise ValueError(f"the tokenizer's {name} is {id}; allowed in a {made[0]}: {settings[name]}")
    params = unstack_layers(params) if config.scan else params
    config, params = family.complete(dataclasses.replace(config, scan=False), params, heads)
    ends = family.ENDS or (isinstance(task, Texts) and task.ends)
    longest = min(config.n_positions, settings.get("max_position_embeddings", config.n_positions))
    n_segments = getattr(config, "n_segments", 0)
    files = family.files(tokenizer, task) or _tokenizer_files(tokenizer, ends, longest, n_segments)
    if hasattr(family, "generation"):
        files["generation_config.json"] = as_json(family.generation(tokenizer, task))
    if isinstance(task, Embedding) and family.ENDS:
        files |= {name: as_json(x) for name, x in sentences.files(task, config.d_model).items()}
    words, leaves, tensors = _words(config), flatten_dict(params, sep="/"), {}
    for row in family.rows(config, heads):
        tensors |= row.to_theirs(np.asarray(leaves[row.ours], np.float32), words(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.", ignore_cleanup_errors=True) as beside:
        folder = pathlib.Path(beside) / "whole"
        folder.mkdir()
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        files["config.json"] = as_json(settings)
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        folder.replace(path)


def _classes(family: Any, heads: tuple[Any, ...]) -> list[str]:
    return [name for name, types in family.ARCHITECTURES.items() if types == tuple(map(type, heads))]


def _ends(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What transformers, which reads the same file, puts before and after a text."""
    bare, whole = tokenizer.encode("a"), tokenizer.backend.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _tokenizer_files(tokenizer: Tokenizer, ends: bool, longest: int, n_segments: int) -> dict[str, bytes]:
    """tokenizer.json, which with `ends` puts special tokens round texts, and what transformers wants to know of it."""
    backend, form, whole = tokenizer.backend, template(tokenizer), json.loads(tokenizer.to_json())
    segments = form.segments and n_segments > 1
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    names = {"eos": tokenizer.eos_id, "bos": tokenizer.bos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    if form.start and form.end:
        names |= {"cls": form.start[0], "sep": form.end[0], "mask": tokenizer.mask_id}
    if tokenizer.eos_id == tokenizer.unk_id:  # GPT-1's, which has no end
        names = {name: id for name, id in names.items() if name == "unk" or id != tokenizer.unk_id}
    own |= {f"{name}_token": tokenizer.token(id) for name, id in names.items() if id is not None}
    kinds = ["token_type_ids"] if segments else []
    own["model_input_names"] = ["input_ids", *kinds, "attention_mask"]
    if ends and _ends(tokenizer) == ([], []):
        start, between, end = ([backend.id_to_token(id) for id in ids] for ids in form[:3])
        second = [f"{token}:{int(segments)}" for token in ("$B", *end)]
        processor = processors.TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A", *between, *second],
            special_tokens=[(token, backend.token_to_id(token)) for token in {*start, *between, *end}],
        )
        template_of_ours, own_one = json.loads(processor.__getstate__()), whole.get("post_processor")
        both = {"type": "Sequence", "processors": [own_one, template_of_ours]}
        whole["post_processor"] = both if own_one else template_of_ours
    return {"tokenizer.json": as_json(whole), "tokenizer_config.json": as_json(own)}


class _Tensors:
    """The tensors of all *.safetensors of a directory, read when asked for."""

    def __init__(self, path: pathlib.Path, architecture: str, on_hub: str | None = None):
        files = self._files(path)
        if not files:
            raise DirectoryError(_without_tensors(path, architecture, on_hub))
        self.path, self.open, self.file_of = path, {}, {}
        for file in files:
            try:
                self.open[file] = opened = safetensors.safe_open(file, "numpy").__enter__()
            except (OSError, safetensors.SafetensorError) as error:
                self.__exit__()
                raise DirectoryError(f"{file}: cannot be read, perhaps cut off or damaged: {error}") from error
            self.file_of |= dict.fromkeys(opened.keys(), file)
        self.shapes = {name: tuple(self._of(name).get_slice(name).get_shape()) for name in self.file_of}

    @staticmethod
    def _files(path: pathlib.Path) -> list[pathlib.Path]:
        index = path / "model.safetensors.index.json"
        if not index.is_file():
            return [path / "model.safetensors"] if (path / "model.safetensors").is_file() else []
        try:
            names = sorted(map(os.fspath, set(json.loads(index.read_text())["weight_map"].values())))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DirectoryError(f"{index}: no index of tensors: {error!r}") from error
        if absent := [name for name in names if not (path / name).is_file()]:
            raise DirectoryError(f"{index} names {', '.join(absent)}, not there; allowed: all of its files")
        return [path / name for name in names]

    def _of(self, name: str) -> Any:
        return self.open[self.file_of[name]]

    def read(self, name: str) -> np.ndarray:
        return self._of(name).get_tensor(name)

    def __enter__(self) -> "_Tensors":
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self.open.values():
            file.__exit__(None, None, None)


def _without_tensors(path: pathlib.Path, architecture: str, on_hub: str | None) -> str:
    """What is there instead of *.safetensors, and how to convert a pickle, here or on the Hub.

    What the Hub keeps here is not written to: there a folder of one's own gets the tokenizer too.
    """
    names = sorted({file.name for file in path.iterdir()} | set(_listed(on_hub)))
    pickle = next((name for pattern in PICKLES for name in fnmatch.filter(names, pattern)), None)
    whole, to = (on_hub, on_hub.rpartition("/")[2]) if on_hub else (path, path)
    if pickle is None:
        return f"{whole} holds {', '.join(names)}; allowed: model.safetensors, or parts of it with their index"
    parts = (architecture, "AutoTokenizer") if on_hub else (architecture,)
    steps = "; ".join(f"t.{part}.from_pretrained('{whole}').save_pretrained('{to}')" for part in parts)
    return CONVERT.format(found=f"{whole}/{pickle}", steps=steps)


def _listed(on_hub: str | None) -> list[str]:
    """The files that the Hub has of a model, if it says so."""
    if on_hub is None:
        return []
    import huggingface_hub

    with contextlib.suppress(OSError):
        return huggingface_hub.list_repo_files(on_hub)
    return []


def _words(config: Any) -> Callable[[Row], int]:
    """The words of a row's vocabulary, without those that fill it up."""
    output = getattr(config, "output_vocab_size", config.vocab_size)
    return lambda row: config.vocab_size if row.ours.startswith("source/") else output
