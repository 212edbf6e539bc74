"""What Orbax restores without an error but wrong has another checksum than what was saved."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import chain, places_on, printed_apart, target_on, undisturbed
from states import normal, stepped

from optax_adadelta import adadelta

pytestmark = pytest.mark.frameworks


@jax.jit
def checksum(tree):
    """The recipe of the documentation: the sum of all bits, weighted by the size of the dtype."""

    def of(x):
        bits = x.view(f"uint{8 * x.dtype.itemsize}")
        return (1 + x.dtype.itemsize) * jnp.sum(bits, dtype=jnp.uint32)

    return sum(map(of, jax.tree.leaves(tree)))


def test_the_checksum_is_the_same_on_every_mesh():
    optimizer, _, tree, _ = undisturbed(8)
    tree = jax.device_get(tree)
    expected = sum(
        (1 + x.itemsize) * int(x.view(f"uint{8 * x.itemsize}").sum(dtype=np.uint64))
        for x in jax.tree.leaves(tree)
    )
    for mesh in ("8", "4x2", "2"):
        places = jax.tree.map(lambda x: x.sharding, target_on(optimizer, places_on(mesh)))
        assert int(checksum(jax.device_put(tree, places))) == expected % 2**32
    assert int(checksum({"flags": jnp.array([True, False, True])})) == 4


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(("bits", "other"), [(None, 16), (16, 8), (8, None)])
def test_a_target_of_another_storage_gives_another_checksum(tmp_path, bits, other):
    ocp = pytest.importorskip("orbax.checkpoint")
    _, _, tree, _ = undisturbed(bits)
    target = target_on(chain(adadelta(state_bits=other)), places_on("8"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", tree)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(tmp_path / "checkpoint", target)
    assert checksum(found) != checksum(tree)


def what_is_noticed(folder):
    """Prints whether undamaged and damaged data pass for the saved ones."""
    import orbax.checkpoint as ocp

    w = jax.device_put(normal((256, 128)), places_on("8")["w"])
    tree = {"w": w, "state": stepped(adadelta(state_bits=8), w)}
    tree["checksum"] = checksum(tree)
    whole, damaged = folder / "whole", folder / "damaged"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(whole, tree)
    # The largest file has only data.
    file = max((f for f in whole.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data, rng = file.read_bytes(), np.random.default_rng(0)

    def flipped():
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        return bytes(changed)

    def passes(content):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        (damaged / file.relative_to(whole)).unlink()
        if content is not None:
            (damaged / file.relative_to(whole)).write_bytes(content)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                found = checkpointer.restore(damaged, tree)
        except Exception:  # of several kinds
            return False
        return bool(checksum({**found, "checksum": None}) == found["checksum"])

    changes = [None, data[: len(data) // 2], *(flipped() for _ in range(6))]
    print(passes(data), any(passes(change) for change in changes))


def test_damage_is_an_error_or_another_checksum(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    # Where Orbax fails, it leaves tasks behind, which would disturb other tests.
    code = "from test_checkpoints_damaged import what_is_noticed as run; run(folder)"
    assert printed_apart(code, tmp_path, devices=8) == "True False\n"
