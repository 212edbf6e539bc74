"""nadadelta as it was measured before it was built, and the form that was not chosen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Eps = tuple[jax.Array, jax.Array]


def root_mean_squares(params):
    """Returns r of each array: its own at init, or that of the whole tree if it starts at zero."""
    leaves = jax.tree.leaves(params)
    whole = sum(jnp.sum(p**2) for p in leaves) / sum(p.size for p in leaves)
    return jax.tree.map(
        lambda p: jnp.sqrt(jnp.where(jnp.any(p != 0), jnp.mean(p**2), whole)), params
    )


def scale_by_two_eps(eps_of: Callable[[jax.Array], Eps], rho: float):
    """Returns Adadelta with one eps beside E[dx^2] and one beside E[g^2], from each array's r."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return root_mean_squares(params), zeros, zeros

    def step(g, r, e_g, e_x):
        eps_x, eps_g = eps_of(r)
        e_g = rho * e_g + (1 - rho) * g**2
        ratio = (e_x + eps_x) / (e_g + eps_g)
        return jnp.sqrt(ratio) * g, e_g, rho * e_x + (1 - rho) * ratio * g**2

    def update(grads, state, params=None):
        r, e_g, e_x = state
        updates, e_g, e_x = jax.tree.transpose(
            jax.tree.structure(grads),
            jax.tree.structure((0, 0, 0)),
            jax.tree.map(step, grads, r, e_g, e_x),
        )
        return updates, (r, e_g, e_x)

    return optax.GradientTransformation(init, update)


def nadadelta(rate, share=1e-5, k=1e-16, rho=0.95, momentum=0.9, nesterov=True):
    """Returns form A, which measures every array in its own r."""
    return optax.chain(
        scale_by_two_eps(lambda r: (share * r**2, k / r**2), rho),
        optax.trace(momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(rate),
    )


def one_eps_per_array(rate, share=2e-5, rho=0.95, momentum=0.9, nesterov=True):
    """Returns form B, which has the same eps beside both averages of an array."""
    return optax.chain(
        scale_by_two_eps(lambda r: (share * r**2, share * r**2), rho),
        optax.trace(momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(rate),
    )


def first_gradient(rate, share=1e-5, k=1e-4, rho=0.95, momentum=0.9):
    """Returns form C: form A whose k is a share of the first gradient's mean square in all arrays.

    Then small gradients mean plain descent, as in B, and nothing depends on the loss's scale.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return root_mean_squares(params), zeros, zeros, -jnp.ones(())

    def step(g, r, e_g, e_x, mean):
        e_g = rho * e_g + (1 - rho) * g**2
        ratio = (e_x + share * r**2) / (e_g + (k * mean + 1e-30) / r**2)
        return jnp.sqrt(ratio) * g, e_g, rho * e_x + (1 - rho) * ratio * g**2

    def update(grads, state, params=None):
        r, e_g, e_x, mean = state
        squares = sum(
            jnp.sum((g * r) ** 2) for g, r in zip(*map(jax.tree.leaves, (grads, r)), strict=True)
        )
        first = squares / sum(g.size for g in jax.tree.leaves(grads))
        mean = jnp.where(mean < 0, first, mean)
        updates, e_g, e_x = jax.tree.transpose(
            jax.tree.structure(grads),
            jax.tree.structure((0, 0, 0)),
            jax.tree.map(lambda *given: step(*given, mean), grads, r, e_g, e_x),
        )
        return updates, (r, e_g, e_x, mean)

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.trace(momentum, nesterov=True),
        optax.scale_by_learning_rate(rate),
    )
