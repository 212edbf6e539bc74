"""A small program of a user, for type checkers to read; it also runs."""

from typing import cast

import jax
import jax.numpy as jnp
import optax

from optax_adadelta import (
    AdadeltaState,
    adadelta,
    clip_by_global_norm,
    convert,
    diagnostics,
    scale_by_adadelta,
    stochastic_round,
)

Params = dict[str, jax.Array]


def loss(params: Params) -> jax.Array:
    return jnp.sum(params["w"] ** 2)


def train(optimizer: optax.GradientTransformation, params: Params, steps: int) -> Params:
    state = optimizer.init(params)
    for _ in range(steps):
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        params = cast(Params, optax.apply_updates(params, updates))
    return params


def main() -> None:
    params = {"w": jnp.array([3.0, -2.0])}
    schedule = optax.cosine_decay_schedule(1.0, 10)
    for optimizer in (
        adadelta(),
        adadelta(schedule, rho=0.9, eps=jnp.float32(1e-7), weight_decay=1e-4, state_bits=8),
        adadelta(weight_decay=0.1, weight_decay_mask=lambda params: {"w": True}),
        optax.chain(clip_by_global_norm(1.0), adadelta(None), stochastic_round(seed=1)),
        optax.chain(scale_by_adadelta(eps=schedule), optax.scale(-1.0)),
    ):
        print(loss(train(optimizer, params, steps=3)))

    state = adadelta().init(params)
    assert isinstance(state, AdadeltaState)
    count: int = int(state.count)
    unit: jax.Array | None = state.unit
    print(count + 1, unit, jax.tree.leaves(state.e_g))

    state = convert.with_state_bits(state, 16, eps=1e-6)
    state = convert.carry_over(state, adadelta(state_bits=16).init(params))
    saved = convert.to_torch(state, dict, names=["w"], rho=0.9)
    state = convert.from_torch(saved, dict, names={"w": params["w"]})
    found: AdadeltaState = diagnostics.find_state(state)
    print(diagnostics.averages(found).e_x)
    print(diagnostics.effective_learning_rate(found, eps=1e-6))
    coordinates = diagnostics.choose_coordinates(found, size=1)
    sample: diagnostics.Sample = diagnostics.sample(found, params, coordinates, eps=1e-6)
    print(sample.rate["w"].mean(), int(sample.count))


if __name__ == "__main__":
    main()
