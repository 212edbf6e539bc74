"""Which storage an optimizer uses, and which one a leaf has."""

from typing import Any

import jax
import numpy as np

from optax_adadelta._storage._base import Storage
from optax_adadelta._storage._eight import S_GRID, WIDE_S_GRID, EightBits
from optax_adadelta._storage._full import FullPrecision
from optax_adadelta._storage._sixteen import SixteenBits

_STORAGES: dict[int | None, Storage] = {
    None: FullPrecision(),
    16: SixteenBits(octaves=64),
    8: EightBits(S_GRID),
}
# Relative to each array, the eps beside E[g^2] is tiny, so that E[g^2] needs a wider range.
_RELATIVE = _STORAGES | {16: SixteenBits(octaves=128), 8: EightBits(WIDE_S_GRID)}


def storage_with(state_bits: int | None, *, relative: bool = False) -> Storage:
    """Returns the storage that `state_bits` names; `relative` says what eps is relative to."""
    return (_RELATIVE if relative else _STORAGES)[state_bits]


def checked_state_bits(bits: Any) -> int | None:
    """Checks `state_bits` and returns it."""
    if bits is None:
        return None
    if isinstance(bits, jax.Array):
        raise TypeError(
            f"state_bits must be known when the optimizer is built; got {bits!r}. Under"
            " optax.inject_hyperparams, name it in static_args."
        )
    if isinstance(bits, bool) or np.ndim(bits) or bits not in list(_STORAGES):
        raise ValueError(
            f"state_bits must be {', '.join(str(b) for b in _STORAGES if b)}, or None for full"
            f" precision; got {bits!r}. Fewer than 8 bits do not train as full precision does."
        )
    return int(bits)


def stored_dtypes() -> str:
    """Returns the dtypes that averages may have, as errors list them."""
    return ", ".join(str(dtype) for storage in _STORAGES.values() for dtype in storage.dtypes)


def storage_of(e_g: Any, e_x: Any, *, relative: bool) -> Storage | None:
    """Returns the storage of the two averages of a leaf, or None if no storage has their dtypes."""
    for storage in (_RELATIVE if relative else _STORAGES).values():
        if e_g.dtype == e_x.dtype and e_g.dtype in storage.dtypes:
            return storage
    return None
