"""The one step: train_step(state, batch) -> (state, sums), a pure function, and its counterpart for evaluation.

g = grad(sum of losses) / sum of weights         summed over microbatches and devices first, divided once

Where a task lowers several means together, sum_i S_i / W_i, the weights W_i are summed over the whole batch first, and
g = grad(sum_i S_i W_0 / W_i) / W_0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxnlp.tasks.task import Batch, Sums, Task
from jaxnlp.training import lora
from jaxnlp.training.lora import LoRA
from jaxnlp.training.optim import Optim, Params, stop_frozen
from jaxnlp.training.parallel import constrain


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step, and all that a checkpoint holds, but for the base."""

    step: Int[Array, ""]  # steps done
    params: Params  # what is trained
    opt_state: optax.OptState
    ema: Params | None  # moving average of the parameters, where one is asked for
    sums: Sums  # measured since the last line of metrics.jsonl, so that a resumed run writes the same lines
    bad_step: Int[Array, ""]  # the first step whose loss or gradient was not finite, or -1
    base: Params | None = None  # with LoRA, what the trained ones adapt; it never changes


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What the step depends on besides state and batch."""

    model: nn.Module
    task: Task
    optim: Optim
    optimizer: optax.GradientTransformation
    seed: int = 0
    accumulate: int = 1  # microbatches to a step
    axis: str | None = None  # of devices that have a part of the batch each, under pmap
    ema: float | None = None  # decay of the moving average: min(ema, (1 + t) / (10 + t)) at step t, as TensorFlow's
    lora: LoRA | None = None
    anew: Callable[[str], bool] | None = None  # with it: whether a path is trained whole, as no checkpoint gives it

    def begin(self, key: Array, batch: Mapping[str, Any]) -> TrainState:
        """The state before the first step of a model with initial values; `batch` as in `init`."""
        params = self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
        if self.lora is None:
            return self.init(params, batch)
        params, base = lora.apart(self.lora, params, self.anew, jax.random.fold_in(key, 1))
        return self.init(params, batch, base)

    def init(self, params: Params, batch: Mapping[str, Any], base: Params | None = None) -> TrainState:
        """The state before the first step; `batch` may be abstract and gives the names that the task measures."""
        whole = self.whole(params, base)
        measured = jax.eval_shape(lambda p, b: measure(self.model, self.task, p, b, jax.random.key(0)), whole, batch)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            ema=None if self.ema is None else jax.tree.map(jnp.copy, params),
            sums=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), measured),
            bad_step=jnp.full((), -1, jnp.int32),
            base=base,
        )

    def whole(self, params: Params, base: Params | None) -> Params:
        """What the model takes."""
        return params if self.lora is None else lora.merged(self.lora, params, base)

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        """One update, and what was measured on the batch before it."""
        rng = jax.random.fold_in(jax.random.key(self.seed), state.step)
        if self.axis is not None:  # each part draws masks of its own
            rng = jax.random.fold_in(rng, jax.lax.axis_index(self.axis))
        gradient, sums = over(self.axis, self._gradient(state.params, state.base, batch, rng))
        losses = [sums[name] for name in losses_of(self.task)]
        gradient = jax.tree.map(lambda g: g / jnp.maximum(losses[0][1], 1e-9), gradient)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = functools.reduce(jnp.logical_and, (jnp.isfinite(loss) for loss, _ in losses))
        bad = (state.bad_step < 0) & ~(finite & jnp.isfinite(optax.tree.norm(gradient)))
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=state.ema and optax.incremental_update(params, state.ema, self._weight(state.step)),
            sums=jax.tree.map(jnp.add, state.sums, sums),
            bad_step=jnp.where(bad, state.step + 1, state.bad_step),
            base=state.base,
        )
        return state, sums

    def _weight(self, step: Int[Array, ""]) -> Array:
        """Of new parameters in their moving average: higher at first, so that the initial ones are soon forgotten."""
        return 1 - jnp.minimum(self.ema, (1 + step) / (10 + step))

    def train_steps(self, state: TrainState, batches: Batch) -> tuple[TrainState, Sums]:
        """One update for each batch along the leading axis, in one compiled loop; the last one's sums."""
        state, sums = jax.lax.scan(self.train_step, state, batches)
        return state, jax.tree.map(lambda x: x[-1], sums)

    def _shares(self, batch: Batch) -> list[Float[Array, ""]]:
        """W_0 / W_i of each loss but the first; nothing where there is only one."""
        first, *others = losses_of(self.task).values()
        if not others:
            return []
        first, *others = over(self.axis, [batch[key].sum() for key in (first, *others)])
        return [first / jnp.maximum(other, 1e-9) for other in others]

    def _gradient(self, params: Params, base: Params | None, batch: Batch, rng: Array) -> tuple[Params, Sums]:
        shares = self._shares(batch)

        def loss(params: Params, batch: Batch, rng: Array) -> tuple[Array, Sums]:
            whole = self.whole(stop_frozen(self.optim, params), base)
            sums = measure(self.model, self.task, whole, batch, rng)
            first, *others = (sums[name][0] for name in losses_of(self.task))
            return sum((share * other for share, other in zip(shares, others, strict=True)), first), sums

        def gradient(*arguments: Any) -> tuple[Params, Sums]:
            gradient, sums = jax.grad(loss, has_aux=True)(*arguments)
            return constrain(gradient), sums

        if self.accumulate == 1:
            return gradient(params, batch, rng)

        def add(total, micro):
            batch, i = micro
            return jax.tree.map(jnp.add, total, gradient(params, batch, jax.random.fold_in(rng, i))), None

        # Every accumulate-th row, so that each device goes on with rows of its own.
        micro = jax.tree.map(lambda x: x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro), rng),
        )
        return jax.lax.scan(add, zeros, (micro, jnp.arange(self.accumulate)))[0]

    def eval_step(self, params: Params, batches: Batch) -> Sums:
        """What the task measures on the one batch along the leading axis, without dropout."""
        batch = jax.tree.map(lambda x: x[0], batches)
        return over(self.axis, measure(self.model, self.task, params, batch, None))


def losses_of(task: Task) -> Mapping[str, str]:
    """The sums whose means training lowers together, and the batch's arrays that hold the weights."""
    return getattr(task, "losses", {"loss": "weights"})


def over(axis: str | None, sums: Any) -> Any:
    """The sums over all devices' parts."""
    return sums if axis is None else jax.lax.psum(sums, axis)


def measure(model: nn.Module, task: Task, params: Params, batch: Batch, rng: Array | None) -> Sums:
    """What the task measures; with a key, as in training: with dropout and whatever the loss adds."""
    apply: Callable[..., dict[str, Any]] = functools.partial(
        model.apply,
        {"params": params},
        deterministic=rng is None,
        rngs=None if rng is None else {"dropout": rng},
    )
    return task.sums(apply, batch, training=rng is not None)
