"""Sets JAX up for all tests: 8 virtual CPU devices, strict promotion, and shapes checked at every call.

All of it comes before jaxnlp is imported.
"""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jaxtyping.install_import_hook("jaxnlp", "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Programs compiled by one run of the suite serve the next."""
    jax.config.update("jax_compilation_cache_dir", str(Path(config.cache.mkdir("jax"))))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
