"""The update of a whole tree in one compiled pass, leaf by leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dither import dither_at
from optax_adadelta._hyperparameters import Operands
from optax_adadelta._sharding import varying_with
from optax_adadelta._state import AdadeltaState
from optax_adadelta._storage import Averages, Quantization, Storage, unit_of
from optax_adadelta._validation import check_leaves, storages_of


@functools.partial(jax.jit, static_argnames="dtypes")
def update_tree(
    updates: optax.Updates,
    state: AdadeltaState,
    decayed: list[jax.Array | None] | None,
    dtypes: tuple[np.dtype, ...] | None,
    hyper: Operands,
    seed: jax.typing.ArrayLike,
) -> tuple[optax.Updates, AdadeltaState]:
    """Returns the updates of a tree and the next state.

    `decayed` has for each leaf its parameter, or None if the leaf does not decay; it is None if no
    leaf does. `dtypes` has the dtype of each result; it is None if they are those of `updates`. The
    leaves are checked while this is traced, so the checks cost a step nothing.
    """
    # Under jax.disable_jit, NumPy arrays and numbers arrive as they are.
    updates, state, decayed = jax.tree.map(jnp.asarray, (updates, state, decayed))
    gs, structure = jax.tree.flatten(updates)
    e_gs, e_xs = jax.tree.leaves(state.e_g), jax.tree.leaves(state.e_x)
    check_leaves(updates, e_gs, e_xs)
    ps = decayed or [None] * len(gs)
    storages = storages_of(state)
    wides = [storage.dtype(g, e_g) for storage, g, e_g in zip(storages, gs, e_gs, strict=True)]
    # Cast once per dtype, not once per leaf.
    hypers = {wide: hyper.astype(wide) for wide in dict.fromkeys(wides)}
    quantization = None
    if state.unit is not None:
        unit = varying_with(unit_of(hyper.eps), state.unit)
        quantization = Quantization(state.unit, unit, dither_at(seed, state.count))
    leaves = [
        _update_leaf(storage, dtype, g, Averages(e_g, e_x), p, hypers[wide], quantization)
        for storage, dtype, g, e_g, e_x, p, wide in zip(
            storages, dtypes or [g.dtype for g in gs], gs, e_gs, e_xs, ps, wides, strict=True
        )
    ]
    updates, e_g, e_x = (
        jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(3)
    )
    unit = None if quantization is None else quantization.unit
    count = jnp.asarray(optax.safe_increment(state.count))
    return updates, AdadeltaState(count, e_g, e_x, unit)


# Compiled by itself so that leaves of one shape are traced once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _update_leaf(
    storage: Storage,
    dtype: np.dtype,
    g: jax.Array,
    stored: Averages,
    p: jax.Array | None,
    hyper: Operands,
    quantization: Quantization | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    wide = hyper.eps.dtype
    kind = np.result_type(wide, np.complex64) if jnp.iscomplexobj(g) else wide
    g = g.astype(kind)
    if p is not None:
        g += hyper.weight_decay.astype(kind) * p.astype(kind)
    dx, stored = storage.step(g, stored, hyper.rho, hyper.eps, quantization)
    return (hyper.scale.astype(kind) * dx).astype(dtype), *stored
