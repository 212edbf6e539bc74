"""The update of a whole tree in one compiled pass, leaf by leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dither import dither_at
from optax_adadelta._equation import Constants
from optax_adadelta._operands import Operands
from optax_adadelta._scale import epsilons, places
from optax_adadelta._sharding import varying_with
from optax_adadelta._state import AdadeltaState, trees_of
from optax_adadelta._storage import Averages, Quantization, Storage, gain_of, storages_of, unit_of
from optax_adadelta._trees import unzipped
from optax_adadelta._validation import check_leaves


@functools.partial(jax.jit, static_argnames=("dtypes", "nesterov"))
def update_tree(
    updates: optax.Updates,
    state: AdadeltaState,
    decayed: list[jax.Array | None] | None,
    dtypes: tuple[np.dtype, ...] | None,
    operands: Operands,
    seed: jax.typing.ArrayLike,
    nesterov: bool,
) -> tuple[optax.Updates, AdadeltaState]:
    """Returns the updates of a tree and the next state.

    `decayed` has for each leaf its parameter, or None if the leaf does not decay; it is None if no
    leaf does. `dtypes` has the dtype of each result; it is None if they are those of `updates`. The
    leaves are checked while this is traced, so the checks cost a step nothing.
    """
    # Under jax.disable_jit, NumPy arrays and numbers arrive as they are.
    updates, state, decayed = jax.tree.map(jnp.asarray, (updates, state, decayed))
    check_leaves(updates, trees_of(state))
    gs, structure = jax.tree.flatten(updates)
    storages = storages_of(state)
    averages = list(map(Averages, jax.tree.leaves(state.e_g), jax.tree.leaves(state.e_x)))
    traces = [None] * len(gs) if state.trace is None else jax.tree.leaves(state.trace)
    wides = [s.dtype(g, stored.e_g) for s, g, stored in zip(storages, gs, averages, strict=True)]
    # Cast once per dtype, not once per leaf.
    cast = {wide: operands.astype(wide) for wide in dict.fromkeys(wides)}
    constants = {
        wide: Constants.of(own.rho, epsilons(own.eps, state.scale)) for wide, own in cast.items()
    }
    quantization = unit = None
    if state.unit is not None:
        unit = varying_with(unit_of(operands.eps), state.unit)
        quantization = Quantization(
            before=epsilons(state.unit, state.scale),
            after=epsilons(unit, state.scale),
            gain=None if state.scale is None else gain_of(epsilons(unit, state.scale)),
            dither=dither_at(seed, state.count),
        )
    leaves = [
        _update_leaf(
            storage,
            dtype,
            nesterov,
            operands=cast[wide],
            constants=constants[wide],
            quantization=quantization,
            place=place,
            p=p,
            g=g,
            stored=stored,
            trace=trace,
        )
        for storage, dtype, wide, place, p, g, stored, trace in zip(
            storages,
            dtypes or [g.dtype for g in gs],
            wides,
            [None] * len(gs) if state.scale is None else places(state.scale),
            decayed or [None] * len(gs),
            gs,
            averages,
            traces,
            strict=True,
        )
    ]
    updates, e_g, e_x, trace = (structure.unflatten(parts) for parts in unzipped(leaves, 4))
    return updates, AdadeltaState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        e_g=e_g,
        e_x=e_x,
        unit=unit,
        trace=None if state.trace is None else trace,
        scale=state.scale,
    )


# Compiled by itself so that leaves of one shape are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _update_leaf(
    storage: Storage,
    dtype: np.dtype,
    nesterov: bool,
    operands: Operands,
    constants: Constants,
    quantization: Quantization | None,
    place: jax.Array | None,
    p: jax.Array | None,
    g: jax.Array,
    stored: Averages,
    trace: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    real = operands.rate.dtype
    wide = np.result_type(real, np.complex64) if jnp.iscomplexobj(g) else real
    g = g.astype(wide)
    if p is not None:
        g += operands.weight_decay.astype(wide) * p.astype(wide)
    if place is not None:
        constants, quantization = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False) if x.ndim else x,
            (constants, quantization),
        )
    dx, stored = storage.step(g, stored, constants, quantization)
    if trace is not None and operands.momentum is not None:
        momentum = operands.momentum.astype(wide)
        velocity, trace = storage.step_trace(g, dx, trace, momentum, quantization)
        if nesterov:
            # XLA on CPU would store dx, which two results need, in an array of its own. It computes
            # dx twice if it does not know that both are the same.
            same = jax.tree.map(lambda x: varying_with(x, trace), (g, stored))
            again, averages = jax.lax.platform_dependent(
                *same, trace, cpu=storage.disguised, default=lambda g, stored, _: (g, stored)
            )
            velocity = momentum * velocity
            velocity += storage.delta(again, averages, constants, quantization)
        dx = velocity
    return (operands.rate.astype(wide) * dx).astype(dtype), *stored, trace
