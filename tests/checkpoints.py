"""Small parameters on meshes of CPU devices, their training, and targets to restore it to."""

import contextlib
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_adadelta import adadelta, clip_by_global_norm

START = "import pathlib, sys\nfolder = pathlib.Path(sys.argv[1])\n"
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
# Every device has whole vectors of every parameter on every mesh. In a smaller or narrower part,
# XLA computes the same formula with other instructions, which may round the last bit otherwise.
TYPES = {"w": ((64, 64), jnp.float32), "h": ((32, 64), jnp.bfloat16)}
BEFORE, END = 3, 8
# The shape of a mesh with the axes x and y, and how the parameters are divided over it.
MESHES = {
    "8": ((8, 1), {"w": P("x"), "h": P("x")}),
    "4x2": ((4, 2), {"w": P("x", "y"), "h": P("y")}),
    "2x4": ((2, 4), {"w": P("y", "x"), "h": P(None, "y")}),
    "4": ((4, 1), {"w": P(None, "x"), "h": P("x")}),
    "2": ((1, 2), {"w": P("y"), "h": P()}),
}


def places_on(name, kind=AUTO, backwards=False):
    """The sharding of each parameter on one of `MESHES`."""
    shape, specs = MESHES[name]
    devices = jax.devices()[::-1] if backwards else jax.devices()
    devices = np.array(devices[: np.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, ("x", "y"), axis_types=(kind,) * 2)
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def on_mesh_of(places):
    """In this context, the scalars that other transformations make are on the whole mesh too."""
    return contextlib.nullcontext() if places is None else jax.set_mesh(places["w"].mesh)


def abstract(places):
    """The parameters as shapes with these shardings."""
    return {
        name: jax.ShapeDtypeStruct(*TYPES[name], sharding=place) for name, place in places.items()
    }


def without_arrays(tree):
    """Shapes, dtypes and shardings, which take no memory on the devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def target_on(optimizer, places):
    """The recipe of the documentation."""
    with on_mesh_of(places):
        return without_arrays((abstract(places), optimizer.init(abstract(places))))


@functools.cache
def numbers(seed):
    rng = np.random.default_rng(seed)
    return {
        name: np.float32(0.1 * rng.standard_normal(shape)).astype(dtype)
        for name, (shape, dtype) in TYPES.items()
    }


def chain(part):
    """The gradients are never as large as the norm, which is summed in another order elsewhere."""
    return optax.chain(clip_by_global_norm(100.0), part)


def steps_of(optimizer, loss=None):
    """A step with given gradients, or with those of a loss."""

    @jax.jit
    def step(params, state, given):
        grads = given if loss is None else jax.grad(loss)(params, given)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(params, state, places, begin, end):
        with on_mesh_of(places):
            for t in range(begin, end):
                params, state = step(params, state, jax.device_put(numbers(t), places))
        return params, state

    return run


def loss(params, given):
    outputs = jnp.tanh(params["w"] + given["w"]).sum(0)
    return jnp.mean((outputs + params["h"].astype(jnp.float32).sum(0)) ** 2)


def started(optimizer, places, run):
    """Parameters and state after the first steps."""
    params = jax.device_put(numbers(1000), places)
    with on_mesh_of(places):
        state = optimizer.init(params)
    return run(params, state, places, 0, BEFORE)


@functools.cache
def undisturbed(bits, loss=None, kind=AUTO):
    """A run on all devices: its optimizer, its step, its tree when it is saved, and its end."""
    optimizer = chain(adadelta(state_bits=bits))
    run, places = steps_of(optimizer, loss), places_on("8", kind)
    tree = started(optimizer, places, run)
    return optimizer, run, tree, jax.device_get(run(*tree, places, BEFORE, END))


def assert_placed(tree, target):
    """Each array is where the target says, and each scalar on every device."""
    assert jax.tree.structure(tree) == jax.tree.structure(target)
    for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(target), strict=True):
        assert (leaf.shape, leaf.dtype) == (place.shape, place.dtype)
        assert leaf.sharding.is_equivalent_to(place.sharding, leaf.ndim)
        if leaf.ndim == 0:
            assert leaf.sharding.is_fully_replicated
            assert leaf.sharding.device_set == jax.tree.leaves(tree)[0].sharding.device_set


def printed_apart(code, folder, devices):
    """What code prints in another process, which has a `folder` and this number of devices."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + code, folder],
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
