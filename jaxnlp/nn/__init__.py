"""Layers as equations: attention, blocks, embeddings. Knows jax and flax, nothing of text, files or devices."""

import ctypes
import os
import sys

import jax


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: else a step's temporaries on a CPU go back to the system and fault in again.

    It keeps more than 64 MB for the main thread alone, so programs run in the thread that calls them. JAX takes note of
    that when it first looks for its devices: what was asked of it before this import runs as it would without. Whoever
    sets one of glibc's own MALLOC_ variables, or preloads another allocator, has settled it himself.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((-1, -1), (-2, 64 << 20), (-4, 0)):  # M_TRIM_THRESHOLD: never, M_TOP_PAD, M_MMAP_MAX
            mallopt(option, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # which no variable of the environment can say


_keep_freed_memory()
