"""The update of a whole tree in one compiled pass, leaf by leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._dither import dither_at
from optax_adadelta._hyperparameters import Operands
from optax_adadelta._state import AdadeltaState
from optax_adadelta._storage import Averages, Quantization, Storage, unit_of
from optax_adadelta._validation import check_leaves, leaves_like, storages_of


@functools.partial(jax.jit, static_argnames="decayed")
def update_tree(
    updates: optax.Updates,
    state: AdadeltaState,
    params: optax.Params | None,
    decayed: tuple[bool, ...] | None,
    hyper: Operands,
    seed: jax.typing.ArrayLike,
) -> tuple[optax.Updates, AdadeltaState]:
    """Returns the updates of a tree and the next state.

    With `params` there is weight decay, of every leaf or of those for which `decayed` is True. The
    checks run while this is traced, so they cost a step nothing.
    """
    # Under jax.disable_jit, NumPy arrays and numbers arrive as they are.
    updates, state, params = jax.tree.map(jnp.asarray, (updates, state, params))
    gs, structure = jax.tree.flatten(updates)
    e_gs = leaves_like(updates, state.e_g, "state.e_g")
    e_xs = leaves_like(updates, state.e_x, "state.e_x")
    ps = leaves_like(updates, params, "params") if params is not None else [None] * len(gs)
    if decayed is not None:
        ps = [p if decays else None for p, decays in zip(ps, decayed, strict=True)]
    check_leaves(updates, e_gs, e_xs, ps)
    storages = storages_of(updates, e_gs, e_xs, state.unit)
    dtypes = [storage.dtype(g, e_g) for storage, g, e_g in zip(storages, gs, e_gs, strict=True)]
    # Cast once per dtype, not once per leaf.
    hypers = {dtype: hyper.astype(dtype) for dtype in dict.fromkeys(dtypes)}
    quantization = None
    if state.unit is not None:
        quantization = Quantization(state.unit, unit_of(hyper.eps), dither_at(seed, state.count))
    leaves = [
        _update_leaf(storage, g, Averages(e_g, e_x), p, hypers[dtype], quantization)
        for storage, g, e_g, e_x, p, dtype in zip(storages, gs, e_gs, e_xs, ps, dtypes, strict=True)
    ]
    updates, e_g, e_x = (
        jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(3)
    )
    unit = None if quantization is None else quantization.unit
    return updates, AdadeltaState(optax.safe_increment(state.count), e_g, e_x, unit)


# Compiled by itself so that leaves of one shape are traced once.
@functools.partial(jax.jit, static_argnums=0)
def _update_leaf(
    storage: Storage,
    g: jax.Array,
    stored: Averages,
    p: jax.Array | None,
    hyper: Operands,
    quantization: Quantization | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    dtype = hyper.eps.dtype
    kind = np.result_type(dtype, np.complex64) if jnp.iscomplexobj(g) else dtype
    wide = g.astype(kind)
    if p is not None:
        wide += hyper.weight_decay.astype(kind) * p.astype(kind)
    dx, stored = storage.step(wide, stored, hyper.rho, hyper.eps, quantization)
    return (hyper.scale.astype(kind) * dx).astype(g.dtype), *stored
