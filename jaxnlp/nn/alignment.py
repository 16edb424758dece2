"""Attention of a recurrent decoder on its encoder: which of the source's states h_s the query q asks for.

    a_s = softmax_s(score(q, h_s)),  c = sum_s a_s h_s

    additive   score = v' tanh(W q + k_s),  k_s = U h_s + b      Bahdanau et al., 2015, appendix A.1.2
    general    score = q' k_s,              k_s = U h_s          Luong et al., 2015, eq. 8
    dot        score = q' h_s                                    ibid.

Letters: B batch, T queries, S source length, D width of a query, C width of a source state, A width of a key.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxnlp.nn.blocks import Projection

SCORES = ("additive", "dot", "general")
NORMAL = nn.initializers.normal(0.001)  # of W and U; v begins at zero: Bahdanau et al., 2015, appendix B.1


class Keys(nn.Module):
    """k_s, the part of every score that the source alone decides: made once for all queries."""

    score: Literal["additive", "dot", "general"]
    features: int  # A
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "B S C"]) -> Float[Array, "B S A"]:
        if self.score == "dot":
            return states
        additive = self.score == "additive"
        init = NORMAL if additive else nn.initializers.glorot_uniform()
        project = Projection((self.features,), use_bias=additive, kernel_init=init, dtype=self.dtype, name="project")
        return project(states)


class Alignment(nn.Module):
    """(contexts c [N, T, C], weights a [N, T, S]); a padded state has weight 0.

    N is a multiple of B: the rows of a source, such as the beams of a search, stand side by side.
    """

    score: Literal["additive", "dot", "general"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "N T D"],
        keys: Float[Array, "B S A"],
        states: Float[Array, "B S C"],
        mask: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "N T C"], Float[Array, "N T S"]]:
        rows, query = query.shape[:2], query.reshape(len(keys), -1, query.shape[2])
        if self.score == "additive":
            project = Projection(keys.shape[2:], use_bias=False, kernel_init=NORMAL, dtype=self.dtype, name="query")
            query = project(query)
            v = self.param("v", nn.initializers.zeros, keys.shape[2:]).astype(self.dtype)
            scores = jnp.einsum("btsa,a->bts", jnp.tanh(query[:, :, None] + keys[:, None]), v)
        else:
            scores = jnp.einsum("bta,bsa->bts", query, keys)
        scores = jnp.where(mask[:, None], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        weights = jnp.where(mask[:, None], jax.nn.softmax(scores), 0)  # else alike where no state is real
        contexts = jnp.einsum("bts,bsc->btc", weights.astype(states.dtype), states)
        return contexts.reshape(*rows, -1), weights.reshape(*rows, -1)
