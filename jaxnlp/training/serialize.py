"""Frozen dataclasses as JSON and back, without running anybody's code.

    Config(d_model=64)   a dataclass inside jaxnlp      {"type": "jaxnlp.models.gpt.Config", "d_model": 64}
    (1, 2)               a tuple                        [1, 2]
    [1, 2]               a list                         {"list": [1, 2]}
    {"a": 1}             a dict with str keys           {"a": 1}
    MyTask()             anything of a user's own file  {"external": "my_file.MyTask"} -> External("my_file.MyTask")

beside str, int, float, bool and None. Anything else (an array, a function, a NumPy scalar) is refused by name.
"""

import dataclasses
import difflib
import importlib
import re
import sys
from typing import Any

PACKAGE = __name__.partition(".")[0]
RESERVED = ("type", "list", "external")
# Values of these are never a user's own objects, so naming them instead of writing them would lose them.
LIBRARIES = frozenset(sys.stdlib_module_names) | {"numpy", "jax", "jaxlib", "ml_dtypes", "flax", "optax"}


@dataclasses.dataclass(frozen=True)
class External:
    """Stands for an object of a user's own file: its name is known, its values are not."""

    name: str  # module.qualname


def encode(value: Any, path: str = "") -> Any:
    """The JSON value of `value`; `path` says in errors where it stands."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if type(value) is tuple:
        return [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if type(value) is list:
        return {"list": [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]}
    if type(value) is dict:
        if bad := [key for key in value if type(key) is not str or key in RESERVED]:
            raise ValueError(f"{path or 'the dict'} has the key {bad[0]!r}; allowed: str, except {', '.join(RESERVED)}")
        return {key: encode(item, _join(path, key)) for key, item in value.items()}
    if isinstance(value, External):
        return {"external": value.name}
    return _encode_object(value, path)


def encode_named(value: Any, path: str) -> Any:
    """As `encode`, but of what is no dataclass of ours only the name is kept: a list may be a source of any size."""
    ours = value is None or isinstance(value, External) or _root(type(value)) == PACKAGE
    return encode(value, path) if ours else {"external": _name(type(value))}


def _encode_object(value: Any, path: str) -> dict[str, Any]:
    cls = type(value)
    if _root(cls) in LIBRARIES or isinstance(value, type):
        raise ValueError(
            f"{path or 'the value'}={value!r} is a {_name(cls)}; allowed: dataclasses, tuples, lists, dicts, str, int, "
            "float, bool and None"
        )
    if _root(cls) != PACKAGE:
        return {"external": _name(cls)}
    if not dataclasses.is_dataclass(cls) or "." in cls.__qualname__:
        raise ValueError(f"{path or 'the value'} is a {_name(cls)}; allowed: a dataclass at the top of its module")
    return {"type": _name(cls)} | {
        field.name: (encode_named if field.metadata.get("named") else encode)(
            getattr(value, field.name), _join(path, field.name)
        )
        for field in dataclasses.fields(cls)
        if field.init
    }


def decode(value: Any, path: str = "") -> Any:
    """The inverse of `encode`. Imports modules of this package only, and builds nothing but its dataclasses."""
    if isinstance(value, list):
        return tuple(decode(item, f"{path}[{i}]") for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "external" in value:
        return External(value["external"])
    if "list" in value:
        return [decode(item, f"{path}[{i}]") for i, item in enumerate(value["list"])]
    if "type" not in value:
        return {key: decode(item, _join(path, key)) for key, item in value.items()}
    cls = _find(value["type"], path)
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    fields = {key: item for key, item in value.items() if key != "type"}
    for key in fields:
        if key not in known:
            raise ValueError(f"{_join(path, key)}: {value['type']} has no field {key!r}{nearest(key, known)}")
    try:
        return cls(**{key: decode(item, _join(path, key)) for key, item in fields.items()})
    except TypeError as error:
        raise ValueError(f"{path or 'the JSON'}: {value['type']} cannot be built: {error}") from error


def nearest(name: str, known: list[str]) -> str:
    """ "; the nearest is 'x'; allowed: …", to end an error about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return (f"; the nearest is {close[0]!r}" if close else "") + f"; allowed: {', '.join(known) or 'none'}"


def _find(name: Any, path: str) -> type:
    where = f"{path or 'the JSON'} has type {name!r}"
    if not isinstance(name, str) or not re.fullmatch(rf"{PACKAGE}(\.[a-z][a-z0-9_]*)+\.[A-Za-z]\w*", name):
        raise ValueError(f"{where}; allowed: a dataclass inside {PACKAGE}")
    module, _, qualname = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), qualname, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{where}, but there is no module {error.name}") from error
    # What a module only imports (a function, another library's class) is not offered by it.
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module):
        raise ValueError(f"{where}, but {module} has no dataclass {qualname}")
    return cls


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _root(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
