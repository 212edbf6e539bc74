"""States from and to torch.optim.Adadelta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from optax_adadelta._hyperparameters import at_step, number_or_schedule
from optax_adadelta._ranges import out_of_range
from optax_adadelta._state import AdadeltaState
from optax_adadelta._storage import Averages
from optax_adadelta.convert._arrays import as_numpy, as_tensor, empty_like
from optax_adadelta.convert._names import (
    averages_problems,
    check_unique,
    difference,
    groups_of,
    named,
)
from optax_adadelta.convert._problems import refuse
from optax_adadelta.convert._trees import Named, averages_of, state_of

_AVERAGES = ("square_avg", "acc_delta")
_HYPERPARAMETERS = {
    "learning_rate": "lr",
    "rho": "rho",
    "eps": "eps",
    "weight_decay": "weight_decay",
}


def from_torch(
    optimizer_state_dict: Mapping[str, Any],
    to_params: Callable[[dict[str, np.ndarray]], Any],
    *,
    names: Any = None,
) -> AdadeltaState:
    """Returns the state of a run that began with ``torch.optim.Adadelta``, to continue it in JAX.

    ``to_params`` is the function with which you convert the weights. It is called with numbered
    elements to see where each one goes, and the averages are moved in the same way. So it may
    rename, transpose, reshape, split and join arrays; if it does more, an error says so.

    Args:
      optimizer_state_dict: what ``optimizer.state_dict()`` returns, or what
        ``torch.load(file, weights_only=True)`` reads of it. Its arrays may be tensors on any
        device, of any floating-point or complex dtype, or NumPy arrays.
      to_params: takes a dict from parameter name to NumPy array and returns the parameters for JAX.
      names: the parameters with their names, in the order in which the optimizer got them:
        ``model.named_parameters()``, or a mapping. It can be left out if the optimizer was made
        with ``model.named_parameters()``, because its state then has the names. Names alone also
        work, but then shapes are not checked, and parameters without state cannot be converted.
        For several groups, pass all parameters one after another, or a list for each group.

    Returns:
      An :class:`.AdadeltaState` in full precision, with the structure and dtypes of
      ``adadelta().init(params)``. ``count`` is the largest number of steps of any parameter.
      Parameters that have not been trained yet get averages of zero. In place of each complex
      parameter there are its real and imaginary parts, because torch treats them as two
      parameters: the state is that of ``optax.contrib.split_real_and_imaginary(adadelta())``
      once you wrap it in ``optax.contrib.SplitRealAndImaginaryState``.

    Raises:
      ValueError: names or shapes do not match; the state is not that of
        ``torch.optim.Adadelta``; or ``to_params`` does more than move elements. The error lists
        everything that does not match.

    Example:
      >>> import numpy as np
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import from_torch, hyperparameters_from_torch
      >>> def to_params(tensors):
      ...     return {"kernel": tensors["weight"].T, "bias": tensors["bias"]}
      >>> weights = {"weight": np.ones((2, 3), "f"), "bias": np.zeros(2, "f")}
      >>> saved = {  # optimizer.state_dict()
      ...     "state": {
      ...         i: {"step": 7.0, "square_avg": 0.1 * w, "acc_delta": 0.01 * w}
      ...         for i, w in enumerate(weights.values())
      ...     },
      ...     "param_groups": [
      ...         {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "params": [0, 1]}
      ...     ],
      ... }
      >>> state = from_torch(saved, to_params, names=weights)
      >>> print(state.count, state.e_g["kernel"].shape)
      7 (3, 2)
      >>> optimizer = adadelta(**hyperparameters_from_torch(saved))
      >>> params = to_params(weights)
      >>> updates, state = optimizer.update(params, state, params)
    """
    groups = _groups(optimizer_state_dict)
    keys = [key for group in groups for key in group["params"]]
    parameters = _parameters(groups, keys, names)
    states, known = optimizer_state_dict["state"], set(keys)
    problems = [f"state {key}: belongs to no parameter" for key in states if key not in known]
    steps = [0]
    averages: dict[str, Averages] = {}
    fresh: set[str] = set()
    for key, (name, like) in zip(keys, parameters.items(), strict=True):
        state = states.get(key)
        if not state:
            fresh.add(name)
            if like is not None:
                zeros = empty_like(like)
                averages[name] = Averages(zeros, zeros)
        elif {"step", *_AVERAGES} != set(state):
            problems.append(f"{name}: its state has {sorted(state)}, not step and {_AVERAGES}")
        else:
            steps.append(int(as_numpy(state["step"])))
            averages[name] = Averages(*(state[field] for field in _AVERAGES))
    problems += averages_problems(parameters, averages)
    refuse("The state cannot be converted", problems)
    # torch skips parameters without a gradient, so the largest count is that of the run.
    return state_of(Named(max(steps), averages, frozenset(fresh)), to_params)


def to_torch(
    state: Any,
    to_tensors: Callable[[Any], Mapping[str, Any]],
    *,
    names: Any,
    learning_rate: optax.ScalarOrSchedule | list = 1.0,
    rho: optax.ScalarOrSchedule | list = 0.95,
    eps: optax.ScalarOrSchedule | list = 1e-6,
    weight_decay: optax.ScalarOrSchedule | list = 0.0,
) -> dict[str, Any]:
    """Returns a state dict for ``torch.optim.Adadelta``, to continue a run there.

    ``to_tensors`` is the function with which you convert the weights, the inverse of ``to_params``
    for :func:`from_torch`. It too may only move elements. Of a state of :func:`.nadadelta`, the
    averages are converted, in the units of the parameters. The trace and the scale are left out.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains one, in any
        storage. It may contain several if each is for other parameters, as with
        :func:`optax.multi_transform`.
      to_tensors: takes the tree of parameters, with NumPy arrays in it, and returns a mapping from
        parameter name to tensor or array. None in place of one means that the parameter has no
        state.
      names: the parameters with their names, in the order in which the optimizer got them:
        ``model.named_parameters()``, or a mapping. For several groups, a list with such for each.
        Names alone also work, but then shapes are not checked.
      learning_rate: as for :func:`.adadelta`; a schedule is evaluated at the state's count. Here
        and in the next three, a list has a value for each group.
      rho: as for :func:`.adadelta`.
      eps: as for :func:`.adadelta`.
      weight_decay: as for :func:`.adadelta`.

    Returns:
      A dict for ``optimizer.load_state_dict``. It has copies, which are tensors if torch is
      imported. torch casts the averages to the dtypes of its parameters.

    Raises:
      TypeError: ``to_tensors`` does not return a mapping, or a hyperparameter is not a number.
      ValueError: names or shapes do not match, or ``to_tensors`` does more than move elements. The
        error lists everything that does not match. Or a list does not have a value for each group.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import to_torch
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
      >>> def to_tensors(params):  # with torch: torch.from_numpy(params["kernel"].T)
      ...     return {"weight": params["kernel"].T, "bias": params["bias"]}
      >>> state = adadelta().init(params)
      >>> saved = to_torch(state, to_tensors, names=["weight", "bias"])
      >>> print(saved["state"][0]["square_avg"].shape, saved["param_groups"][0]["lr"])
      (2, 3) 1.0
    """
    groups = groups_of(names)
    parameters = {name: like for group in groups for name, like in group.items()}
    found = averages_of(state, to_tensors, "to_tensors", parameters)
    given = {"learning_rate": learning_rate, "rho": rho, "eps": eps, "weight_decay": weight_decay}
    values = {
        _HYPERPARAMETERS[name]: _numbers(name, value, len(groups), found.count)
        for name, value in given.items()
    }
    indices = {name: index for index, name in enumerate(parameters)}
    return {
        "state": {
            indices[name]: {
                "step": float(found.count),
                "square_avg": as_tensor(pair.e_g),
                "acc_delta": as_tensor(pair.e_x),
            }
            for name, pair in found.averages.items()
        },
        "param_groups": [
            {
                **{name: numbers[i] for name, numbers in values.items()},
                "foreach": None,
                "maximize": False,
                "capturable": False,
                "differentiable": False,
                "params": [indices[name] for name in group],
            }
            for i, group in enumerate(groups)
        ],
    }


def hyperparameters_from_torch(state_dict: Mapping[str, Any]) -> Any:
    """Returns the arguments for :func:`.adadelta` that continue a run of ``torch.optim.Adadelta``.

    Args:
      state_dict: what ``optimizer.state_dict()`` returns.

    Returns:
      A dict with ``learning_rate``, ``rho``, ``eps`` and ``weight_decay``. If there are several
      groups, a list with a dict for each: use :func:`optax.multi_transform`. ``learning_rate`` is
      the current one. If a scheduler changes it, write a schedule in its place.

    Raises:
      ValueError: the state is not that of ``torch.optim.Adadelta``, or its settings are not those
        of :func:`.adadelta`. With ``maximize=True``, the error says what to write.

    Example:
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import hyperparameters_from_torch
      >>> group = {"lr": 0.5, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "params": [0]}
      >>> given = hyperparameters_from_torch({"state": {}, "param_groups": [group]})
      >>> print(given)
      {'learning_rate': 0.5, 'rho': 0.9, 'eps': 1e-06, 'weight_decay': 0.0}
      >>> optimizer = adadelta(**given)
    """
    groups = _groups(state_dict)
    found = [
        {name: float(as_numpy(group[theirs])) for name, theirs in _HYPERPARAMETERS.items()}
        for group in groups
    ]
    problems: list[str] = []
    for i, (group, given) in enumerate(zip(groups, found, strict=True)):
        if group.get("maximize"):
            arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
            problems.append(
                f"group {i}: maximize=True; write optax.chain(optax.scale(-1.0),"
                f" adadelta({arguments})), and pass the gradients as they are"
            )
        problems += [f"group {i}: {problem}" for problem in out_of_range(given)]
    refuse("adadelta has no such settings", problems)
    return found[0] if len(found) == 1 else found


def _groups(state_dict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        has = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(
            f"The state dict of an optimizer has state and param_groups; got {has}. Pass"
            " optimizer.state_dict(), which may be an entry of a checkpoint."
        )
    groups = state_dict["param_groups"]
    needed = {"params", *_HYPERPARAMETERS.values()}
    problems = [
        f"group {i}: has {sorted(group)}, not {', '.join(sorted(needed - group.keys()))}"
        for i, group in enumerate(groups)
        if not needed <= group.keys()
    ]
    refuse("This is not the state of torch.optim.Adadelta", problems)
    return groups


def _parameters(groups: list[Mapping[str, Any]], keys: list[Any], names: Any) -> dict[str, Any]:
    """Returns the parameters by name, in the order of `keys`."""
    if all("param_names" in group for group in groups):
        own = [name for group in groups for name in group["param_names"]]
    else:
        own = keys if keys and all(isinstance(key, str) for key in keys) else None
    given: dict[str, Any] = {} if names is None else named(names)
    if own is None and names is None:
        raise ValueError(
            "The state has no names of parameters. Pass names=model.named_parameters(), with the"
            " parameters that the optimizer got, in the same order."
        )
    if own is not None:
        check_unique(own)
        if len(own) != len(keys):
            raise ValueError(
                f"The optimizer has {len(keys)} parameters, but its state has {len(own)} names."
            )
        refuse("The names do not match", difference(given, own, "names") if given else [])
        return {name: given.get(name) for name in own}
    if len(given) != len(keys):
        raise ValueError(
            f"The optimizer has {len(keys)} parameters, but names has {len(given)}:"
            f" {', '.join(given)}. Pass those that the optimizer got, in the same order."
        )
    return given


def _numbers(name: str, value: Any, groups: int, count: int) -> list[float]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{name} has {len(values)} values for {groups} groups; pass one for each.")
    return [float(at_step(name, number_or_schedule(name, one), count)) for one in values]
