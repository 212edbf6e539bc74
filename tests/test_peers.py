"""Side by side with every other Adadelta: the parameters and both averages, step by step."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_adadelta import adadelta, clip_by_global_norm, scale_by_adadelta
from optax_adadelta.diagnostics import find_state

STEPS, SHAPES = 40, {"w": (4, 3), "b": (3,)}
CURVATURE = {name: 10.0 ** np.linspace(-2, 2, np.prod(s)).reshape(s) for name, s in SHAPES.items()}
NOISE = {name: np.random.default_rng(7).standard_normal((STEPS, *s)) for name, s in SHAPES.items()}
START = {name: np.full(s, 0.8) for name, s in SHAPES.items()}
# Parameters pass through zero, the averages do not.
FLOAT32 = dict(rtol=3e-5, atol=1e-7)
FLOAT64 = dict(rtol=1e-11, atol=1e-14)


def gradient(step, params):
    """A noisy quadratic's gradient, rounded once to the dtype of the parameters."""
    params = {name: np.asarray(p) for name, p in params.items()}
    return {
        name: (CURVATURE[name] * p + NOISE[name][step]).astype(p.dtype)
        for name, p in params.items()
    }


def ours(optimizer, dtype=np.float64):
    """Yields parameters, E[g^2] and E[dx^2] after each step, as NumPy arrays."""
    params = {name: jnp.asarray(p, dtype) for name, p in START.items()}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = update(gradient(step, params), state, params)
        params = optax.apply_updates(params, updates)
        e_g, e_x = (optax.tree_utils.tree_get(state, field) for field in ("e_g", "e_x"))
        yield tuple(jax.device_get(part) for part in (params, e_g, e_x))


def assert_same_path(got, expected, tolerance):
    for step, (one, other) in enumerate(zip(got, expected, strict=True)):
        for part, (a, b) in enumerate(zip(one, other, strict=True)):
            for name in SHAPES:
                given = tolerance if part == 0 else {**tolerance, "atol": 0}
                what = f"{('parameters', 'E[g^2]', 'E[dx^2]')[part]}[{name}] after step {step}"
                np.testing.assert_allclose(a[name], b[name], **given, err_msg=what)


@pytest.mark.parametrize("args", [(1.0,), (0.5, 0.9, 1e-6, 0.1, {"w": True, "b": False})])
def test_optax_with_the_same_positional_arguments(args, request):
    # Only the default of rho differs.
    same = args if len(args) > 1 else (*args, 0.9)
    theirs = ours(optax.adadelta(*args), np.float32)
    assert_same_path(ours(adadelta(*same), np.float32), theirs, FLOAT32)
    request.getfixturevalue("x64")
    assert_same_path(ours(adadelta(*same)), ours(optax.adadelta(*args)), FLOAT64)


def test_optax_without_a_learning_rate_ascends():
    """The README says so. If this fails, Optax has fixed it: correct the README."""
    x = jnp.array([3.0, -2.0])
    optimizer = optax.adadelta()
    state, update = optimizer.init(x), jax.jit(optimizer.update)
    losses = [jnp.sum(x**2)]
    for _ in range(100):
        updates, state = update(2 * x, state, x)
        x = optax.apply_updates(x, updates)
        losses.append(jnp.sum(x**2))
    assert all(np.diff(losses) > 0)


def after(optimizer, gradients, params):
    """The last update of one parameter, and its E[g^2]."""

    def step(state, g):
        updates, state = optimizer.update(g, state, params)
        return state, (updates, optax.tree_utils.tree_get(state, "e_g"))

    grads = jnp.asarray(gradients, params.dtype)[:, None]
    _, (updates, e_g) = jax.lax.scan(step, optimizer.init(params), grads)
    return updates[-1], e_g[-1]


def test_what_the_readme_says_of_optax_and_of_this():
    """Like the test above: where this fails, the README's table is to be corrected."""
    theirs, this = optax.adadelta(1.0, 0.99), adadelta(rho=0.99)

    half = jnp.zeros(1, jnp.bfloat16)
    drop = [1.0] * 300 + [0.1] * 600
    exact = 0.01 + 0.99**600 * (1 - 0.99**300 - 0.01)
    for optimizer, moves in ((theirs, False), (this, True)):
        _, e_g = after(optimizer, drop, half)
        assert (abs(float(e_g[0]) / exact - 1) < 0.01) == moves

    for optimizer, recovers in ((optax.adadelta(1.0, 0.9), False), (adadelta(rho=0.9), True)):
        updates, e_g = after(optimizer, [1e20, *[0.1] * 1200], jnp.zeros(1))
        assert bool(jnp.isfinite(e_g[0])) == recovers
        assert bool(updates[0] < -1e-4) == recovers

    z = jnp.zeros(1, jnp.complex64)
    with jax.numpy_dtype_promotion("standard"):
        squared = optax.tree_utils.tree_get(theirs.update(z + 2j, theirs.init(z), z)[1], "e_g")
    modulus = this.update(z + 2j, this.init(z))[1].e_g
    np.testing.assert_allclose(squared, [-0.04 + 0j], rtol=1e-5)
    np.testing.assert_allclose(modulus, [0.04], rtol=1e-5)

    with pytest.raises(ValueError, match="params"):
        theirs.update(half, theirs.init(half))
    this.update(half, this.init(half))

    scheduled = optax.adadelta(1.0, rho=lambda count: 0.9)
    with pytest.raises(TypeError):
        scheduled.update(half, scheduled.init(half), half)

    optax.adadelta(1.0, rho=1.5, eps=-1.0)
    with pytest.raises(ValueError, match="rho must be"):
        adadelta(1.0, rho=1.5)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def torch_path(torch, dtype, start=START, **kwargs):
    params = {name: torch.tensor(p, dtype=getattr(torch, dtype)) for name, p in start.items()}
    optimizer = torch.optim.Adadelta(params.values(), **kwargs)
    for step in range(STEPS):
        grads = gradient(step, params)
        for name, p in params.items():
            p.grad = torch.from_numpy(grads[name])
        optimizer.step()
        states = {name: optimizer.state[p] for name, p in params.items()}
        yield (
            {name: p.numpy().copy() for name, p in params.items()},
            {name: state["square_avg"].numpy().copy() for name, state in states.items()},
            {name: state["acc_delta"].numpy().copy() for name, state in states.items()},
        )


TORCH = [
    {},
    {"lr": 0.3, "rho": 0.95, "foreach": True},
    {"lr": 0.5, "rho": 0.99, "eps": 1e-8, "weight_decay": 0.1},
    {"rho": 0.0, "eps": 1e-5, "weight_decay": 0.9, "foreach": True},
    {"maximize": True, "weight_decay": 0.2},
]


def from_torch(lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    """What docs/migrating.md says to write for torch.optim.Adadelta's arguments."""
    return adadelta(lr, rho=rho, eps=eps, weight_decay=weight_decay)


@pytest.mark.peers
@pytest.mark.parametrize("given", TORCH, ids=str)
def test_torch(torch, given, request):
    same = {name: value for name, value in given.items() if name not in ("foreach", "maximize")}
    optimizer = from_torch(**same)
    if given.get("maximize"):
        optimizer = optax.chain(optax.scale(-1.0), optimizer)
    if given.get("rho") != 0:  # At 0 nothing smooths the rounding errors.
        theirs = torch_path(torch, "float32", **given)
        assert_same_path(ours(optimizer, np.float32), theirs, FLOAT32)
    request.getfixturevalue("x64")
    theirs = torch_path(torch, "float64", **given)
    assert_same_path(ours(optimizer), theirs, FLOAT64)


@pytest.mark.peers
@pytest.mark.usefixtures("x64")
def test_torch_takes_a_complex_parameter_for_two_reals(torch):
    start = {name: p * (1 + 0.5j) for name, p in START.items()}
    optimizer = optax.contrib.split_real_and_imaginary(adadelta(rho=0.9))
    params = {name: jnp.asarray(p) for name, p in start.items()}
    state = optimizer.init(params)
    for step, (expected, square_avg, acc_delta) in enumerate(
        torch_path(torch, "complex128", start)
    ):
        grads = jax.tree.map(jnp.asarray, gradient(step, params))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found = find_state(state)
        for name in SHAPES:
            np.testing.assert_allclose(params[name], expected[name], **FLOAT64)
            for average, theirs in ((found.e_g, square_avg), (found.e_x, acc_delta)):
                pair = average[name]
                np.testing.assert_allclose(pair.real, theirs[name].real, **FLOAT64)
                np.testing.assert_allclose(pair.imaginary, theirs[name].imag, **FLOAT64)


@pytest.mark.peers
def test_torch_leaves_a_parameter_without_a_gradient_as_it_is(torch):
    p = torch.ones(2)
    optimizer = torch.optim.Adadelta([p], rho=0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    p.grad = None
    optimizer.step()
    assert optimizer.state[p]["square_avg"].tolist() == [0.5, 0.5]
    # A gradient of zero makes the average decay.
    update, e_g = after(adadelta(rho=0.5), [1.0, 0.0], jnp.ones(1))
    assert (update.item(), e_g.item()) == (0, 0.25)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"lr": -0.01}, "learning_rate"),
        ({"lr": [0.01, 0.01]}, "learning_rate"),
        ({"rho": 1.1}, "rho"),
        ({"rho": -0.1}, "rho"),
        ({"eps": -1e-6}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused_by_name(torch, given, name):
    ((key, value),) = given.items()
    theirs, this = (torch.tensor, jnp.array) if isinstance(value, list) else (float, float)
    with pytest.raises(ValueError, match=r"lr|rate|epsilon|rho|weight_decay"):
        torch.optim.Adadelta([torch.ones(2)], **{key: theirs(value)})
    with pytest.raises(ValueError, match=f"^{name}"):
        from_torch(**{key: this(value)})


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras")


def keras_path(keras, without_decay=(), **kwargs):
    params = {name: keras.Variable(p, dtype="float32", name=name) for name, p in START.items()}
    optimizer = keras.optimizers.Adadelta(**kwargs)
    optimizer.exclude_from_weight_decay(var_names=without_decay)
    optimizer.build(list(params.values()))
    for step in range(STEPS):
        grads = gradient(step, params)
        optimizer.apply([jnp.asarray(grads[name]) for name in params])
        read = {v.path.split("/")[-1]: np.asarray(v) for v in optimizer.variables}
        yield (
            {name: np.asarray(p) for name, p in params.items()},
            {name: read[f"{name}_accumulated_grad"] for name in params},
            {name: read[f"{name}_accumulated_delta_var"] for name in params},
        )


def decayed(mask=None):
    """Keras decays apart from the gradient."""
    return optax.chain(
        scale_by_adadelta(eps=1e-7),
        optax.add_decayed_weights(0.05, mask),
        optax.scale_by_learning_rate(1.0),
    )


KERAS = {
    "a learning rate": ({}, adadelta(eps=1e-7)),
    "others": (
        dict(learning_rate=0.5, rho=0.9, epsilon=1e-4),
        adadelta(0.5, 0.9, 1e-4),
    ),
    "weight_decay": (dict(weight_decay=0.05), decayed()),
    "exclude_from_weight_decay": (
        dict(weight_decay=0.05, without_decay=["b"]),
        decayed({"w": True, "b": False}),
    ),
    "clipvalue": (dict(clipvalue=0.3), optax.chain(optax.clip(0.3), adadelta(eps=1e-7))),
    "global_clipnorm": (
        dict(global_clipnorm=0.5),
        optax.chain(clip_by_global_norm(0.5), adadelta(eps=1e-7)),
    ),
    "gradient_accumulation_steps": (
        dict(gradient_accumulation_steps=3),
        optax.MultiSteps(adadelta(eps=1e-7), 3).gradient_transformation(),
    ),
}


@pytest.mark.peers
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("name", KERAS)
def test_keras(keras, name):
    given, equivalent = KERAS[name]
    theirs = keras_path(keras, **{"learning_rate": 1.0, **given})
    first = (itertools.islice(path, 12) for path in (ours(equivalent, np.float32), theirs))
    assert_same_path(*first, FLOAT32)


@pytest.mark.peers
def test_the_defaults_of_keras(keras):
    parameters = inspect.signature(keras.optimizers.Adadelta).parameters
    found = [parameters[name].default for name in ("learning_rate", "rho", "epsilon")]
    assert found == [0.001, 0.95, 1e-7]
