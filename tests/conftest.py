"""Sets JAX up for all tests: 8 virtual CPU devices, no silent promotion, and shapes checked at every call.

All of it comes before jaxnlp is imported.
"""

import functools
import importlib.metadata
import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no folder is not looked up
# Tests compile much and compute little: hardly optimised code is there sooner.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
FLAGS += " --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jax") < "0.12":  # later the flag is gone
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"

import flax  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
if hasattr(mlir, "make_ir_context"):  # an eighth of all time, as every operation outside of jit is a program
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def _struct_dataclass(*args, _plain=flax.struct.dataclass, **options):
    """jax.tree also makes pytrees of None, object() and abstract values: their fields are not checked, methods are."""
    made = _plain(*args, **options)
    if isinstance(made, type):
        made.__no_type_check__ = True
    return made


flax.struct.dataclass = _struct_dataclass
# The tower: an int serves as a float, as Python's own typing has it.
CHECK = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("jaxnlp", CHECK)


def pytest_configure(config: pytest.Config) -> None:
    """Programs compiled by one run of the suite serve the next."""
    if hasattr(config, "cache"):  # not with -p no:cacheprovider
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def _strict_dtypes(request: pytest.FixtureRequest):
    """Mathematics names its dtypes. Training is left out: optax takes a float to the power of an integer."""
    strict = {"nn", "models", "test_losses.py", "test_decoding.py"} & set(request.path.parts)
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield
