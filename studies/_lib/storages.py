"""The storages and the optimizers that studies compare. A new storage is an entry of STORAGES.

Every study measures it in its next run. Tables show those that the results have.
"""

import optax

from optax_adadelta import adadelta, nadadelta

RHO, EPS = 0.95, 1e-6
STORAGES = {"float32": None, "16 bits": 16, "8 bits": 8}
# The steps that are compared, one of each storage and Optax's.
RULES: dict[str, optax.GradientTransformation] = {
    name: adadelta(rho=RHO, eps=EPS, state_bits=bits) for name, bits in STORAGES.items()
}
RULES["optax"] = optax.adadelta(1.0, RHO, EPS)
NADADELTAS = {f"nadadelta, {name}": nadadelta(state_bits=bits) for name, bits in STORAGES.items()}
# What people would use in place of nadadelta, and the parts of Optax that it could be made of.
BESIDE_NADADELTA: dict[str, optax.GradientTransformation] = {
    "Optax's parts": optax.chain(
        optax.scale_by_adadelta(RHO, EPS), optax.trace(0.9, nesterov=True), optax.scale(-1.0)
    ),
    "adam": optax.adam(1e-3),
    "prodigy": optax.contrib.prodigy(),
}
