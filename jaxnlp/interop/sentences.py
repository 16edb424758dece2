"""What a directory of sentence-transformers has beside its body: how token states become a text's vector.

    modules.json                  Transformer, Pooling and, where vectors have length 1, Normalize
    1_Pooling/config.json         {"pooling_mode": "mean"}, in older releases {"pooling_mode_mean_tokens": true}
    sentence_bert_config.json     max_seq_length, or else tokenizer_config.json model_max_length

It is written in the older form, which all releases read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlp.tasks.embedding import Embedding

POOLINGS = {"cls": "first", "lasttoken": "last", "mean": "mean", "max": "max"}
FLAGS = {  # the older form's
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # and their folders


def task_of(settings: Mapping[str, Any], modules: Sequence[Mapping[str, Any]], length: int) -> Embedding:
    """The mean where nothing is said; ValueError for modules and poolings that are not known here, and for several."""
    found = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if others := [name for name in found if name not in MODULES]:
        raise ValueError(f"the module {', '.join(others)}; allowed: {', '.join(MODULES)}")
    on = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    mode = settings.get("pooling_mode") or [FLAGS.get(name, name) for name in on] or "mean"
    modes = [mode] if isinstance(mode, str) else mode
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{', '.join(modes)}; allowed: one of {', '.join(POOLINGS)}")
    most = settings.get("max_seq_length") or settings.get("model_max_length") or length
    return Embedding(pooling=POOLINGS[modes[0]], normalize="Normalize" in found, length=int(min(most, length)))


def files(task: Embedding, width: int) -> dict[str, Any]:
    """The JSON of each file, of vectors of that width."""
    names = list(MODULES)[: 2 + task.normalize]
    modules = [
        {"idx": i, "name": str(i), "path": MODULES[name], "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    modes = {name: POOLINGS[mode] == task.pooling for name, mode in FLAGS.items()}
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {"max_seq_length": task.length, "do_lower_case": False},
    }
