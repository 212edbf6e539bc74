"""Summaries for a logger: what they say of a state, wherever it is and however it is stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from states import normal, same_bits, stepped

from optax_adadelta import AdadeltaState, adadelta
from optax_adadelta.diagnostics import averages, find_state, summaries

EPS = 1e-4
RATE = "effective_learning_rate"
# Half a bin of 1/16 of an octave.
OFF = 1 / 32
NONE = {"group": lambda name: None}


@functools.cache
def state_of(bits, steps=20):
    """A state whose parts have very different gradients."""
    params = {"body": {"w": normal((331, 53)), "b": normal((7,))}, "head": [normal(())]}
    optimizer = adadelta(eps=EPS, state_bits=bits)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    sizes = {"w": np.exp2(np.linspace(-30, 20, 53)), "b": 1e-5, "head": 1.0}
    for t in range(steps):
        grads = {
            "body": {
                "w": normal((331, 53), t) * jnp.asarray(sizes["w"], jnp.float32)[None],
                "b": normal((7,), t) * sizes["b"],
            },
            "head": [normal((), t)],
        }
        _, state = update(grads, state, params)
    return state


def expected(leaves, eps, quantiles=(0.05, 0.5, 0.95), scale=1.0):
    """The same from the averages, in float64, with exact quantiles."""
    e_g, e_x = (np.concatenate([np.ravel(np.float64(x)) for x in xs]) for xs in leaves)
    with np.errstate(invalid="ignore"):
        rates = scale * np.sqrt(e_x + eps) / np.sqrt(e_g + eps)
    finite = rates[np.isfinite(rates)]
    exact = np.quantile(finite, quantiles, method="inverted_cdf")
    return {
        f"{RATE}/mean": finite.mean(),
        **{f"{RATE}/q{q}": x for q, x in zip(("05", "50", "95"), exact, strict=True)},
        "share/dominated_by_eps": np.mean(e_g < eps),
        "share/at_rest": np.mean(e_x < eps / 100),
        "share/not_finite": 1 - len(finite) / len(rates),
    }


def assert_agree(found, reference, prefix=""):
    for key, value in reference.items():
        rtol = OFF if "/q" in key else 1e-5
        np.testing.assert_allclose(found[prefix + key], value, rtol=rtol, atol=1e-7, err_msg=key)


def leaves_of(state):
    e_g, e_x = averages(state)
    return [[tree["body"]["w"], tree["body"]["b"], tree["head"][0]] for tree in (e_g, e_x)]


@pytest.mark.parametrize(
    ("bits", "jit", "rate"), [(None, False, 1.0), (16, True, 0.25), (8, True, 3.0)]
)
def test_they_are_the_numbers_of_the_averages(bits, jit, rate):
    state = state_of(bits)
    found = (jax.jit(summaries) if jit else summaries)(state, EPS, rate)
    leaves = leaves_of(state)
    names = ("body/w", "body/b", "head/0")
    assert_agree(found, expected(leaves, EPS, scale=rate))
    for i, name in enumerate(names):
        reference = expected([[leaf[i]] for leaf in leaves], EPS, scale=rate)
        assert_agree(found, reference, f"{name}/")
    assert len(found) == 7 * (1 + len(names))
    assert {(x.shape, x.dtype) for x in found.values()} == {((), np.dtype("float32"))}
    # The parts differ as their gradients do.
    assert found["body/b/share/dominated_by_eps"] == 1
    assert found["body/b/share/at_rest"] == 1
    assert found["head/0/share/at_rest"] == 0
    assert 0.2 < found["share/at_rest"] < 0.8


def test_groups_are_chosen_by_a_function_of_the_name():
    state, (e_g, e_x) = state_of(None), leaves_of(state_of(None))
    found = summaries(state, EPS, group=lambda name: name.split("/")[0])
    assert {key.rsplit("/", 2)[0] for key in found if key.count("/") == 2} == {"body", "head"}
    assert_agree(found, expected([e_g[:2], e_x[:2]], EPS), "body/")
    assert_agree(found, expected([e_g[2:], e_x[2:]], EPS), "head/")
    only = summaries(state, EPS, group=lambda name: {"head/0": "top"}.get(name))
    assert {key.split("/")[0] for key in only} == {RATE, "share", "top"}
    whole = summaries(state, EPS, **NONE)
    assert len(whole) == 7
    for given in (found, only):
        for key, value in whole.items():
            np.testing.assert_allclose(given[key], value, rtol=1e-5, err_msg=key)


def test_quantiles_are_close_for_rates_of_any_size():
    percents = np.arange(0, 101, 10)
    for exponent in range(-48, 61, 12):
        rates = np.exp2(exponent + np.linspace(0, 1, 997))
        state = AdadeltaState(jnp.int32(1), jnp.ones(997), jnp.asarray(rates**2, jnp.float32))
        found = summaries(state, 1e-37, quantiles=percents / 100, **NONE)
        for percent in percents:
            exact = np.quantile(rates, percent / 100, method="inverted_cdf")
            np.testing.assert_allclose(found[f"{RATE}/q{percent:02}"], exact, rtol=OFF + 1e-3)


def test_quantiles_are_named_by_their_percentage():
    found = summaries(state_of(None), EPS, quantiles=(0, 0.001, 0.07, 0.29, 0.975, 1), **NONE)
    names = ("00", "0.1", "07", "29", "97.5", "100")
    assert {key for key in found if "/q" in key} == {f"{RATE}/q{name}" for name in names}
    with pytest.raises(ValueError, match=r"^Each of quantiles must be between 0 and 1; got \(95"):
        summaries(state_of(None), EPS, quantiles=(95,))


def test_before_the_first_step_every_rate_is_exactly_one():
    found = summaries(adadelta().init(jnp.ones(10)), 1e-6)
    assert len(found) == 7
    assert {found[f"{RATE}/{name}"].item() for name in ("mean", "q05", "q50", "q95")} == {1.0}
    assert found["share/at_rest"] == found["share/dominated_by_eps"] == 1


def test_coordinates_that_are_not_finite_are_counted_and_left_out():
    e_g = jnp.array([1.0, np.nan, np.inf, 4.0, 9.0])
    e_x = jnp.array([1.0, 1.0, np.inf, 1.0, np.nan])
    found = summaries(AdadeltaState(jnp.int32(1), e_g, e_x), 1e-30)
    np.testing.assert_allclose(found[f"{RATE}/mean"], 0.75)
    np.testing.assert_allclose(found[f"{RATE}/q95"], 1.0)
    np.testing.assert_allclose(found["share/not_finite"], 0.6)
    nothing = summaries(AdadeltaState(jnp.int32(1), e_g[1:3], e_x[1:3]), 1e-30)
    assert np.isnan(nothing[f"{RATE}/q50"])
    assert np.isnan(nothing[f"{RATE}/mean"])
    assert nothing["share/not_finite"] == 1


def test_empty_leaves_and_trees_have_no_entry():
    params = {"w": jnp.ones(2), "none": jnp.ones((0, 3)), "masked": optax.MaskedNode(), "x": None}
    found = summaries(adadelta().init(params), 1e-6)
    assert {key.split("/")[0] for key in found} == {RATE, "share", "w"}
    for nothing in ({}, jnp.ones(0), {"w": None}):
        assert summaries(adadelta().init(nothing), 1e-6) == {}


@pytest.mark.usefixtures("optax_promotes")
def test_eps_comes_from_the_state_that_it_was_injected_into():
    parts = {
        "a": optax.inject_hyperparams(adadelta)(eps=1e-2),
        "b": optax.chain(optax.clip(1.0), optax.inject_hyperparams(adadelta)(eps=1e-8)),
        "c": optax.set_to_zero(),
        "d": optax.inject_hyperparams(optax.adam)(1e-3, eps=0.5),
    }
    optimizer = optax.multi_transform(parts, {name: name for name in parts})
    params = {name: normal((17,), i) * 1e-3 for i, name in enumerate(parts)}
    state = stepped(optimizer, params)
    found = summaries(state)
    reference = []
    for name, eps in (("a", 1e-2), ("b", 1e-8)):
        e_g, e_x = averages(state.inner_states[name])
        reference.append(expected([[e_g[name]], [e_x[name]]], eps))
        assert_agree(found, reference[-1], f"{name}/")
    for key in (f"{RATE}/mean", "share/dominated_by_eps"):
        np.testing.assert_allclose(found[key], (reference[0][key] + reference[1][key]) / 2, 1e-5)
    assert {key.split("/")[0] for key in found} == {RATE, "share", "a", "b"}
    # A number that is given goes before.
    assert summaries(state, 0.5)["a/share/dominated_by_eps"] == 1
    # Of two injections around each other, the inner one counts.
    outer = optax.inject_hyperparams(lambda eps: optax.inject_hyperparams(adadelta)(eps=eps / 100))
    state = stepped(outer(eps=1.0), {"w": normal((17,))})
    same_bits(summaries(state), summaries(find_state(state), 0.01))


@pytest.mark.usefixtures("optax_promotes")
def test_an_eps_that_faded_to_zero_and_one_too_small_for_codes():
    make = optax.inject_hyperparams(adadelta, "state_bits")
    faded = stepped(make(eps=lambda count: 1e-3 * (count < 2)), {"w": normal((5,))})
    assert np.isfinite(summaries(faded)[f"{RATE}/mean"])
    small = stepped(adadelta(eps=1e-12, state_bits=16), {"w": 1e-6 * normal((5,))})
    same_bits(summaries(small, 1e-20), summaries(small, 1e-12))


def test_what_cannot_be_summarized_is_refused():
    state = adadelta().init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"^eps is None, .*inject_hyperparams\(adadelta\)"):
        summaries(state)
    beside = (optax.inject_hyperparams(optax.adam)(1e-3).init(jnp.ones(2)), state)
    with pytest.raises(ValueError, match=r"^eps is None"):
        summaries(beside)
    with pytest.raises(ValueError, match=r"^eps is None"):  # an eps beside the state is another's
        summaries({"hyperparams": {"eps": 1e-3}, "opt_state": state})
    with pytest.raises(ValueError, match=r"^There is no AdadeltaState in"):
        summaries(optax.adam(1.0).init(jnp.ones(2)), 1e-6)
    with pytest.raises(ValueError, match=r"^Two AdadeltaStates have a leaf 'w'"):
        summaries((state, state), 1e-6)
    with pytest.raises(ValueError, match=r"^eps must be positive"):
        summaries(state, 0.0)


def test_new_values_compile_nothing(compiled):
    state = optax.inject_hyperparams(adadelta)(eps=EPS).init({"w": normal((5,))})
    other = optax.tree.set(state, eps=jnp.float32(1e-5))
    summaries(state)
    summaries(state, 1e-3)
    before = compiled()
    summaries(other)
    summaries(state, 1e-7)
    assert compiled() == before


@pytest.mark.devices
def test_sharded_states():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    params = {"w": normal((128, 136)), "v": normal((8, 6)), "b": normal((8,))}
    specs = {"w": PartitionSpec("x", "y"), "v": PartitionSpec("y"), "b": PartitionSpec(("x", "y"))}
    sharded = {
        name: jax.device_put(p, NamedSharding(mesh, specs[name])) for name, p in params.items()
    }
    optimizer = adadelta(eps=EPS, state_bits=8)
    found, one = (stepped(optimizer, p) for p in (sharded, params))
    with jax.set_mesh(mesh):
        values = summaries(found, EPS)
    for key, value in summaries(one, EPS).items():
        np.testing.assert_allclose(values[key], value, rtol=1e-5, err_msg=key)
