"""The one block of BERT, GPT and both halves of the Transformer, and the stack of them.

    norm_first = False   h = Norm(x + Drop(Attention(x))),  y = Norm(h + Drop(MLP(h)))   Vaswani et al., 2017, 3.1
    norm_first = True    h = x + Drop(Attention(Norm(x))),  y = h + Drop(MLP(Norm(h)))   Radford et al., 2019, 2.3

    Attention(x) = concat_h(softmax(q_h k_h' / sqrt(K)) v_h) W_o                         Vaswani et al., 2017, eq. 1
    MLP(x)       = act(x W_1 + b_1) W_2 + b_2                                            ibid., eq. 2

q, k and v are of x; in a decoder there stands between the two a sublayer of the same form whose k and v are of the
encoder's states, its memory.

Letters: B batch, T length, S slots of the cache or source length, D width, H heads, K head width, F feed-forward width,
L layers; N rows of a decoder, B of them or a multiple, with the rows of a source side by side.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxnlp.nn.attention import Mask, attention, attention_weights
from jaxnlp.nn.sharding import constrain

Initializer = Callable[..., Array]
Cache = Mapping[str, Array]  # one layer's {"keys", "values"}, both [B, H, S, K]: of the tokens before, or of a memory


ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),  # erf: BERT
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),  # GPT-2
    "relu": nn.relu,  # the original Transformer
    "tanh": jnp.tanh,  # BERT's pooler
    "silu": nn.silu,  # Marian
}


class LayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias over the last axis (Ba et al., 2016), in float32."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x.astype(jnp.float32), scale, bias, self.epsilon).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "*B D"]:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)
    normal = (x - mean) * rstd
    return normal * _last(scale, x) + _last(bias, x), (x, mean, rstd, scale)


def _layer_norm_backward(epsilon, saved, dy):
    # Its own rule, since automatic differentiation keeps and reads several more arrays of x's size.
    x, mean, rstd, scale = saved
    normal = (x - mean) * rstd
    dnormal = dy * _last(scale, x)
    centre = dnormal.mean(-1, keepdims=True)
    slope = (dnormal * normal).mean(-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    return rstd * (dnormal - centre - normal * slope), (dy * normal).sum(rows), dy.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _last(vector: Float[Array, " D"], like: Float[Array, "*B D"]) -> Float[Array, "*ones D"]:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def multiply(x: Float[Array, "N D"], table: Float[Array, "F D"], dtype: Any = None) -> Float[Array, "N F"]:
    """x table'; for the few rows of decoding as (table x')', in about two thirds of the time on a CPU."""
    if len(x) <= 64:
        y = jnp.matmul(table, x.T, preferred_element_type=dtype)
        return jax.lax.optimization_barrier(y).T  # else XLA turns it round again
    return jnp.matmul(x, table.T, preferred_element_type=dtype)


class Projection(nn.Module):
    """y = x W' + b, where the last `n_in` axes of x and of W are summed over and `shape` are the axes of y.

    The kernel W has its outputs first, as decoding reads it fastest, and keeps heads and head width as axes of their
    own, the heads first, so that a mesh can cut along them.
    """

    shape: tuple[int, ...]
    n_in: int = 1
    cut: tuple[str | None, ...] = ()  # names of the kernel's axes that a mesh leaves cut while the product runs
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        inputs = x.shape[-self.n_in :]
        kernel = self.param("kernel", self._init, self.shape + inputs)
        if kernel.dtype != self.dtype:  # else XLA casts all layers' kernels before the loop over them, and keeps both
            kernel = jax.lax.optimization_barrier(kernel).astype(self.dtype)
        kernel = constrain(kernel, *self.cut)
        # One product of rows: on a CPU, XLA's are slower over several axes, above all those of the gradient.
        rows = x.astype(self.dtype).reshape(-1, math.prod(inputs))
        y = multiply(rows, kernel.reshape(-1, rows.shape[1])).reshape(*x.shape[: x.ndim - self.n_in], *self.shape)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, self.shape).astype(self.dtype)
        return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)

    def _init(self, rng, shape):
        fan_out, fan_in = math.prod(shape[: -self.n_in]), math.prod(shape[-self.n_in :])
        return self.kernel_init(rng, (fan_in, fan_out)).T.reshape(shape)


class SelfAttention(nn.Module):
    """Multi-head attention of x on itself, or, with `cache`, of x on everything the cache holds and x."""

    n_heads: int
    d_head: int
    dropout: float
    kernel_init: Initializer
    out_init: Initializer
    dtype: Any
    deterministic: bool
    qkv_bias: bool = True
    scale: float | None = None  # of the products of queries and keys; None: 1 / sqrt(K)

    @nn.compact
    def __call__(
        self, x: Float[Array, "N T D"], mask: Mask, cache: Cache | None = None
    ) -> tuple[Float[Array, "N T D"], Cache | None]:
        shape = x.shape
        if cache is not None:  # branches of a text write and ask like so many tokens of it
            x = x.reshape(len(cache["keys"]), -1, shape[-1])
        project = functools.partial(Projection, dtype=self.dtype)
        qkv = project(
            (self.n_heads, 3, self.d_head),
            cut=("heads",),
            use_bias=self.qkv_bias,
            kernel_init=self.kernel_init,
            name="qkv",
        )(x)
        q, k, v = (x.squeeze(0) for x in jnp.split(jnp.einsum("bthck->cbhtk", qkv), 3))  # unpacking pads each gradient
        if cache is not None:
            k, v = (_write(cache[name], new, mask.offset) for name, new in (("keys", k), ("values", v)))
            cache = {"keys": k, "values": v}
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attentions", attention_weights(q, k, mask, scale=self.scale))
        drop = 0.0 if self.deterministic else self.dropout
        rng = self.make_rng("dropout") if drop else None
        context = attention(q, k, v, mask, scale=self.scale, dropout_rate=drop, dropout_rng=rng)
        out = project((x.shape[-1],), n_in=2, kernel_init=self.out_init, cut=(None, "heads"), name="out")
        return out(jnp.einsum("bhtk->bthk", context)).reshape(shape), cache


def _write(slots: Float[Array, "B H S K"], new: Float[Array, "B H T K"], offset) -> Float[Array, "B H S K"]:
    if len(slots) == 1:  # without the row's axis, as XLA has the products read them: else it writes twice, into copies
        return jax.lax.dynamic_update_slice_in_dim(slots[0], new[0].astype(slots.dtype), offset, axis=1)[None]
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), offset, axis=2)


class Memory(nn.Module):
    """The keys and values of all layers' attention on an encoder's states, in one product; in the form of Stack."""

    n_layers: int
    n_heads: int
    d_head: int
    kernel_init: Initializer
    dtype: Any
    scan: bool

    @nn.compact
    def __call__(self, states: Float[Array, "B S D"]) -> Any:
        shape = (self.n_layers, self.n_heads, 2, self.d_head)
        project = Projection(
            shape, kernel_init=self.kernel_init, cut=(None, "heads"), dtype=self.dtype, name="keys_values"
        )
        keys, values = jnp.einsum("bslhck->clbhsk", project(states))
        if self.scan:
            return {"keys": keys, "values": values}
        return tuple({"keys": k, "values": v} for k, v in zip(keys, values, strict=True))


class CrossAttention(nn.Module):
    """Multi-head attention of x on a memory, whose keys and values are there already."""

    n_heads: int
    d_head: int
    dropout: float
    kernel_init: Initializer
    out_init: Initializer
    dtype: Any
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"], memory: Cache, mask: Mask) -> Float[Array, "N T D"]:
        N, T, _ = x.shape
        k, v = memory["keys"], memory["values"]
        project = functools.partial(Projection, dtype=self.dtype)
        q = project((self.n_heads, self.d_head), kernel_init=self.kernel_init, cut=("heads",), name="query")(x)
        # All rows of a source ask in one product: nothing of the memory is there twice.
        q = jnp.einsum("bthk->bhtk", q.reshape(len(k), -1, *q.shape[2:]))
        if self.is_mutable_collection("intermediates"):
            weights = jnp.einsum("bhts->bths", attention_weights(q, k, mask)).reshape(N, T, self.n_heads, -1)
            self.sow("intermediates", "cross_attentions", jnp.einsum("nths->nhts", weights))
        drop = 0.0 if self.deterministic else self.dropout
        context = attention(q, k, v, mask, dropout_rate=drop, dropout_rng=self.make_rng("dropout") if drop else None)
        out = project((x.shape[-1],), n_in=2, kernel_init=self.out_init, cut=(None, "heads"), name="out")
        return out(jnp.einsum("bhtk->bthk", context).reshape(N, T, self.n_heads, self.d_head))


class MLP(nn.Module):
    """y = act(x W_1 + b_1) W_2 + b_2."""

    d_ff: int
    activation: str
    kernel_init: Initializer
    out_init: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        project = functools.partial(Projection, dtype=self.dtype)
        hidden = project((self.d_ff,), kernel_init=self.kernel_init, cut=("feed_forward",), name="in")(x)
        hidden = constrain(hidden, "batch", "queries", "feed_forward")
        out = project((x.shape[-1],), kernel_init=self.out_init, cut=(None, "feed_forward"), name="out")
        return out(ACTIVATIONS[self.activation](hidden))


class Block(nn.Module):
    """Self-attention, attention on a memory if there is one, feed-forward: the equations at the head of this file."""

    n_heads: int
    d_head: int
    d_ff: int
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"]
    norm_first: bool
    epsilon: float  # of the norms
    dropout: float  # on what each sublayer adds
    attention_dropout: float  # on the attention weights
    kernel_init: Initializer
    out_init: Initializer  # of the projections that write to the residual stream
    attention_init: Initializer | None = None  # of queries, keys and values; None: kernel_init
    qkv_bias: bool = True  # of self-attention's
    attention_scale: float | None = None  # of self-attention's products of queries and keys; None: 1 / sqrt(K)
    dtype: Any = jnp.float32
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T D"],
        mask: Mask,
        cache: Cache | None = None,
        memory: Cache | None = None,
        memory_mask: Mask = Mask(),
    ) -> tuple[Float[Array, "N T D"], Cache | None]:
        attends = {
            "n_heads": self.n_heads,
            "d_head": self.d_head,
            "dropout": self.attention_dropout,
            "kernel_init": self.attention_init or self.kernel_init,
            "out_init": self.out_init,
            "dtype": self.dtype,
            "deterministic": self.deterministic,
        }
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        norm = lambda name: LayerNorm(self.epsilon, self.dtype, name=name)  # noqa: E731

        def before(x: Array, norm: LayerNorm) -> Array:
            return _gathered(norm(x) if self.norm_first else x)

        def after(x: Array, added: Array, norm: LayerNorm) -> Array:
            y = x + drop(_scattered(added))
            return y if self.norm_first else norm(y)

        norm_1, norm_2 = norm("norm_1"), norm("norm_2")
        self.sow("intermediates", "hidden_states", x)
        x = _scattered(x)
        own = {"qkv_bias": self.qkv_bias, "scale": self.attention_scale}
        added, cache = SelfAttention(**attends, **own, name="attention")(before(x, norm_1), mask, cache)
        x = after(x, added, norm_1)
        if memory is not None:
            own = norm("norm_cross")
            x = after(x, CrossAttention(**attends, name="cross_attention")(before(x, own), memory, memory_mask), own)
        mlp = MLP(self.d_ff, self.activation, self.kernel_init, self.out_init, self.dtype, name="mlp")
        return after(x, mlp(before(x, norm_2)), norm_2), cache


def _gathered(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """On a mesh, every device has all features of its tokens: what a sublayer's products read."""
    return constrain(x, "batch", "queries")


def _scattered(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """On a mesh, every device has a part of the features: what lies between sublayers, and is kept for the gradient."""
    return constrain(x, "batch", "queries", "features")


REMAT = {  # what the backward pass recomputes -> what the forward pass keeps
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nn.Module):
    """n_layers blocks, one after another: unrolled as "0", "1", …, or scanned as "layers" with a leading axis L.

    Scanning compiles one block for each of the windows, whatever the depth; unrolling runs faster on small models.
    Cache and memory follow the form: a tuple of L layers', or one whose leaves have an axis L, the cache's second (its
    rows come first in any form), the memory's first. Layers take the windows of their attention in turn.
    """

    block: Callable[..., Block]
    n_layers: int  # scanned: a multiple of the number of windows
    scan: bool = False
    remat: Literal["none", "dots", "full"] = "none"
    windows: tuple[int | None, ...] = (None,)  # None: the mask as it comes

    @nn.compact
    def __call__(
        self, x: Float[Array, "N T D"], mask: Mask, cache: Any = None, memory: Any = None, memory_mask: Mask = Mask()
    ) -> tuple[Float[Array, "N T D"], Any]:
        masks = [mask.within(window) for window in self.windows]
        if self.scan:
            return self._scanned(x, masks, cache, memory, memory_mask)
        body = self.block
        if self.remat != "none":
            body = functools.partial(nn.remat(body.func, policy=REMAT[self.remat]), *body.args, **body.keywords)
        of = lambda layers, i: None if layers is None else layers[i]  # noqa: E731
        caches = []
        for i, mask in zip(range(self.n_layers), itertools.cycle(masks), strict=False):
            x, new = body(name=str(i))(x, mask, of(cache, i), of(memory, i), memory_mask)
            caches.append(new)
        return x, None if cache is None else tuple(caches)

    def _scanned(self, x, masks: list[Mask], cache: Any, memory: Any, memory_mask: Mask):
        """Over groups of as many layers as there are masks: what a kernel may skip is known before running."""
        block, n = self.block(parent=None), len(masks)
        cache = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), cache)

        def initial(key: Array) -> Any:
            first = jax.tree.map(lambda leaf: leaf[0], (cache, memory))
            return block.clone(deterministic=True).init(key, x, masks[0], *first, memory_mask)["params"]

        if self.is_initializing():
            self.param("layers", lambda key: jax.lax.map(initial, jax.random.split(key, self.n_layers)))
        params = self.get_variable("params", "layers")  # whose shapes each block checks
        keys = jax.random.split(self.make_rng("dropout"), self.n_layers) if self.has_rng("dropout") else None
        sown = ["intermediates"] if self.is_mutable_collection("intermediates") else []

        def layer(j: int, mask: Mask, x: Array, group: Any) -> tuple[Array, Any]:
            params, cache, memory, key = group if n == 1 else jax.tree.map(lambda leaf: leaf[j], group)
            rngs = {} if key is None else {"dropout": key}
            given = x, mask, cache, memory, memory_mask
            (x, cache), seen = block.apply({"params": params}, *given, rngs=rngs, mutable=sown)
            return x, (cache, seen)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.remat], prevent_cse=False, static_argnums=0)

        def run(x: Array, group: Any) -> tuple[Array, Any]:
            made = []
            for j, mask in enumerate(masks):
                x, new = layer(j, mask, x, group)
                made.append(new)
            return x, made[0] if n == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

        layers = params, cache, memory, keys
        if n > 1:
            layers = jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), layers)
        x, made = jax.lax.scan(run, x, layers)
        if n > 1:
            made = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)
        cache, seen = made
        for name, tree in seen.items():
            self.put_variable(name, "layers", tree)
        return x, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), cache)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of unrolled blocks (blocks/0, …) as those of scanned ones (blocks/layers, with a leading axis L)."""
    return _restacked(params, lambda blocks: {"layers": jax.tree.map(_stacked, *map(blocks.get, _numbers(blocks)))})


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""

    def apart(blocks: Mapping[str, Any]) -> dict[str, Any]:
        layers = blocks["layers"]
        n_layers = len(jax.tree.leaves(layers)[0])
        return {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(n_layers)}

    return _restacked(params, apart)


def _stacked(*leaves: Array) -> Array:
    return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)


def _numbers(blocks: Mapping[str, Any]) -> list[str]:
    return [str(i) for i in range(len(blocks))]


def _restacked(params: Any, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """The tree with `change` applied to everything under the name blocks."""
    if not isinstance(params, Mapping):
        return params
    return {name: change(tree) if name == "blocks" else _restacked(tree, change) for name, tree in params.items()}
