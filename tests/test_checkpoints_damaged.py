"""What Orbax restores without an error but wrong has another checksum than what was saved."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import chain, places_on, target_on, undisturbed
from states import BITS, normal, same_bits, stepped

from optax_adadelta import adadelta

pytestmark = pytest.mark.frameworks


@jax.jit
def checksum(tree):
    """The recipe of the documentation: the sum of all bits, weighted by the size of the dtype."""

    def of(x):
        bits = x.view(f"uint{8 * x.dtype.itemsize}")
        return (1 + x.dtype.itemsize) * jnp.sum(bits, dtype=jnp.uint32)

    return sum(map(of, jax.tree.leaves(tree)))


@pytest.mark.parametrize("mesh", ["8", "4x2", "2"])
def test_the_checksum_is_the_same_on_every_mesh(mesh):
    optimizer, _, tree, _ = undisturbed(8)
    tree = jax.device_get(tree)
    places = jax.tree.map(lambda x: x.sharding, target_on(optimizer, places_on(mesh)))
    expected = sum(
        (1 + x.itemsize) * int(x.view(f"uint{8 * x.itemsize}").sum(dtype=np.uint64))
        for x in jax.tree.leaves(tree)
    )
    assert int(checksum(jax.device_put(tree, places))) == expected % 2**32
    assert int(checksum({"flags": jnp.array([True, False, True])})) == 4


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    ("bits", "other"), [(None, 16), (None, 8), (16, None), (16, 8), (8, None), (8, 16)]
)
def test_a_target_of_another_storage_gives_another_checksum(tmp_path, bits, other):
    ocp = pytest.importorskip("orbax.checkpoint")
    _, _, tree, _ = undisturbed(bits)
    target = target_on(chain(adadelta(state_bits=other)), places_on("8"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", tree)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(tmp_path / "checkpoint", target)
    assert checksum(found) != checksum(tree)


@BITS
# Orbax leaves tasks behind when it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_is_an_error_or_another_checksum(tmp_path, bits):
    ocp = pytest.importorskip("orbax.checkpoint")
    w = jax.device_put(normal((256, 128)), places_on("8")["w"])
    tree = {"w": w, "state": stepped(adadelta(state_bits=bits), w)}
    tree["checksum"] = checksum(tree)
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(whole, tree)
    # The data: every other file is smaller.
    files = sorted((f for f in whole.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = files[-1].read_bytes()
    rng = np.random.default_rng(0)

    def flipped():
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        return bytes(changed)

    def is_whole(content):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        file = damaged / files[-1].relative_to(whole)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                found = checkpointer.restore(damaged, tree)
        except Exception:  # of several kinds
            return False
        stored = found.pop("checksum")
        if checksum(found) != stored:
            return False
        same_bits({**found, "checksum": stored}, tree)
        return True

    assert is_whole(data)
    assert not is_whole(None)
    assert not is_whole(data[: len(data) // 2])
    for _ in range(8):
        assert not is_whole(flipped())
