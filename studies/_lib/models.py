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


def convolutions() -> Model:
    """Returns a network of two convolutions for images of 14 x 14."""

    def init(key):
        return dense(HE, jax.random.split(key, 3), (9 * 1, 16), (9 * 16, 32), (4 * 32, 10))

    def convolution(layer, x):
        # As a product of matrices. Many networks side by side are slow with lax.conv on a CPU.
        size = x.shape[1] - 2
        places = itertools.product(range(3), range(3))
        patches = [x[:, i : i + size : 2, j : j + size : 2] for i, j in places]
        return jax.nn.relu(jnp.concatenate(patches, axis=-1) @ layer["w"] + layer["b"])

    def apply(params, x):
        x = convolution(params[1], convolution(params[0], x))
        return x.reshape(len(x), -1) @ params[2]["w"] + params[2]["b"]

    name = "two 3 x 3 convolutions with stride 2, of 16 and 32 channels, on 14 x 14"
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
