"""States from and to keras.optimizers.Adadelta: with variables of NumPy arrays, and in Keras."""

import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import assert_agree, same_bits, same_types

from optax_adadelta import adadelta, convert
from optax_adadelta.diagnostics import averages

SHAPES = {"net/a/kernel": (4, 3), "net/a/bias": (3,), "net/b/kernel": (3, 2)}
FIELDS = ("accumulated_grad", "accumulated_delta_var")


class Variable:
    def __init__(self, path, array):
        self.path, self.array = path, np.array(array)
        self.shape, self.dtype = self.array.shape, self.array.dtype.name

    def __array__(self, dtype=None):
        return self.array

    def assign(self, array):
        assert np.shape(array) == self.shape
        self.array[...] = array


class Adadelta:
    """Has the variables of Keras's optimizer, with the same paths."""

    built = True

    def __init__(self, averages=(), count=7, gradient_accumulation_steps=None, **config):
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.config = {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-7, **config}
        self.variables = [Variable("adadelta/iteration", count)]
        self.variables += [
            Variable(f"adadelta/{path.replace('/', '_')}_{field}", average)
            for path, pair in dict(averages).items()
            for field, average in zip(FIELDS, pair, strict=True)
        ]

    def get_config(self):
        return self.config


class Mine(Adadelta):
    """A subclass of a user's."""


def arrays(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {path: np.float32(rng.uniform(0.1, 1, s)) for path, s in shapes.items()}


def pairs(shapes=SHAPES):
    return {path: (arrays(0, shapes)[path], arrays(1, shapes)[path]) for path in shapes}


def variables():
    return [Variable(path, array) for path, array in arrays(2).items()]


def to_params(t):
    layers = {"a": {"w": t["net/a/kernel"], "b": t["net/a/bias"]}, "b": t["net/b/kernel"].T}
    return jax.tree.map(jnp.asarray, layers)


def to_arrays(params):
    return {
        "net/a/kernel": params["a"]["w"],
        "net/a/bias": params["a"]["b"],
        "net/b/kernel": params["b"].T,
    }


def check(state, count=7):
    same_types(state, adadelta().init(to_params(arrays(2))))
    assert state.count == count
    same_bits((state.e_g, state.e_x), (to_params(arrays(0)), to_params(arrays(1))))


def test_variables_are_matched_by_path():
    backwards = dict(reversed(pairs().items()))
    for given in (pairs(), backwards):
        optimizer = Adadelta(given)
        check(convert.from_keras(optimizer, to_params, variables=variables()))
        check(convert.from_keras(optimizer, to_params, variables=arrays(2)))
    accumulating = Adadelta(pairs(), count=12, gradient_accumulation_steps=3)
    check(convert.from_keras(accumulating, to_params, variables=variables()), count=4)


def test_a_state_is_put_into_an_optimizer():
    state = convert.from_keras(Adadelta(pairs()), to_params, variables=variables())
    low = jax.jit(lambda state: convert.with_state_bits(state, 8, eps=1e-6))(state)
    zeros = {path: (np.zeros(s), np.zeros(s)) for path, s in SHAPES.items()}
    for steps in (None, 3):
        optimizer = Adadelta(reversed(zeros.items()), 0, steps)
        convert.to_keras((low,), to_arrays, optimizer, variables=variables())
        found = {v.path.removeprefix("adadelta/net_"): v.array for v in optimizer.variables}
        assert found["adadelta/iteration"] == 7 * (steps or 1)
        got = [
            {path: found[f"{path.removeprefix('net/').replace('/', '_')}_{f}"] for path in SHAPES}
            for f in FIELDS
        ]
        assert_agree(got, (arrays(0), arrays(1)), 8)
        same_bits(jax.tree.map(np.float32, got[1]), to_arrays(jax.device_get(averages(low).e_x)))


def test_an_optimizer_is_built_if_need_be():
    state = convert.from_keras(Adadelta(pairs()), to_params, variables=variables())
    optimizer, given = Adadelta(), variables()
    optimizer.built = False
    optimizer.build = lambda these: optimizer.variables.extend(Adadelta(pairs(), 0).variables[1:])
    convert.to_keras(state, to_arrays, optimizer, variables=given)
    check(convert.from_keras(optimizer, to_params, variables=given))


def test_what_does_not_match_is_listed_and_nothing_changes():
    def refused(message, optimizer, function=to_params, given=None):
        given = variables() if given is None else given
        with pytest.raises(ValueError, match=message):
            convert.from_keras(optimizer, function, variables=given)
        if function is not to_params:
            return
        state = adadelta().init(to_params(arrays(2)))
        before = [v.array.copy() for v in optimizer.variables]
        with pytest.raises(ValueError, match=r"Nothing was changed|There is no|net/"):
            convert.to_keras(state, to_arrays, optimizer, variables=given)
        same_bits(before, [v.array for v in optimizer.variables])

    less = pairs()
    other = less.pop("net/a/bias")
    refused(
        r"net_a_bias_accumulated_grad: missing(?s:.*)bias_accumulated_delta_var: missing",
        Adadelta(less),
    )
    refused(r"new_accumulated_grad: only in the optimizer", Adadelta({**pairs(), "new": other}))
    clash = [*variables(), Variable("net/a_bias", other[0])]
    refused("same path", Adadelta(pairs()), given=clash)
    turned = [Variable(v.path, v.array.T) for v in variables()]
    message = r"net/a/kernel: .*\(3, 4\).*\(4, 3\)\n- net/b/kernel: .*\(2, 3\)"
    refused(message, Adadelta(pairs()), given=turned)
    message = r"'nope', but .*'net/a/kernel', 'net/a/bias'"
    refused(message, Adadelta(pairs()), lambda t: t["nope"])
    optimizer = Adadelta(pairs(), count=7, gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="gradients of 1 batches wait"):
        convert.from_keras(optimizer, to_params, variables=variables())
    frozen = to_params(arrays(2))
    frozen["a"]["b"] = None
    with pytest.raises(ValueError, match=r"net/a/bias: missing"):
        convert.to_keras(adadelta().init(frozen), to_arrays, optimizer, variables=variables())


def test_hyperparameters():
    for optimizer in (Adadelta(clipnorm=None, use_ema=False), Mine()):
        found = convert.hyperparameters_from_keras(optimizer)
        assert found == {"learning_rate": 1.0, "rho": 0.9, "eps": 1e-7}
        adadelta(**found)
    other = type("RMSprop", (), {"get_config": Adadelta().get_config})
    with pytest.raises(ValueError, match="must be an Adadelta; it is a RMSprop"):
        convert.hyperparameters_from_keras(other())
    message = "(?s)" + ".*".join(
        "weight_decay=0.1: clipnorm=2.0 clipvalue=3.0 global_clipnorm=4.0 use_ema=True"
        " gradient_accumulation_steps=5 MultiSteps loss_scale_factor=6.0".split()
    )
    options = dict(weight_decay=0.1, clipnorm=2.0, clipvalue=3.0, global_clipnorm=4.0)
    many = Adadelta(**options, use_ema=True, loss_scale_factor=6.0)
    many.config["gradient_accumulation_steps"] = 5
    with pytest.raises(ValueError, match=message):
        convert.hyperparameters_from_keras(many)
    for rate, name in (({"class_name": "CosineDecay"}, "CosineDecay"), (len, "a function")):
        with pytest.raises(ValueError, match=f"learning_rate is {name}: .*schedule of Optax"):
            convert.hyperparameters_from_keras(Adadelta(learning_rate=rate))
    for given, message in (
        ({"rho": 1.0}, "rho must be at least 0 and below 1; it is 1.0"),
        ({"epsilon": 0.0, "learning_rate": len}, "- eps must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.hyperparameters_from_keras(Adadelta(**given))


class Group(dict):
    """A group of arrays in a file."""

    def __init__(self, arrays, name):
        super().__init__({str(i): array for i, array in enumerate(arrays)})
        self.attrs = {"name": name}


@pytest.fixture
def h5py(monkeypatch):
    """A module that reads files which have the number of what is in `held`."""
    held = []

    def open_file(source, mode):
        assert mode == "r"
        content = source.read() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
        if not content.isdigit():
            raise OSError("file signature not found")
        return File(held[int(content)])

    class File(dict):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=open_file))
    return held


def write(path, held, arrays, name="adadelta", kind=None, **config):
    """Writes a file; with the class of its optimizer if it is given."""
    held.append({"optimizer/vars": Group(arrays, name)} if arrays is not None else {})
    content = f"{len(held) - 1}"
    if not path.name.endswith(".keras"):
        path.write_text(content)
        return path
    given = {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-7, **config}
    compiled = {"optimizer": {"class_name": kind or "Adadelta", "config": given}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"compile_config": kind != "none" and compiled}))
        archive.writestr("model.weights.h5", content)
    return path


def in_file(count=7, rate=True, others=0):
    return [
        np.int32(count),
        *([np.float32(1)] if rate else []),
        *(np.zeros(s, np.float32) for _ in range(others) for s in SHAPES.values()),
        *(average for pair in pairs().values() for average in pair),
    ]


def test_files_are_read(h5py, tmp_path):
    def read(path):
        return convert.from_keras(path, to_params, variables=variables())

    for name in ("adadelta", "adadelta_12"):
        for rate in (True, False):
            check(read(write(tmp_path / "a.weights.h5", h5py, in_file(rate=rate), name)))
    whole = write(tmp_path / "a.keras", h5py, in_file(), "mine")
    check(read(str(whole)))
    expected = {"learning_rate": 1.0, "rho": 0.9, "eps": 1e-7}
    assert convert.hyperparameters_from_keras(whole) == expected
    check(read(write(tmp_path / "b.keras", h5py, in_file(others=1), use_ema=True)))
    accumulating = dict(use_ema=True, gradient_accumulation_steps=3)
    check(read(write(tmp_path / "c.keras", h5py, in_file(12, others=2), **accumulating)), count=4)
    # Keras writes bfloat16 as bytes.
    low = [np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in in_file()[2:]]
    path = write(tmp_path / "d.keras", h5py, [*in_file()[:2], *(a.view("V2") for a in low)])
    np.testing.assert_array_equal(read(path).e_g["a"]["w"], low[0].astype(np.float32))


def test_files_that_do_not_fit_are_refused(h5py, tmp_path):
    def refused(message, path, *new):
        with pytest.raises(ValueError, match=message):
            convert.from_keras(path, to_params, variables=[*variables(), *new])

    weights, whole = tmp_path / "a.weights.h5", tmp_path / "a.keras"
    refused("is called 'adam', not 'adadelta'", write(weights, h5py, in_file(), "adam"))
    refused("must be an Adadelta; it is Adam", write(whole, h5py, in_file(), kind="Adam"))
    message = r"8 arrays .* 4 variables: net/a/kernel, .*, new"
    refused(message, write(weights, h5py, in_file()), Variable("new", 1.0))
    refused("8 arrays .* 3 variables", write(whole, h5py, in_file(), use_ema=True))
    refused("11 arrays .* 3 variables", write(weights, h5py, in_file(others=1)))
    refused("1 arrays .* 3 variables", write(weights, h5py, in_file()[:1]))
    refused("has no optimizer of Keras 3", write(weights, h5py, None))
    refused("saved uncompiled", write(whole, h5py, in_file(), kind="none"))
    accumulating = write(whole, h5py, in_file(others=1), gradient_accumulation_steps=2)
    refused("gradients of 1 batches wait", accumulating)
    turned = in_file()
    turned[2], turned[7] = turned[2].T, turned[7].T
    message = r"net/a/kernel: .*\(4, 3\).*\(3, 4\)\n(.*\n)?- net/b/kernel: .*\(3, 2\).*\(2, 3\)"
    refused(message, write(weights, h5py, turned))
    weights.write_text("a text")
    refused(r"not a .keras or .weights.h5 file of Keras 3: file signature", weights)
    with pytest.raises(ValueError, match="has no hyperparameters"):
        convert.hyperparameters_from_keras(write(weights, h5py, in_file()))


def test_without_h5py_the_error_says_what_to_install(monkeypatch, tmp_path, h5py):
    path = write(tmp_path / "a.weights.h5", h5py, in_file())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match="pip install h5py") as error:
        convert.from_keras(path, to_params, variables=variables())
    assert error.value.name == "h5py"


# Saving in Keras converts its variables as NumPy 1 did.
PEER = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield keras


def model(keras, dtype="float32", name="net", **options):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    layers = [dense(3, "tanh", name="a", dtype=dtype), dense(2, name="b", dtype=dtype)]
    net = keras.Sequential([keras.Input((4,)), *layers], name=name)
    net.compile(keras.optimizers.Adadelta(**{"learning_rate": 1.0, **options}), "mse")
    return net


def data(steps):
    rng = np.random.default_rng(0)
    return np.float32(rng.standard_normal((steps, 32, 4))), np.float32(
        rng.standard_normal((steps, 32, 2))
    )


def fit(net, x, y):
    net.fit(x.reshape(-1, 4), y.reshape(-1, 2), batch_size=32, shuffle=False, verbose=0)


def of_model(net):
    return {v.path: np.array(np.asarray(v)) for v in net.trainable_variables}


def model_params(t):
    return jax.tree.map(
        jnp.asarray,
        {k: {"w": t[f"net/{k}/kernel"].T, "b": t[f"net/{k}/bias"]} for k in ("a", "b")},
    )


def model_arrays(params):
    kernels = {f"net/{k}/kernel": np.transpose(params[k]["w"]) for k in ("a", "b")}
    return {**kernels, **{f"net/{k}/bias": params[k]["b"] for k in ("a", "b")}}


def model_loss(params, x, y):
    h = jnp.tanh(x @ params["a"]["w"].T + params["a"]["b"].reshape(1, -1))
    return jnp.mean((h @ params["b"]["w"].T + params["b"]["b"].reshape(1, -1) - y) ** 2)


@PEER
@pytest.mark.peers
def test_a_run_goes_on_in_jax_and_again_in_keras(keras, tmp_path):
    x, y = data(100)

    def goes_on(params, state, steps):
        for i in steps:
            grads = jax.grad(model_loss)(params, x[i], y[i])
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    net, other = (model(keras, epsilon=1e-5, rho=0.9) for _ in range(2))
    fit(net, x[:50], y[:50])
    params = model_params(of_model(net))
    net.save(tmp_path / "net.keras")
    net.save_weights(tmp_path / "net.weights.h5")
    given = dict(variables=net.trainable_variables)
    state = convert.from_keras(net.optimizer, model_params, **given)
    for name in ("net.keras", "net.weights.h5"):
        same_bits(convert.from_keras(tmp_path / name, model_params, **given), state)
    hyper = convert.hyperparameters_from_keras(net.optimizer)
    assert convert.hyperparameters_from_keras(tmp_path / "net.keras") == hyper
    optimizer = adadelta(**hyper)
    fit(net, x[50:], y[50:])
    params, state = goes_on(params, state, range(50, 100))
    chex.assert_trees_all_close(params, model_params(of_model(net)), rtol=0, atol=1e-6)
    assert state.count == 100

    given = dict(variables=other.trainable_variables)
    convert.to_keras(state, model_arrays, other.optimizer, **given)
    for v in other.trainable_variables:
        v.assign(np.array(model_arrays(params)[v.path]))
    assert other.optimizer.iterations == 100
    same_bits(convert.from_keras(other.optimizer, model_params, **given), state)
    fit(other, x[:50], y[:50])
    params, _ = goes_on(params, state, range(50))
    chex.assert_trees_all_close(params, model_params(of_model(other)), rtol=0, atol=1e-6)


OPTIONS = {
    "both": {"use_ema": True, "gradient_accumulation_steps": 3},
    "bfloat16": {"dtype": "bfloat16"},
    "schedule": {},
}


@PEER
@pytest.mark.peers
@pytest.mark.parametrize("name", OPTIONS)
def test_a_file_has_what_the_optimizer_has(keras, tmp_path, name):
    options = dict(OPTIONS[name])
    if name == "schedule":
        options["learning_rate"] = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.9)
    x, y = data(6)
    net = model(keras, **options)
    fit(net, x, y)
    net.save(tmp_path / "net.keras")
    given = dict(variables=net.trainable_variables)
    expected = convert.from_keras(net.optimizer, model_params, **given)
    assert expected.count == (2 if "gradient_accumulation_steps" in options else 6)
    assert all(jnp.all(leaf > 0) for leaf in jax.tree.leaves(expected.e_x))
    same_bits(convert.from_keras(tmp_path / "net.keras", model_params, **given), expected)
