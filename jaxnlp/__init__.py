"""Neural language models from the recurrent network to GPT-3, as pure functions in JAX.

    run = jaxnlp.load("runs/quickstart")
    run.apply({"input_ids": ids}), run.generate(["Once upon"]), run.predict(["…"])
    run = jaxnlp.train(experiment, workdir="runs/mine");  jaxnlp.evaluate(run)
    jaxnlp.export(run, "out")                                                         for transformers

The names are handed on when first used, so that `import jaxnlp` touches no device.
"""

import importlib

_PUBLIC = dict.fromkeys(("Run", "load", "train", "evaluate", "export"), "run")

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxnlp' has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"jaxnlp.{_PUBLIC[name]}"), name)
