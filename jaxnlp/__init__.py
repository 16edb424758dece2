"""Neural language models from the recurrent network to GPT-3, as pure functions in JAX.

    run = jaxnlp.load("runs/quickstart")
    run.apply({"input_ids": ids}), run.generate(["Once upon"]), run.predict(["…"])
    run = jaxnlp.train(experiment, workdir="runs/mine");  jaxnlp.evaluate(run)
    jaxnlp.export(run, "out")                                                         for transformers

The names are handed on when first used, so that `import jaxnlp` touches no device.
"""

import ctypes
import importlib
import os
import sys

import jax

_PUBLIC = dict.fromkeys(("Run", "load", "train", "evaluate", "export"), "run")

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxnlp' has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"jaxnlp.{_PUBLIC[name]}"), name)


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: else a step's temporaries on a CPU go back to the system and fault in again.

    It keeps more than 64 MB for the main thread alone, so programs run in the thread that calls them; JAX takes note of
    that when it first sees its devices, so `import jaxnlp` comes before. Whoever sets one of glibc's own MALLOC_
    variables, or preloads another allocator, has settled it himself.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((-1, -1), (-2, 64 << 20), (-4, 0)):  # M_TRIM_THRESHOLD: never, M_TOP_PAD, M_MMAP_MAX
            mallopt(option, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # which no variable of the environment says


_keep_freed_memory()
