"""Attention in one place: softmax(q k' / sqrt(K)) v (Vaswani et al., 2017, eq. 1), by the fastest path that is right.

    path      where            takes                                                             by
    cudnn     GPU, bf16, fp16  K <= 128, a multiple of 8; causal, causal window, lengths         NVIDIA
    pallas    TPU              T and S multiples of 128; causal, window, lengths, segment_ids    jax: splash attention
    blocked   anywhere         everything, for T > 1 and T * S > 512 * 512: memory linear        kernels.py
    plain     anywhere         everything; keeps the [T, S] weights for the backward pass        kernels.py

cudnn and pallas take no dropout, no prefix, no offset and no keys spelled out (`seen`), and of window, lengths and
segment_ids (which can hide all keys from a query) one at a time, but for pallas a causal window with segment_ids, which
hides no token from itself. Without an offset, as in training, all skip what lies outside a window: the kernels
and blocked by blocks, plain by four parts.
The first row that fits is taken: `choose` says which, and the tests hold it to this.

Letters: B batch, H heads, T queries, S keys, K head width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray

from jaxnlp.nn.kernels import blocked, logits, plain, softmax
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.sharding import constrain, cuts, platform, spec

PATHS = ("cudnn", "pallas", "blocked", "plain")
PLAIN_UP_TO = 512 * 512  # T * S; above it blocks are faster on the CPU (experiments/benchmarks/attention.py)
BLOCK, BLOCK_CPU = 512, 128  # queries and keys of a block: enough for a matrix unit; what fits a CPU's caches


def attention(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Mask = Mask(),
    *,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: PRNGKeyArray | None = None,
    implementation: str | None = None,
) -> Float[Array, "B H T K"]:
    """What each query reads from the values, weighted by the softmax of its products with the keys.

    Args:
        scale: of the products; 1 / sqrt(K) by default.
        dropout_rate: share of the weights that are dropped, each on its own; the others grow by 1 / (1 - rate).
        implementation: the path to take instead of the one that `choose` gives.
    """
    if dropout_rate and dropout_rng is None:
        raise ValueError(f"dropout_rate={dropout_rate} came without a dropout_rng; allowed: a key of jax.random")
    # On a mesh that cuts positions, each device has some of the queries and all keys and values.
    q = constrain(q, "batch", "heads", "queries")
    k, v = (constrain(x, "batch", "heads") for x in (k, v))
    case = q.shape, k.shape, q.dtype, mask, dropout_rate
    where = platform()
    path = implementation or choose(where, *case)
    if path not in (allowed := [path for path in PATHS if _takes(path, *case)]):
        raise ValueError(f"implementation={path!r} cannot compute this attention; allowed: {', '.join(allowed)}")
    q = _scaled(q, scale)
    match path:
        case "cudnn":
            return _cudnn(q, k, v, mask)
        case "pallas":
            return _pallas(q, k, v, mask)
        case "blocked":
            return blocked(q, k, v, mask, dropout_rate, dropout_rng, block=BLOCK_CPU if where == "cpu" else BLOCK)
        case _:
            return plain(q, k, v, mask, dropout_rate, dropout_rng, transpose=where == "cpu")


def choose(
    platform: str,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    dtype: Any,
    mask: Mask,
    dropout_rate: float,
) -> str:
    """The path of the module's table for q and k of these shapes on "cpu", "gpu" or "tpu"."""
    case = q_shape, k_shape, dtype, mask, dropout_rate
    if platform == "gpu" and _takes("cudnn", *case):
        return "cudnn"
    if platform == "tpu" and _takes("pallas", *case):
        return "pallas"
    T, S = q_shape[2], k_shape[2]
    return "blocked" if T > 1 and T * S > PLAIN_UP_TO else "plain"


def _takes(path: str, q_shape, k_shape, dtype, mask: Mask, dropout_rate: float) -> bool:
    if path in ("blocked", "plain"):
        return True
    T, S, K = q_shape[2], k_shape[2], q_shape[3]
    hidden = [mask.window is not None, mask.lengths is not None, mask.segment_ids is not None]
    square = T == S or not (mask.causal or any(hidden[::2]))
    spelled = mask.prefix is not None or mask.offset is not None or mask.seen is not None
    both = path == "pallas" and mask.causal and mask.lengths is None
    if dropout_rate or spelled or (sum(hidden) > 1 and not both) or not square:
        return False
    if path == "pallas":
        return T % (128 * cuts("queries")) == S % 128 == 0
    half, narrow = dtype in (jnp.bfloat16, jnp.float16), K <= 128 and K % 8 == 0
    known = mask.segment_ids is None and (mask.window is None or mask.causal)
    return half and narrow and known and cuts("queries") == 1


def attention_weights(
    q: Float[Array, "B H T K"], k: Float[Array, "B H S K"], mask: Mask = Mask(), *, scale: float | None = None
) -> Float[Array, "B H T S"]:
    """The weights that `attention` gives to the keys, to look at."""
    return softmax(logits(_scaled(q, scale), k, mask.to_array(q.shape[2], k.shape[2])))


def _scaled(q: Float[Array, "B H T K"], scale: float | None) -> Float[Array, "B H T K"]:
    return q * jnp.asarray(1 / math.sqrt(q.shape[-1]) if scale is None else scale, q.dtype)


def _cudnn(q, k, v, mask: Mask) -> Float[Array, "B H T K"]:
    out = jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (q, k, v)),
        scale=1.0,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        key_value_seq_lengths=None if mask.lengths is None else jnp.maximum(mask.lengths, 1).astype(jnp.int32),
        implementation="cudnn",
    ).swapaxes(1, 2)
    return out if mask.lengths is None else _where_real(mask.lengths[:, None] > 0, out)


def _where_real(real, out: Float[Array, "B H T K"]) -> Float[Array, "B H T K"]:
    """Zeros, and so zero gradients, for queries that see nothing: kernels give them anything."""
    return jnp.where(real[:, None, :, None], out, jnp.zeros((), out.dtype))


def _pallas(q, k, v, mask: Mask) -> Float[Array, "B H T K"]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, H, T, S, shards = *q.shape[:3], k.shape[2], cuts("queries")
    if mask.window is not None:
        band = masks.LocalMask((T, S), (mask.window - 1, 0 if mask.causal else None), 0)
    elif mask.causal:
        band = masks.CausalMask((T, S))
    else:
        band = masks.FullMask((T // shards, S))  # of each part
    ids = None  # of the keys -1, and of the queries 0, for what sees and is seen by nobody
    if mask.lengths is not None:
        some, real = mask.lengths[:, None] > 0, jnp.arange(S)[None] < mask.lengths[:, None]
        ids = splash.SegmentIds(jnp.broadcast_to(some, (B, T)).astype(jnp.int32), jnp.where(real, 1, -1))
    elif mask.segment_ids is not None:
        ids = splash.SegmentIds(mask.segment_ids, jnp.where(mask.segment_ids == 0, -1, mask.segment_ids))
    t, s = (next(size for size in (512, 256, 128) if n % size == 0) for n in (T // shards, S))
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), t),
        **dict.fromkeys(("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"), s),
    )
    heads = masks.MultiHeadMask([band] * (H // cuts("heads")))  # all heads see the same
    parts = band.shape[0] * shards // T
    interpret = platform() != "tpu"
    kernel = splash.make_splash_mha(heads, block_sizes=sizes, head_shards=1, q_seq_shards=parts, interpret=interpret)

    def run(kernel, q, k, v, ids):
        return jax.vmap(kernel)(q, k, v, ids)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.auto_axes:  # XLA cannot cut a kernel; the rules say along which axes it may be
        some, every = spec("batch", "heads", "queries"), spec("batch", "heads")
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, spec(None, "queries" if parts > 1 else None)))
        of_ids = ids and splash.SegmentIds(spec("batch", "queries"), spec("batch"))
        run = jax.shard_map(run, in_specs=(of_kernel, some, every, every, of_ids), out_specs=some, check_vma=False)
    out = run(kernel, q, k, v, ids)
    return out if ids is None else _where_real(ids.q != 0, out)
