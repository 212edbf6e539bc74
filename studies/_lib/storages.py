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
# Compared by their programs alone.
NADADELTAS = {f"nadadelta, {name}": nadadelta(state_bits=bits) for name, bits in STORAGES.items()}
