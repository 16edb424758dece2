"""A cell over time, with a backward pass of its own.

    forward     a_t = W x_t + b + U h_{t-1},  carry_t = equations(carry_{t-1}, a_t)      a_t and carry_t are kept
    backward    da_t from dcarry_t by the cell's equations at the a_t kept,  dh_{t-1} = U' da_t + …
    after it    dU = sum_t da_t h_{t-1}',  dW = sum_t da_t x_t',  dx_t = W' da_t:  one product each for all steps

Automatic differentiation would add to dU at every step, and keep every intermediate of the equations.

Inside, the batch is the last axis: on a CPU a product with few rows is fastest as U h, with U as it is stored. There
W x_t is a part of the step, where it is still in the cache when it is used: a quarter faster than one product for all
steps before the loop (`hoist`), which is the better for a batch of one, and on a GPU or TPU, where steps are short.

Letters: T steps, B batch, D input width, G gates, H width.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxnlp.nn.cells import Carry, Equations, Weights, hidden


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def scan(
    equations: Equations,
    reverse: bool,
    unroll: int,
    hoist: bool,
    carry: Carry,
    x: Float[Array, "T D B"],
    weights: Weights,
    mask: Bool[Array, "T B"] | None,
    dropout: Float[Array, "H B"] | None,
) -> tuple[Carry, Float[Array, "T H B"]]:
    """The last carry [H, B] and h after every step; a step outside the mask leaves the carry as it is.

    `dropout` multiplies h where it meets the kernel; it and the mask are constants.
    """
    last, (h, _) = _forward(equations, reverse, unroll, hoist, False, carry, x, weights, mask, dropout)
    return last, h


def _forward(equations, reverse, unroll, hoist, keep, carry, x, weights, mask, dropout):
    table = _table(weights.recurrent)
    H = weights.bias.shape[1]

    def step(before, inputs):
        x, real = inputs
        if not hoist:
            x = (_table(weights.kernel) @ x).reshape(*weights.bias.shape, -1) + weights.bias[..., None]
        sums, alone, met = {}, {}, {}  # by gate: a; x where a is without it; by a product's first gate: what met U

        def recur(h, x):
            at = range(len(sums), len(sums) + len(x))
            dropped = h if dropout is None else h * dropout
            products = (table[at.start * H : at.stop * H] @ dropped).reshape(len(x), *h.shape)
            for g, product, add in zip(at, products, x, strict=True):
                sums[g] = product + (weights.recurrent_bias[:, None] if add is None else add)
                if add is None:
                    alone[g] = gates[g]
            met[at.start] = None if h is hidden(before) else dropped
            return tuple(sums[g] for g in at)

        gates = tuple(x)
        after = equations(before, gates, recur)
        if real is not None:
            after = jax.tree.map(lambda new, old: jnp.where(real[None], new, old), after, before)
        return after, (hidden(after), (after, sums, alone, met) if keep else None)

    if hoist:
        x = jnp.einsum("ghd,tdb->tghb", weights.kernel, x) + weights.bias[None, ..., None]
    return lax.scan(step, carry, (x, mask), reverse=reverse, unroll=unroll)


def _save(equations, reverse, unroll, hoist, carry, x, weights, mask, dropout):
    last, (h, kept) = _forward(equations, reverse, unroll, hoist, True, carry, x, weights, mask, dropout)
    return (last, h), (carry, x, weights, mask, dropout, kept)


def _backward(equations, reverse, unroll, hoist, saved, cotangents):
    first, x, weights, mask, dropout, (after, sums, alone, met) = saved
    dlast, dh = cotangents
    G, H, _ = weights.kernel.shape
    # Transposed in memory, here and below: on a CPU, XLA's products are slow where they have to do it.
    table, back = (_settled("fk->kf", _table(kernel)) for kernel in (weights.recurrent, weights.kernel))  # U', W'
    pair = (lambda one, rest: (rest[1:], one)) if reverse else (lambda one, rest: (one, rest[:-1]))
    before = jax.tree.map(lambda one, rest: jnp.concatenate(pair(one[None], rest)), first, after)

    def step(dcarry, inputs):
        before, real, sums, alone, dh = inputs
        leaves, structure = jax.tree.flatten(dcarry)
        dafter = structure.unflatten([*leaves[:-1], leaves[-1] + dh])
        if real is not None:
            dkept = jax.tree.map(lambda d: jnp.where(real[None], 0, d), dafter)
            dafter = jax.tree.map(lambda d: jnp.where(real[None], d, 0), dafter)

        def run(before, x, nothing):
            done = 0

            def recur(h, x):
                nonlocal done
                at = range(done, done := done + len(x))
                terms = tuple(nothing[g] if add is None else add for g, add in zip(at, x, strict=True))
                dropped = h if dropout is None else h * dropout
                return _known(dropped, terms, tuple(sums[g] for g in at), table[:, at.start * H : at.stop * H])

            return equations(before, x, recur)

        nothing = {g: jnp.zeros_like(part) for g, part in alone.items()}
        x = tuple(alone.get(g, sums[g]) for g in range(G))  # values that only `alone` uses
        _, pull = jax.vjp(run, before, x, nothing)
        dbefore, dx, da = pull(dafter)
        if real is not None:
            dbefore = jax.tree.map(jnp.add, dbefore, dkept)
        return dbefore, (jnp.stack(dx), da)

    xs = (before, mask, sums, alone, dh)
    dcarry, (dgates, da_alone) = lax.scan(step, dlast, xs, reverse=not reverse, unroll=unroll)

    # The batch before the steps: a mesh that cuts it can cut the two as one axis.
    rows = lambda h: _settled("tkb->btk", h).reshape(-1, h.shape[1])  # noqa: E731
    columns = _settled("tghb->ghbt", dgates).reshape(G * H, -1)
    dkernel = (columns @ rows(x)).reshape(weights.kernel.shape)
    dx = jnp.einsum("kbt->tkb", (back @ columns).reshape(-1, x.shape[-1], len(x)))
    da = columns.reshape(G, H, -1)
    for g, part in da_alone.items():
        da = da.at[g].set(_settled("thb->hbt", part).reshape(H, -1))
    own, stops = [], [*list(met)[1:], G]
    for (start, h), stop in zip(met.items(), stops, strict=True):
        if h is None:
            h = hidden(before) if dropout is None else hidden(before) * dropout[None]
        own.append(_table(da[start:stop]) @ rows(h))
    dbias = None if weights.recurrent_bias is None else sum(part.sum((0, 2)) for part in da_alone.values())
    dweights = Weights(
        dkernel, columns.sum(1).reshape(G, H), jnp.concatenate(own).reshape(weights.recurrent.shape), dbias
    )
    return dcarry, dx, dweights, None, None


scan.defvjp(_save, _backward)


def _table(kernel: Float[Array, "G H K"]) -> Float[Array, "GH K"]:
    return kernel.reshape(-1, kernel.shape[-1])


def _settled(axes: str, x: Array) -> Array:
    """The transposed array, laid out so."""
    return lax.optimization_barrier(jnp.einsum(axes, x))


@jax.custom_vjp
def _known(h: Array, x: tuple[Array, ...], sums: tuple[Array, ...], table: Array) -> tuple[Array, ...]:
    """x + U h where it is known already; `table` is U', for the gradient."""
    return sums


def _known_backward(table, da):
    return table @ jnp.concatenate(da), da, None, None


_known.defvjp(lambda h, x, sums, table: (sums, table), _known_backward)
