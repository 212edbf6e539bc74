"""How the two averages of a leaf are stored: one protocol, and one file for each storage.

Code outside this folder asks at most whether a leaf is quantized. The dtype of the arrays decides
which storage a leaf has.
"""

from optax_adadelta._storage._base import Averages as Averages
from optax_adadelta._storage._base import Quantization as Quantization
from optax_adadelta._storage._base import Storage as Storage
from optax_adadelta._storage._base import gain_of as gain_of
from optax_adadelta._storage._base import unit_of as unit_of
from optax_adadelta._storage._choice import checked_state_bits as checked_state_bits
from optax_adadelta._storage._choice import storage_with as storage_with
from optax_adadelta._storage._integrity import storages_of as storages_of
