"""What a directory of sentence-transformers has beside its body: how token states become a text's vector.

modules.json                  Transformer, Pooling and, where vectors have length 1, Normalize
1_Pooling/config.json         the one pooling that is true
sentence_bert_config.json     max_seq_length
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlp.tasks.embedding import Embedding

POOLINGS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # and their folders


def read_modules(modules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that modules.json says; ValueError for a module that changes the vectors in another way."""
    found = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if others := [name for name in found if name not in MODULES]:
        raise ValueError(f"the module {', '.join(others)}; allowed: {', '.join(MODULES)}")
    return {"normalize": "Normalize" in found}


def task_of(settings: Mapping[str, Any], length: int) -> Embedding:
    """The mean where nothing is said; ValueError for several poolings at once, and for others."""
    on = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if len(on) > 1 or not set(on) <= POOLINGS.keys():
        raise ValueError(f"1_Pooling: {', '.join(on)}; allowed: one of {', '.join(POOLINGS)}")
    longest = min(settings.get("max_seq_length") or length, length)
    pooling = POOLINGS[on[0]] if on else "mean"
    return Embedding(pooling=pooling, normalize=settings.get("normalize", False), length=longest)


def files(task: Embedding, width: int) -> dict[str, Any]:
    """The JSON of each file, of vectors of that width."""
    names = list(MODULES)[: 2 + task.normalize]
    modules = [
        {"idx": i, "name": str(i), "path": MODULES[name], "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    modes = {name: pooling == task.pooling for name, pooling in POOLINGS.items()}
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {"max_seq_length": task.length, "do_lower_case": False},
    }
