"""Nothing but a name: states that 0.1.0 pickled say that their class is here."""

from optax_adadelta._state import AdadeltaState as AdadeltaState
