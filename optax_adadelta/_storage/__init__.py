"""How the two averages of a leaf are stored: one protocol, and one file for each storage.

Code outside this folder asks at most whether a leaf is quantized. The dtype of the arrays decides
which storage a leaf has.
"""

from typing import Any

from optax_adadelta._storage._base import MIN_QUANTIZED_EPS as MIN_QUANTIZED_EPS
from optax_adadelta._storage._base import MIN_QUANTIZED_RHO as MIN_QUANTIZED_RHO
from optax_adadelta._storage._base import Averages as Averages
from optax_adadelta._storage._base import Quantization as Quantization
from optax_adadelta._storage._base import Storage as Storage
from optax_adadelta._storage._base import unit_of as unit_of
from optax_adadelta._storage._eight import EightBits
from optax_adadelta._storage._full import FullPrecision
from optax_adadelta._storage._sixteen import SixteenBits

_STORAGES: dict[int | None, Storage] = {None: FullPrecision(), 16: SixteenBits(), 8: EightBits()}


def storage_with(state_bits: int | None) -> Storage:
    """Returns the storage that `state_bits` names."""
    return _STORAGES[state_bits]


def storage_of(e_g: Any, e_x: Any) -> Storage | None:
    """Returns the storage of the two averages of a leaf, or None if no storage has their dtypes."""
    for storage in _STORAGES.values():
        if e_g.dtype == e_x.dtype and e_g.dtype in storage.dtypes:
            return storage
    return None
