"""A few numbers that summarize a state, for a logger."""

import collections
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_adadelta._averages import units_of
from optax_adadelta._bits import bits_of, from_bits
from optax_adadelta._equation import Epsilons
from optax_adadelta._hyperparameters import at_step, number_or_schedule
from optax_adadelta._injected import states_with_eps
from optax_adadelta._sharding import counted, repeated, replicated
from optax_adadelta._state import AdadeltaState
from optax_adadelta._storage import Averages, Storage, storages_of, unit_of
from optax_adadelta._trees import unzipped
from optax_adadelta.diagnostics._rates import effective_rates, epsilons_at, last_step
from optax_adadelta.diagnostics._samples import by_name

# Rates are counted in bins of 1/16 of an octave: the 12 leading bits of a positive float32.
_SHIFT = 19
_BINS = 2 ** (31 - _SHIFT)
_NOT_FINITE = _BINS - 1
_LARGE = 2**14


def summaries(
    state: Any,
    eps: optax.ScalarOrSchedule | None = None,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    group: Callable[[str], str | None] | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
) -> dict[str, jax.Array]:
    r"""Returns a flat dictionary of scalars that shows how a run is doing, for any logger.

    The keys for the whole model are these; those of a group of parameters begin with its name, as
    in ``layer/w/effective_learning_rate/mean``:

    - ``effective_learning_rate/mean``, and ``effective_learning_rate/q05``, ``q50`` and ``q95``,
      the quantiles: see :func:`effective_learning_rate`. Coordinates where it is NaN or infinite
      are left out.
    - ``share/dominated_by_eps``: the share of coordinates with :math:`E[g^2] < \epsilon`. Their
      gradients are so small that eps decides how far they move.
    - ``share/at_rest``: the share of coordinates with :math:`E[\Delta x^2] < \epsilon / 100`. Their
      recent updates are below a tenth of :math:`\sqrt\epsilon`, while the first step of a
      coordinate with a clear gradient is larger than :math:`\sqrt\epsilon`.
    - ``share/not_finite``: the share of coordinates whose effective learning rate is NaN or
      infinite.

    Call it after a step, inside ``jax.jit`` or outside. Schedules have their values of that step;
    before the first step, those of the first. A quantile comes from a histogram, so it may be 3.2 %
    off. On CPU it takes the time of about four steps of the optimizer, and for a moment 20 bytes
    per coordinate of the largest leaf. With averages in 8 bits, the two shares that compare with
    eps are approximate.

    Args:
      state: the state of any optimizer that contains an :class:`.AdadeltaState`, or several that
        have different parameters, such as that of :func:`optax.multi_transform`.
      eps: the optimizer's :math:`\epsilon`, a positive scalar or the schedule itself. None takes it
        from the state of :func:`optax.inject_hyperparams`. For :func:`.nadadelta`, the share:
        E[dx^2] is then compared with :math:`\epsilon r^2` and E[g^2] with :math:`k / r^2`.
      learning_rate: the optimizer's :math:`\alpha`, a scalar of at least 0 or the schedule itself.
      group: a function from the name of a leaf, which is its path joined by ``/``, to the name of
        its group, or to None if it should count for the whole model only. By default each leaf is a
        group. ``lambda name: name.split("/")[0]`` makes a group per layer, ``lambda name: None``
        none.
      quantiles: which quantiles of the effective learning rate, between 0 and 1.

    Returns:
      A dictionary from names to float32 scalars. Without any coordinate, there is no entry.

    Raises:
      TypeError: ``eps`` or ``learning_rate`` is not a real number or a schedule.
      ValueError: ``eps`` is None and the state has no injected one; a number is out of its range;
        there is no :class:`.AdadeltaState` in ``state``; or two leaves have the same name.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.diagnostics import summaries
      >>> optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(adadelta)(eps=1e-6))
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
      >>> grads = {"w": jnp.full((2, 3), 0.1), "b": jnp.full(3, 0.001)}
      >>> _, state = optimizer.update(grads, optimizer.init(params), params)
      >>> for name, value in summaries(state, group=lambda name: None).items():
      ...     print(f"{name}: {value:.2f}")
      effective_learning_rate/mean: 0.38
      effective_learning_rate/q05: 0.06
      effective_learning_rate/q50: 0.06
      effective_learning_rate/q95: 1.00
      share/at_rest: 0.00
      share/dominated_by_eps: 0.33
      share/not_finite: 0.00

    References:
      Zeiler, `ADADELTA: An Adaptive Learning Rate Method
      <https://arxiv.org/abs/1212.5701>`_, 2012, Section 4.3.
    """
    quantiles = tuple(float(q) for q in quantiles)
    if not all(0 <= q <= 1 for q in quantiles):
        raise ValueError(f"Each of quantiles must be between 0 and 1; got {quantiles}.")
    names: list[str] = []
    parts = []
    for found, own_eps in states_with_eps(state, eps):
        names += by_name(found.e_g)
        last = last_step(found)
        rate = at_step("learning_rate", number_or_schedule("learning_rate", learning_rate), last)
        parts.append((found, at_step("eps", own_eps, last), rate))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"Two AdadeltaStates have a leaf {twice!r}. Pass one of them alone, as find_state"
            " returns it."
        )
    groups = tuple(name if group is None else group(name) for name in names)
    return _summarized(parts, groups, quantiles)


@partial(jax.jit, static_argnums=(1, 2))
def _summarized(
    parts: Sequence[tuple[AdadeltaState, Any, Any]],
    groups: tuple[Hashable, ...],
    quantiles: tuple[float, ...],
) -> dict[str, jax.Array]:
    """Returns the summaries; `groups` has the group of each leaf."""
    remaining = list(groups)
    batches = [
        (batch, rate) for state, eps, rate in parts for batch in _batches(state, eps, remaining)
    ]
    names = list(dict.fromkeys(name for batch, _ in batches for name in batch.groups))
    if not names:
        return {}
    sums = jnp.zeros(len(names), jnp.float32)
    counts = jnp.zeros((len(names), _BINS, 2, 2), jnp.float32)
    for batch, rate in batches:
        own = [names.index(name) for name in batch.groups]
        batch_sums, batch_counts = _counts(batch, rate)
        sums = sums.at[np.array(own)].add(batch_sums)
        counts = counts.at[np.array(own)].add(batch_counts)
    sums = jnp.append(sums, sums.sum())
    counts = jnp.concatenate([counts, counts.sum(0, keepdims=True)])
    values = jax.vmap(partial(_values, quantiles=quantiles))(sums, counts)
    prefixes = [f"{name}/" if name else None for name in names] + [""]
    return {
        prefix + key: value[i]
        for i, prefix in enumerate(prefixes)
        if prefix is not None
        for key, value in values.items()
    }


class _Batch(NamedTuple):
    """Leaves that are counted together.

    Attributes:
      averages: the averages of all of them.
      eps: scalars, or arrays with the numbers of each coordinate.
      groups: the names of their groups, each once.
      owners: the index of the group of each leaf.
      sizes: the number of coordinates of each leaf.
    """

    averages: Averages
    eps: Epsilons
    groups: list[Hashable]
    owners: list[int]
    sizes: list[int]


def _batches(state: AdadeltaState, eps: jax.Array, groups: list[Hashable]) -> Iterator[_Batch]:
    """Yields the leaves that are not empty, and takes their groups off the list.

    A large leaf is a batch, which takes the least memory. All small leaves of one storage are
    another, because a program for each of them would take long to compile.
    """
    e_gs, e_xs = jax.tree.leaves(state.e_g), jax.tree.leaves(state.e_x)
    small = collections.defaultdict(list)
    for i, (storage, units, e_g, e_x) in enumerate(
        zip(storages_of(state), units_of(state), e_gs, e_xs, strict=True)
    ):
        group, stored = groups.pop(0), Averages(e_g, e_x)
        if storage.quantized:
            own = epsilons_at(i, unit_of(eps), state, np.dtype(np.float32))
        else:
            own = epsilons_at(i, eps, state, e_g.dtype)
        if e_g.size >= _LARGE:
            yield _Batch(storage.read(stored, units), own, [group], [0], [e_g.size])
        elif e_g.size:
            small[storage, e_g.dtype].append((group, stored, units, own))
    for (storage, _), leaves in small.items():
        yield _joined(storage, *unzipped(leaves, 4), alike=state.scale is None)


def _joined(
    storage: Storage,
    leaf_groups: list[Hashable],
    leaves: list[Averages],
    units: list[Epsilons | None],
    eps: list[Epsilons],
    *,
    alike: bool,
) -> _Batch:
    """Returns one batch of several leaves; `alike` says whether all have the same eps."""
    stored = Averages(
        *(jnp.concatenate([replicated(x).ravel() for x in xs]) for xs in unzipped(leaves, 2))
    )
    names = list(dict.fromkeys(leaf_groups))
    sizes = [leaf.e_g.size for leaf in leaves]

    def along(numbers):
        if alike or numbers[0] is None:
            return numbers[0]
        repeats = jax.lax.optimization_barrier(jnp.array(sizes, jnp.int32))
        return Epsilons(
            *(repeated(jnp.stack(xs), repeats, stored.e_g) for xs in unzipped(numbers, 2))
        )

    return _Batch(
        storage.read(stored, along(units)),
        along(eps),
        names,
        [names.index(group) for group in leaf_groups],
        sizes,
    )


def _counts(batch: _Batch, learning_rate: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of the finite rates, and how many coordinates are in each cell.

    The cells have the axes [group, bin of the rate, dominated by eps, at rest].
    """
    (e_g, e_x), eps = batch.averages, batch.eps
    rates = effective_rates(e_g, e_x, eps, learning_rate).astype(jnp.float32)
    finite = jnp.isfinite(rates)
    # Rounded to nearest, so that a rate of 1 is a bin's value.
    bins = (bits_of(rates) + np.int32(1 << (_SHIFT - 1))) >> _SHIFT
    cells = 4 * jnp.where(finite, bins, np.int32(_NOT_FINITE))
    cells += 2 * (e_g < eps.g).astype(jnp.int32) + (e_x < 0.01 * eps.x).astype(jnp.int32)
    rates = jnp.where(finite, rates, 0)
    size = len(batch.groups)
    if size == 1:
        sums = rates.sum()[None]
    else:
        # Without the barrier, the compiler would compute the owners, which takes it long.
        owners, sizes = jax.lax.optimization_barrier(
            (jnp.array(batch.owners, jnp.int32), jnp.array(batch.sizes, jnp.int32))
        )
        owner = repeated(owners, sizes, cells)
        cells += 4 * _BINS * owner
        sums = jax.ops.segment_sum(rates, owner, size)
    counts = counted(cells, 4 * _BINS * size).reshape(size, _BINS, 2, 2)
    return sums, counts.astype(jnp.float32)


def _values(
    total: jax.Array, counts: jax.Array, quantiles: tuple[float, ...]
) -> dict[str, jax.Array]:
    rates = counts.sum((1, 2))
    size = rates.sum()
    below = jnp.cumsum(rates[:_NOT_FINITE])
    finite = below[-1]
    values = {"effective_learning_rate/mean": total / finite}
    # The first bin with at least this share of the rates in it or below it.
    least = jnp.maximum(jnp.array(quantiles, jnp.float32) * finite, 1)
    bins = jnp.sum(below[None] < least[:, None], axis=1)
    at = jnp.where(finite > 0, from_bits(bins.astype(jnp.int32) << _SHIFT), jnp.nan)
    for i, q in enumerate(quantiles):
        percent = round(100 * q, 10)
        name = f"{int(percent):02}" if percent == int(percent) else f"{percent:g}"
        values[f"effective_learning_rate/q{name}"] = at[i]
    values["share/dominated_by_eps"] = counts[:, 1].sum() / size
    values["share/at_rest"] = counts[:, :, 1].sum() / size
    values["share/not_finite"] = rates[_NOT_FINITE] / size
    return values
