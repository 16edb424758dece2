"""Writes compiler.npz: a small program as the TPU's compiler prints it, and its refusal of one that is too large.

python tests/golden/compiler.py         where libtpu is installed

Three layers' forward and backward pass on 4 chips, their matrices gathered before use and the gradients scattered; then
a branch that either doubles the gradient or gathers and squares it. What names source files is left out.
"""

import os
import re

import numpy as np

if __name__ == "__main__":
    alone = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    os.environ.update({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", **alone})
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = Mesh(np.array(devices), ("fsdp",), axis_types=(AxisType.Auto,))
    own = lambda *names: NamedSharding(mesh, PartitionSpec(*names))  # noqa: E731

    def given(shape, *names, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=own(*names))

    def step(w, x, flag):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, own())), None

        gradient = jax.grad(lambda w: jax.lax.scan(layer, x, w)[0].astype(jnp.float32).sum())(w)
        gradient = jax.lax.with_sharding_constraint(gradient, own(None, "fsdp"))
        return jax.lax.cond(flag > 0, lambda g: g * 2, lambda g: g @ g, gradient)

    flag = given((), dtype=jnp.int32)
    text = jax.jit(step).lower(given((3, 256, 256), None, "fsdp"), given((64, 256), "fsdp"), flag).compile().as_text()
    text = re.sub(r", metadata=\{[^{}]*\}", "", text)
    text = text[: text.index("\n}", text.index("\nENTRY ")) + 3]
    text = re.sub(r"(?ms)^(FileNames|FunctionNames|FileLocations|StackFrames)\n.*?\n\n", "", text)
    try:
        jax.jit(lambda w: (w @ w) @ (w.T @ w)).lower(given((2**17, 2**17))).compile()
    except jax.errors.JaxRuntimeError as error:
        np.savez_compressed(__file__.replace(".py", ".npz"), program=text, refusal=str(error))
