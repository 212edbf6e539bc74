"""States that were pickled by version 0.1.0 look for their class here."""

from optax_adadelta._state import AdadeltaState as AdadeltaState
