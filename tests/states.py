"""States to test with, in every storage, and how far apart averages may be."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from optax_adadelta import adadelta, nadadelta

EPS = 1e-6
# A new storage is an entry here, in CODE and in TRACE.
DTYPES = {None: jnp.float32, 16: jnp.uint16, 8: jnp.uint8}
FEW_BITS = tuple(bits for bits in DTYPES if bits)
BITS = pytest.mark.parametrize("bits", DTYPES)
QUANTIZED = pytest.mark.parametrize("bits", FEW_BITS)
RULE = pytest.mark.parametrize("rule", [adadelta, nadadelta])
# The largest distance between neighbouring codes, as a share of the average plus eps.
CODE = {None: 2.0**-22, 16: 2.0**-10, 8: 0.25}
# Half a code of a trace, as a share of it, and the part of the root of eps below which it is even.
TRACE = {None: (0, 0), 16: (2.0**-8, 0), 8: (1 / 14, 1 / 16)}

same_bits = chex.assert_trees_all_equal
same_types = chex.assert_trees_all_equal_shapes_and_dtypes


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tree(seed=0):
    return {"w": normal((6, 16), seed), "b": [normal((), seed + 100)]}


def like(p, seed):
    """A random gradient of a parameter, with its sharding."""
    g = normal(p.shape, seed).astype(p.dtype)
    return jax.device_put(g, p.sharding) if isinstance(p.sharding, NamedSharding) else g


def stepped(optimizer, params, steps=3):
    """The state after a few steps with random gradients of the parameters' shapes."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for t in range(steps):
        grads = jax.tree.map(lambda p, t=t: like(p, t), params)
        _, state = update(grads, state, params)
    return state


@functools.cache
def trained(bits, steps=3, rule=adadelta):
    return stepped(rule(state_bits=bits), tree(), steps)


def apart(found, expected, eps=EPS):
    """The largest difference of two trees of averages, as a share of the average plus eps."""
    shares = jax.tree.map(
        lambda a, b: np.max(np.abs(np.float64(a) - np.float64(b)) / (np.float64(b) + eps)),
        found,
        expected,
    )
    return max(jax.tree.leaves(shares))


def assert_agree(found, expected, bits, eps=EPS):
    """E[g^2] agrees within one code, E[dx^2] within two: at 8 bits it is read from both codes."""
    assert apart(found[0], expected[0], eps) <= 1.01 * CODE[bits]
    assert apart(found[1], expected[1], eps) <= 2.01 * CODE[bits]


def memory_of(tree):
    """The addresses of the buffers of all arrays in a tree that are not empty."""
    return [
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and leaf.size
        for shard in leaf.addressable_shards
    ]


def assert_owns_its_arrays(state, *arguments):
    """No two leaves share memory, and none shares memory with an argument."""
    own = memory_of(state)
    assert len(own) == len(set(own))
    assert not set(own) & set(memory_of(arguments))
