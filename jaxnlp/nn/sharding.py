"""How a mesh cuts the axes of activations, which layers call by name: batch, length, queries, heads, …

The names' meaning is the caller's (training/parallel.py), in Flax's logical axis rules. Without them nothing is cut.
"""

import math

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array


def constrain(x: Array, *names: str | None) -> Array:
    """x, cut along the axes of these names; those without a name, or not given, are whole."""
    if not nn.get_logical_axis_rules():
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names))


def spec(*names: str | None) -> PartitionSpec:
    return nn.logical_to_mesh_axes(names)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": where the program will run; compiled ahead of time, that is not this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def cuts(name: str) -> int:
    """The parts into which the axis of that name is cut."""
    (axes,) = spec(name)
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
