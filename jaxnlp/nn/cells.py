"""The recurrent cells: one step of an Elman network, an LSTM and a GRU.

Each cell's equations stand in a function of its own. x are the input's parts of the gates, W x + b, computed for all
steps at once by `project`; `recur(h, x)` adds the state's parts of as many gates as x has, x + U h, in one product. It
takes the gates in their order; where x is None it adds nothing but a bias of the state's own, U h + b'.

Differs from the papers: no peephole connections (Gers & Schmidhuber, 2000), as in PyTorch, Flax and cuDNN; one bias a
gate, where PyTorch has two, but for the candidate of the GRU with the reset gate after the product.

Letters: B batch, D input width, H width, G gates.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxnlp.nn.blocks import multiply

Carry = Any  # h [B, H], or of an LSTM (c, h)
Gates = tuple[Array | None, ...]
Recur = Callable[[Array, Gates], tuple[Array, ...]]
Equations = Callable[[Carry, Gates, Recur], Carry]


def elman(carry: Array, x: Gates, recur: Recur, activation: Callable[[Array], Array] = jnp.tanh) -> Array:
    (a,) = recur(carry, x)
    return activation(a)


def elman_relu(carry: Array, x: Gates, recur: Recur) -> Array:
    return elman(carry, x, recur, nn.relu)


def lstm_gates(h: Array, x: Gates, recur: Recur) -> Gates:
    i, f, g, o = recur(h, x)
    return nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o)


def lstm(carry: tuple[Array, Array], x: Gates, recur: Recur) -> tuple[Array, Array]:
    c, h = carry
    i, f, g, o = lstm_gates(h, x, recur)
    c = f * c + i * g
    return c, o * jnp.tanh(c)


def gru_gates_after(h: Array, x: Gates, recur: Recur) -> Gates:
    x_r, x_z, x_n = x
    r, z, u_n = recur(h, (x_r, x_z, None))
    r = nn.sigmoid(r)
    return r, nn.sigmoid(z), jnp.tanh(x_n + r * u_n)


def gru_gates_before(h: Array, x: Gates, recur: Recur) -> Gates:
    x_r, x_z, x_n = x
    r, z = recur(h, (x_r, x_z))
    r = nn.sigmoid(r)
    (n,) = recur(r * h, (x_n,))
    return r, nn.sigmoid(z), jnp.tanh(n)


def gru_after(h: Array, x: Gates, recur: Recur) -> Array:
    _, z, n = gru_gates_after(h, x, recur)
    return n + z * (h - n)


def gru_before(h: Array, x: Gates, recur: Recur) -> Array:
    _, z, n = gru_gates_before(h, x, recur)
    return n + z * (h - n)


class Weights(NamedTuple):
    """A cell's parameters in its dtype; the recurrent bias is that of the gates to which x adds nothing."""

    kernel: Float[Array, "G H D"]
    bias: Float[Array, "G H"]
    recurrent: Float[Array, "G H H"]
    recurrent_bias: Float[Array, " H"] | None


class Affine(nn.Module):
    """The parameters of one side of all gates: a kernel with its outputs first, and a bias unless its shape is None."""

    n_gates: int
    features: int
    kernel_init: nn.initializers.Initializer
    bias_shape: tuple[int, ...] | None
    bias_init: nn.initializers.Initializer
    dtype: Any

    @nn.compact
    def __call__(self, n_inputs: int) -> tuple[Float[Array, "G H D"], Array | None]:
        kernel = self.param("kernel", self.kernel_init, (self.n_gates, self.features, n_inputs))
        bias = None if self.bias_shape is None else self.param("bias", self.bias_init, self.bias_shape)
        return kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)


def orthogonal(rng: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "G H H"]:
    """Each gate's kernel an orthogonal matrix of its own (Saxe et al., 2014), all of them equally likely.

    A product of reflections of random vectors, the i-th in the last H - i axes, and of random signs (Stewart, 1980).
    The QR of jax.nn.initializers.orthogonal now and then waits for ever in a compiled program on a CPU of two cores.
    """
    G, H, _ = shape
    normal, signs = jax.random.split(rng)
    vectors = jnp.triu(jax.random.normal(normal, (H, G, H)).swapaxes(0, 1)).swapaxes(0, 1)

    def reflect(i: Array, q: Float[Array, "G H H"]) -> Float[Array, "G H H"]:
        v = vectors[i]
        v = v.at[:, i].add(jnp.copysign(jnp.linalg.norm(v, axis=1), v[:, i]))
        v /= jnp.linalg.norm(v, axis=1, keepdims=True)
        return q - 2 * jnp.einsum("ghk,gk->gh", q, v)[:, :, None] * v[:, None]

    q = jax.lax.fori_loop(0, H, reflect, jnp.broadcast_to(jnp.eye(H), shape))
    return (q * jax.random.rademacher(signs, (G, 1, H), jnp.float32)).astype(dtype)


class Cell(nn.RNNCellBase):
    """What the cells share: parameters, the product with the input, one step."""

    features: int
    dtype: Any = jnp.float32

    N_GATES = 1
    CARRIES = 1  # arrays in the carry
    NAMES: ClassVar[tuple[str, ...]] = ()  # of what `gates` gives; none of a cell without gates

    @property
    def equations(self) -> Equations:
        raise NotImplementedError

    @property
    def gate_equations(self) -> Callable[[Array, Gates, Recur], Gates]:
        """h and x to the values under NAMES."""
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        return 1

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Carry:
        """Zeros, whatever the rng; of `input_shape` the batch axes count."""
        return zero_carry(type(self), (*input_shape[:-1], self.features), self.dtype)

    @nn.nowrap
    def bias_init(self, rng: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.zeros(shape, dtype)

    @nn.nowrap
    def recurrent_bias_shape(self) -> tuple[int, ...] | None:
        return None

    def setup(self):
        lecun = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=(0,))  # as Flax's cells
        zeros = nn.initializers.zeros
        sizes = (self.N_GATES, self.features)
        self.input = Affine(*sizes, lecun, sizes, self.bias_init, self.dtype)
        self.recurrent = Affine(*sizes, orthogonal, self.recurrent_bias_shape(), zeros, self.dtype)

    def weights(self, n_inputs: int) -> Weights:
        """The parameters as arrays, for a loop over time; made here where they are not yet."""
        kernel, bias = self.input(n_inputs)
        recurrent, recurrent_bias = self.recurrent(self.features)
        return Weights(kernel, bias, recurrent, recurrent_bias)

    def project(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B G H"]:
        """W x + b of all gates in one product."""
        kernel, bias = self.input(inputs.shape[-1])
        rows = inputs.astype(self.dtype).reshape(-1, inputs.shape[-1])
        products = multiply(rows, kernel.reshape(-1, kernel.shape[-1])).reshape(-1, *bias.shape)
        return (products + bias[None]).reshape(*inputs.shape[:-1], *bias.shape)

    def step(self, carry: Carry, projected: Float[Array, "B G H"]) -> tuple[Carry, Float[Array, "B H"]]:
        carry = self.equations(carry, self._split(projected), self._recur())
        return carry, hidden(carry)

    def gates(
        self, h: Float[Array, "B H"], projected: Float[Array, "B G H"], dropout: Float[Array, "B H"] | None = None
    ) -> dict[str, Float[Array, "B H"]]:
        """What each gate is, by its name, in a step from h; `dropout` multiplies h where it meets the kernel."""
        return dict(zip(self.NAMES, self.gate_equations(h, self._split(projected), self._recur(dropout)), strict=True))

    def _split(self, projected: Float[Array, "B G H"]) -> Gates:
        return tuple(projected[:, g] for g in range(self.N_GATES))

    def _recur(self, dropout: Array | None = None) -> Recur:
        kernel, bias = self.recurrent(self.features)
        first = 0

        def recur(h, x):
            nonlocal first
            table = kernel[first : (first := first + len(x))]
            h = h if dropout is None else h * dropout
            products = multiply(h, table.reshape(-1, h.shape[-1])).reshape(len(h), *table.shape[:2])
            return tuple(products[:, g] + (bias[None] if add is None else add) for g, add in enumerate(x))

        return recur

    def __call__(self, carry: Carry, inputs: Float[Array, "B D"]) -> tuple[Carry, Float[Array, "B H"]]:
        return self.step(carry, self.project(inputs))


class ElmanCell(Cell):
    """The simple recurrent network (Elman, 1990).

    h' = tanh(W x + U h + b)
    """

    activation: Literal["tanh", "relu"] = "tanh"

    @property
    def equations(self) -> Equations:
        return {"tanh": elman, "relu": elman_relu}[self.activation]


class LSTMCell(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with a forget gate (Gers et al., 2000); carry (c, h).

        i = sigmoid(W_i x + U_i h + b_i),  f = sigmoid(W_f x + U_f h + b_f)
        g = tanh(W_g x + U_g h + b_g),     o = sigmoid(W_o x + U_o h + b_o)
        c' = f * c + i * g,                h' = o * tanh(c')

    The gates stand in PyTorch's order: input, forget, cell, output.
    """

    forget_bias: float = 0.0  # what b_f begins with: PyTorch's and Flax's 0; 1 in Jozefowicz et al., 2015

    N_GATES = 4
    CARRIES = 2
    NAMES = ("input", "forget", "cell", "output")

    @property
    def equations(self) -> Equations:
        return lstm

    @property
    def gate_equations(self) -> Callable[[Array, Gates, Recur], Gates]:
        return lstm_gates

    @nn.nowrap
    def bias_init(self, rng: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.zeros(shape, dtype).at[1].set(self.forget_bias)


class GRUCell(Cell):
    """Gated recurrent unit (Cho et al., 2014, eq. 5-8).

    r = sigmoid(W_r x + U_r h + b_r),  z = sigmoid(W_z x + U_z h + b_z)
    n = tanh(W_n x + b_n + r * (U_n h + b')),  h' = (1 - z) * n + z * h        reset = "after": cuDNN, PyTorch
    n = tanh(W_n x + b_n + U_n (r * h)),       h' = (1 - z) * n + z * h        reset = "before": the paper
    """

    reset: Literal["after", "before"] = "after"

    N_GATES = 3
    NAMES = ("reset", "update", "candidate")

    @property
    def equations(self) -> Equations:
        return {"after": gru_after, "before": gru_before}[self.reset]

    @property
    def gate_equations(self) -> Callable[[Array, Gates, Recur], Gates]:
        return {"after": gru_gates_after, "before": gru_gates_before}[self.reset]

    @nn.nowrap
    def recurrent_bias_shape(self) -> tuple[int, ...] | None:
        return (self.features,) if self.reset == "after" else None


CELLS = {"rnn": ElmanCell, "lstm": LSTMCell, "gru": GRUCell}


def zero_carry(cell: type[Cell], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Carry:
    zeros = tuple(jnp.zeros(shape, dtype) for _ in range(cell.CARRIES))
    return zeros if len(zeros) > 1 else zeros[0]


def hidden(carry: Carry) -> Float[Array, "..."]:
    """h of a carry."""
    return jax.tree.leaves(carry)[-1]
