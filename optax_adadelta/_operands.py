"""The scalars of a step: hyperparameters as the compiled update takes them.

They are strongly typed and of one dtype, so the update is compiled once, whatever their values are
and wherever they come from.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_adadelta._dtypes import float64_on_request
from optax_adadelta._equation import Decay, Scalar
from optax_adadelta._hyperparameters import Value


class Operands(NamedTuple):
    """The scalars of a step."""

    rate: Scalar  # the learning rate, with the sign of the update
    rho: Decay
    eps: Scalar
    weight_decay: Scalar
    momentum: Scalar | None

    def astype(self, dtype: np.dtype) -> "Operands":
        """Returns the operands in `dtype`."""
        return Operands(
            rate=self.rate.astype(dtype),
            rho=self.rho.astype(dtype),
            eps=self.eps.astype(dtype),
            weight_decay=self.weight_decay.astype(dtype),
            momentum=None if self.momentum is None else self.momentum.astype(dtype),
        )


def operands(sign: float, values: Mapping[str, Value]) -> Operands:
    """Returns the hyperparameters, by their names, in the widest float dtype that JAX allows."""
    explicit = float64_on_request()
    wide = np.dtype(np.float64) if explicit else jnp.result_type(float)

    def scalar(value: Value) -> Scalar:
        if isinstance(value, jax.Array):
            return value.astype(wide)
        # A NumPy scalar is faster, but JAX would not keep its dtype in the other case.
        return jax.lax.full((), value, wide) if explicit else wide.type(value)

    rho, momentum = values["rho"], values.get("momentum")
    if isinstance(rho, float):
        decay = Decay(scalar(rho), scalar(rho - float(wide.type(rho))), scalar(1.0 - rho))
    else:
        high = scalar(rho)
        decay = Decay(high, scalar(0.0), scalar(1.0) - high)
    return Operands(
        rate=scalar(sign) * scalar(values["learning_rate"]),
        rho=decay,
        eps=scalar(values["eps"]),
        weight_decay=scalar(values["weight_decay"]),
        momentum=None if momentum is None else scalar(momentum),
    )
