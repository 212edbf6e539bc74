"""Small models: how to make their parameters, and how to apply them."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HE = jax.nn.initializers.he_normal()


class Model(NamedTuple):
    """A model in words, how to make its parameters, and how to apply them to inputs."""

    name: str
    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]  # Of the parameters and the inputs.


def dense(draw: Callable[..., jax.Array], keys: jax.Array, *shapes: tuple[int, int]) -> list:
    """Returns dense layers, whose biases are zero."""
    layers = zip(keys, shapes, strict=True)
    return [{"w": draw(key, shape), "b": jnp.zeros(shape[1])} for key, shape in layers]


def perceptron(*sizes: int, draw=HE, activation=jax.nn.relu) -> Model:
    """Returns a network of dense layers."""
    shapes = list(itertools.pairwise(sizes))

    def init(key):
        layers = dense(draw, jax.random.split(key, len(shapes)), *shapes)
        return {f"layer {number}": layer for number, layer in enumerate(layers, 1)}

    def apply(params, x):
        *hidden, top = params.values()
        for layer in hidden:
            x = activation(x @ layer["w"] + layer["b"])
        return x @ top["w"] + top["b"]

    return Model(f"dense {'-'.join(map(str, sizes))}", init, apply)


def patches(x: jax.Array) -> jax.Array:
    """Returns what a 3 x 3 convolution with stride 2 multiplies by its weights.

    Many networks side by side are slow with lax.conv on a CPU.
    """
    size = x.shape[1] - 2
    places = itertools.product(range(3), range(3))
    return jnp.concatenate([x[:, i : i + size : 2, j : j + size : 2] for i, j in places], axis=-1)


def convolutions(name: str, normalized: bool = False) -> Model:
    """Returns a network of two convolutions for images of 14 x 14, with batch normalization or not.

    The statistics are those of the first `counted` images, or of all.
    """

    def init(key):
        layers = dense(HE, jax.random.split(key, 3), (9 * 1, 16), (9 * 16, 32), (4 * 32, 10))
        for layer in layers[: 2 * normalized]:
            layer["gain"] = jnp.ones_like(layer["b"])
        return layers

    def apply(params, x, counted=None):
        *convolved, top = params
        for layer in convolved:
            x = patches(x) @ layer["w"]
            if normalized:
                axes, y = (0, 1, 2), x[:counted]
                x = (x - y.mean(axes)) / jnp.sqrt(y.var(axes) + 1e-5) * layer["gain"]
            x = jax.nn.relu(x + layer["b"])
        return x.reshape(len(x), -1) @ top["w"] + top["b"]

    return Model(name, init, apply)


def recurrent(inputs: int, width: int, outputs: int) -> Model:
    """Returns a gated recurrent unit, whose last state before the end of a sequence is read."""

    def init(key):
        gates, top = dense(HE, jax.random.split(key), (inputs + width, 3 * width), (width, outputs))
        return {"gates": gates, "top": top}

    def apply(params, frames, lengths):
        w, b = params["gates"]["w"], params["gates"]["b"]
        given = jnp.swapaxes(frames @ w[:inputs] + b, 0, 1)  # [time, batch, gates]

        def step(h, given):
            x, time = given
            x_gates, x_new = jnp.split(x, [2 * width], axis=-1)
            gates = jax.nn.sigmoid(x_gates + h @ w[inputs:, : 2 * width])
            reset, keep = jnp.split(gates, 2, axis=-1)
            new = jnp.tanh(x_new + (reset * h) @ w[inputs:, 2 * width :])
            new = keep * h + (1 - keep) * new
            return jnp.where((time < lengths)[:, None], new, h), None

        h = jnp.zeros((len(frames), width))
        h, _ = jax.lax.scan(step, h, (given, jnp.arange(frames.shape[1])))
        return h @ params["top"]["w"] + params["top"]["b"]

    return Model(f"gated recurrent unit of width {width}", init, apply)


def attention(symbols: int, length: int, width: int) -> Model:
    """Returns one block of attention over sequences."""
    shapes = {
        "symbols": (symbols, width),
        "places": (length, width),
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        "up": (width, 2 * width),
        "down": (2 * width, width),
        "top": (width, symbols),
    }

    def init(key):
        draw = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(shapes))
        return {n: draw(k, shape) for k, (n, shape) in zip(keys, shapes.items(), strict=True)}

    def apply(p, x):
        x = p["symbols"][x] + p["places"][None]
        y = jax.nn.standardize(x)
        scores = (y @ p["query"]) @ (y @ p["key"]).mT / math.sqrt(width)
        x += jax.nn.softmax(scores) @ (y @ p["value"]) @ p["out"]
        x += jax.nn.relu(jax.nn.standardize(x) @ p["up"]) @ p["down"]
        return jax.nn.standardize(x) @ p["top"]

    return Model(f"one block of attention of width {width}", init, apply)


def context(symbols: int, length: int, width: int, hidden: int) -> Model:
    """Returns a network of the embeddings of the last symbols."""

    def init(key):
        keys = jax.random.split(key, 3)
        table = jax.random.normal(keys[0], (symbols, width)) / 4
        layers = dense(HE, keys[1:], (width * length, hidden), (hidden, symbols))
        return {"symbols": table, **dict(zip(("hidden", "top"), layers, strict=True))}

    def apply(params, x):
        x = params["symbols"][x].reshape(len(x), -1)
        x = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return x @ params["top"]["w"] + params["top"]["b"]

    return Model(f"embedding of width {width}, dense {width * length}-{hidden}", init, apply)


def long_short_term_memory(inputs: int, width: int, outputs: int) -> Model:
    """Returns a recurrent network with gates, whose last state is read."""

    def init(key):
        gates, top = dense(HE, jax.random.split(key), (inputs + width, 4 * width), (width, outputs))
        forget = jnp.zeros((4, width)).at[1].set(1.0).ravel()
        return {"gates": gates | {"b": forget}, "top": top}

    def apply(params, x):
        w, b = params["gates"]["w"], params["gates"]["b"]
        given = jnp.swapaxes(x @ w[:inputs] + b, 0, 1)  # [time, batch, gates]

        def step(state, given):
            h, c = state
            *gates, new = jnp.split(given + h @ w[inputs:], 4, axis=-1)
            write, keep, show = map(jax.nn.sigmoid, gates)
            c = keep * c + write * jnp.tanh(new)
            return (show * jnp.tanh(c), c), None

        zeros = jnp.zeros((len(x), width))
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), given)
        return h @ params["top"]["w"] + params["top"]["b"]

    return Model(f"LSTM of width {width}", init, apply)


def transformer(symbols: int, length: int, width: int, layers: int, heads: int) -> Model:
    """Returns a decoder whose weights are drawn with a deviation of 0.02."""

    def weights(key, *shape):
        return 0.02 * jax.random.normal(key, shape)

    def normalization():
        return {"gain": jnp.ones(width), "b": jnp.zeros(width)}

    def init(key):
        first, *keys = jax.random.split(key, layers + 1)
        first = jax.random.split(first, 3)
        return {
            "symbols": weights(first[0], symbols, width),
            "places": weights(first[1], length, width),
            "blocks": [block(key) for key in keys],
            "last": normalization(),
            "top": weights(first[2], width, symbols),
        }

    def block(key):
        shapes = (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)
        layers = dense(lambda key, shape: weights(key, *shape), jax.random.split(key, 4), *shapes)
        names = ("inputs", "out", "up", "down")
        norms = {"before attention": normalization(), "before dense": normalization()}
        return dict(zip(names, layers, strict=True)) | norms

    def linear(layer, x):
        return x @ layer["w"] + layer["b"]

    def normalize(layer, x):
        return jax.nn.standardize(x) * layer["gain"] + layer["b"]

    def apply(params, x):
        x = params["symbols"][x] + params["places"][: x.shape[1]]
        for p in params["blocks"]:
            y = linear(p["inputs"], normalize(p["before attention"], x))
            y = y.reshape(*y.shape[:2], 3, heads, -1)
            y = jax.nn.dot_product_attention(y[:, :, 0], y[:, :, 1], y[:, :, 2], is_causal=True)
            x += linear(p["out"], y.reshape(x.shape))
            y = jax.nn.gelu(linear(p["up"], normalize(p["before dense"], x)))
            x += linear(p["down"], y)
        return normalize(params["last"], x) @ params["top"]

    return Model(f"transformer, {layers} layers of width {width}", init, apply)
