"""The dither: given by the index and the count, and evenly spread over the steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_adadelta._dither import centered, dither_at, second, third

COUNTS = jnp.arange(4096, dtype=jnp.int32)


@jax.jit
def numbers(seed):
    """The numbers of 50 elements as uint32, `[count, stream, element]`."""

    def at(count):
        bits = dither_at(seed, count).bits((50,))
        return jnp.stack([bits, second(bits), third(bits)]).astype(jnp.uint32)

    return jax.vmap(at)(COUNTS)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 5)])
def test_an_elements_number_is_a_sum_over_its_axes(shape):
    dither = dither_at(np.uint32(7), 123456)
    expected = np.full(shape, int(dither.offset) % 2**32, object)
    for axis, index in enumerate(np.indices(shape).astype(object)):
        expected = expected + index * pow(0xD1B54A33, len(shape) - axis, 2**32)
    expected = np.asarray(expected % 2**32, np.uint32).astype(np.int32)
    bits = jax.jit(lambda d: d.bits(shape))(dither)
    assert bits.dtype == jnp.int32
    np.testing.assert_array_equal(bits, expected)


def test_numbers_as_floats_are_from_minus_one_half_to_below_one_half():
    ends = np.array([-(2**31), -1, 0, 2**31 - 1], np.int32)
    np.testing.assert_allclose(centered(ends), ends / 2.0**32, atol=1e-6)
    assert np.float32(0.5) + centered(ends)[-1] < 1


def test_over_the_steps_an_elements_numbers_fill_the_unit_interval_evenly():
    x = np.asarray(numbers(np.uint32(0))) / 2**32
    for steps in (16, 128, 1024, 4096):
        ends = np.arange(steps + 1).reshape(-1, 1, 1) / steps
        for of in np.sort([x[:steps], x[-steps:]], axis=1):
            # The star discrepancy. That of random numbers is about 1 / sqrt(steps).
            assert np.maximum(ends[1:] - of, of - ends[:-1]).max() < 7 / steps


@pytest.mark.parametrize("streams", [[0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_over_the_steps_an_elements_streams_are_jointly_even(streams):
    x = np.asarray(numbers(np.uint32(0)))[:, streams] / 2**32
    for element in range(0, 50, 5):
        boxes = 16 if len(streams) == 2 else 6
        inside, _ = np.histogramdd(x[..., element], boxes, [(0, 1)] * len(streams))
        # With random numbers, some box is off by 3.5 to 5 standard deviations.
        assert np.abs(inside - 4096 / inside.size).max() < 2.5 * (4096 / inside.size) ** 0.5


def test_elements_streams_and_seeds_have_numbers_of_their_own():
    every = np.stack([numbers(np.uint32(seed))[1:9] for seed in (0, 1, 2**31)])
    # Among as many random 32-bit numbers, about 0.001 pairs of equal ones are expected.
    assert len(np.unique(every)) == every.size == 3 * 8 * 3 * 50
    plastic, golden = np.roots([1, 0, -1, -1])[0].real, (1 + 5**0.5) / 2
    strides = [[int(2**32 / x)] for x in (plastic, plastic**2, golden)]
    assert (np.diff(every, axis=1) == strides).all()


def test_numbers_repeat_only_after_two_to_the_32_steps_seeds_or_elements():
    # The multiples of a factor repeat sooner modulo 2**32 only if it is even. Then the multiples
    # by 0 and by 2**31 are the same, and all multiples are even.
    zero, half = np.uint32(0), np.uint32(2**31)
    assert dither_at(zero, half).offset != dither_at(zero, zero).offset
    assert dither_at(half, zero).offset != dither_at(zero, zero).offset
    for stream in (second, third):
        assert stream(jnp.int32(-(2**31))) != stream(jnp.int32(0))
    bits = np.asarray(dither_at(zero, 0).bits((3, 4, 5, 6)))
    for axis in range(bits.ndim):
        assert (np.diff(bits & 1, axis=axis) != 0).all()


@pytest.mark.devices
@pytest.mark.parametrize(
    ("types", "spec"), [(AxisType.Auto, (None, "b")), (AxisType.Explicit, (("a", "b"),))]
)
def test_a_shard_has_its_part_of_the_whole_arrays_numbers(types, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(types,) * 2)
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec(*spec)))
    dither, zeros = dither_at(np.uint32(3), 9), put(jnp.zeros((8, 16), jnp.int32))
    bits = jax.jit(lambda x: x ^ dither.bits(x.shape))(zeros)
    np.testing.assert_array_equal(bits, dither.bits((8, 16)))
    assert bits.sharding.is_equivalent_to(zeros.sharding, 2)
