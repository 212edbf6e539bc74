"""nadadelta as it was measured before it was built, and the forms that were not chosen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def nadadelta(rate, share=1e-5, k=1e-16, **settings):
    """Returns form A, which measures every array in its own r."""
    return form(rate, lambda r, first: (share * r**2, k / r**2), **settings)


def one_eps_per_array(rate, share=2e-5, **settings):
    """Returns form B, which has the same eps beside both averages of an array."""
    return form(rate, lambda r, first: (share * r**2, share * r**2), **settings)


def first_gradient(rate, share=1e-5, k=1e-4, **settings):
    """Returns form C: form A whose k is a share of the first gradient's mean square in all arrays.

    Then small gradients mean plain descent, as in B, and nothing depends on the loss's scale.
    """
    return form(rate, lambda r, first: (share * r**2, (k * first + 1e-30) / r**2), **settings)


def root_mean_squares(params):
    """Returns r of each array: its own at init, or that of the whole tree if it starts at zero."""
    leaves = jax.tree.leaves(params)
    whole = sum(jnp.sum(p**2) for p in leaves) / sum(p.size for p in leaves)
    return jax.tree.map(
        lambda p: jnp.sqrt(jnp.where(jnp.any(p != 0), jnp.mean(p**2), whole)), params
    )


def form(rate, eps_of: Callable, rho=0.95, momentum=0.9, nesterov=True):
    """Returns Adadelta with one eps beside E[dx^2], one beside E[g^2], and momentum.

    `eps_of` makes the two of an array's r and of the mean of all `(g r)^2` in the first step.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return root_mean_squares(params), zeros, zeros, -jnp.ones(())

    def step(g, r, e_g, e_x, first):
        eps_x, eps_g = eps_of(r, first)
        e_g = rho * e_g + (1 - rho) * g**2
        ratio = (e_x + eps_x) / (e_g + eps_g)
        return jnp.sqrt(ratio) * g, e_g, rho * e_x + (1 - rho) * ratio * g**2

    def update(grads, state, params=None):
        r, e_g, e_x, first = state
        squares = jax.tree.leaves(jax.tree.map(lambda g, r: jnp.sum((g * r) ** 2), grads, r))
        mean = sum(squares) / sum(g.size for g in jax.tree.leaves(grads))
        first = jnp.where(first < 0, mean, first)
        updates, e_g, e_x = jax.tree.transpose(
            jax.tree.structure(grads),
            jax.tree.structure((0, 0, 0)),
            jax.tree.map(lambda *given: step(*given, first), grads, r, e_g, e_x),
        )
        return updates, (r, e_g, e_x, first)

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.trace(momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(rate),
    )
