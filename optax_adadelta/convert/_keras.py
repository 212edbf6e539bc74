"""States from and to keras.optimizers.Adadelta."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optax_adadelta._ranges import out_of_range
from optax_adadelta._state import AdadeltaState
from optax_adadelta._storage import Averages
from optax_adadelta.convert._arrays import as_numpy
from optax_adadelta.convert._keras_file import KerasFile, updates_made
from optax_adadelta.convert._names import averages_problems, difference, named
from optax_adadelta.convert._problems import refuse
from optax_adadelta.convert._trees import Named, averages_of, state_of

_FIELDS = ("accumulated_grad", "accumulated_delta_var")
# What to write for the settings of any optimizer of Keras.
_REMEDIES = {
    "weight_decay": "it is decoupled in Keras; write optax.chain({rule},"
    " optax.add_decayed_weights(...), optax.scale_by_learning_rate({rate}))",
    "clipnorm": "it clips the gradient of each variable on its own; write optax.chain("
    "optax.stateless_with_tree_map(lambda g, _: g * jnp.minimum(1.0, ... / jnp.linalg.norm(g))),"
    " {rule}, optax.scale_by_learning_rate({rate}))",
    "clipvalue": "write optax.chain(optax.clip(...), {rule}, optax.scale_by_learning_rate({rate}))",
    "global_clipnorm": "write optax.chain(clip_by_global_norm(...), {rule},"
    " optax.scale_by_learning_rate({rate}))",
    "use_ema": "average the parameters after each step, as with optax.incremental_update",
    "gradient_accumulation_steps": "write optax.MultiSteps(optax.chain({rule},"
    " optax.scale_by_learning_rate({rate})), every_k_schedule=...)",
    "loss_scale_factor": "multiply the loss, and divide the gradients",
}


def from_keras(
    source: Any, to_params: Callable[[dict[str, np.ndarray]], Any], *, variables: Any
) -> AdadeltaState:
    """Returns the state of a run that began with ``keras.optimizers.Adadelta``, for JAX.

    ``to_params`` is the function with which you convert the weights. It is called with numbered
    elements to see where each one goes, and the averages are moved in the same way. So it may
    rename, transpose, reshape, split and join arrays; if it does more, an error says so.

    Args:
      source: the optimizer of a model in Keras 3, with any backend, or the path of a ``.keras`` or
        ``.weights.h5`` file. Files need the package h5py, which Keras installs.
      to_params: takes a dict from the path of a variable, such as ``"sequential/dense/kernel"``,
        to a NumPy array, and returns the parameters for JAX.
      variables: ``model.trainable_variables``, or a mapping from their paths to arrays of their
        shapes, in the same order. An optimizer's averages are matched by path. A file has no
        paths for them, so there only the order and the shapes count.

    Returns:
      An :class:`.AdadeltaState` in full precision, with the structure and dtypes of
      ``adadelta().init(params)``.

    Raises:
      ModuleNotFoundError: a file is to be read, and h5py is not installed.
      ValueError: paths or shapes do not match; the averages are not those of
        ``keras.optimizers.Adadelta``; or ``to_params`` does more than move elements. The error
        lists everything that does not match. Or accumulated gradients wait for an update.

    Example:
      >>> import numpy as np
      >>> from optax_adadelta.convert import from_keras
      >>> class Variable:  # what Keras has
      ...     def __init__(self, path, array):
      ...         self.path, self.array, self.shape = path, array, array.shape
      ...     def __array__(self, dtype=None, copy=None):
      ...         return self.array
      >>> kernel = Variable("dense/kernel", np.ones((3, 2), "f"))
      >>> arrays = {
      ...     "iteration": np.array(7),
      ...     "dense_kernel_accumulated_grad": np.full((3, 2), 0.1, "f"),
      ...     "dense_kernel_accumulated_delta_var": np.full((3, 2), 0.01, "f"),
      ... }
      >>> class Adadelta:  # model.optimizer, with model.trainable_variables
      ...     variables = [
      ...         Variable(path=f"adadelta/{name}", array=array)
      ...         for name, array in arrays.items()
      ...     ]
      >>> def to_params(arrays):
      ...     return {"w": arrays["dense/kernel"]}
      >>> state = from_keras(Adadelta(), to_params, variables=[kernel])
      >>> print(state.count, state.e_g["w"].shape)
      7 (3, 2)
    """
    parameters = named(variables)
    if isinstance(source, (str, os.PathLike)):
        count, arrays = KerasFile(source).read(parameters)
    else:
        pairs, problems = _variables(source, parameters)
        refuse("The optimizer's state cannot be converted", problems)
        arrays = {name: Averages(*pair) for name, pair in pairs.items()}
        count = updates_made(as_numpy(_iteration(source)), _batches_per_update(source))
    refuse("The optimizer's state cannot be converted", averages_problems(parameters, arrays))
    return state_of(Named(count, arrays), to_params)


def to_keras(
    state: Any, to_arrays: Callable[[Any], Mapping[str, Any]], optimizer: Any, *, variables: Any
) -> None:
    """Puts a state into a ``keras.optimizers.Adadelta``, to continue a run in Keras.

    ``to_arrays`` is the function with which you convert the weights, the inverse of ``to_params``
    for :func:`from_keras`. It too may only move elements. If something does not match, the
    optimizer stays as it is. Of a state of :func:`.nadadelta`, the averages are converted, in the
    units of the parameters. The trace and the scale are left out.

    Args:
      state: an :class:`.AdadeltaState`, or the state of any optimizer that contains one, in any
        storage. It may contain several if each is for other parameters, as with
        :func:`optax.multi_transform`.
      to_arrays: takes the tree of parameters, with NumPy arrays in it, and returns a mapping from
        the path of a variable to an array.
      optimizer: the optimizer of the model, with any backend. It is built if it is not yet. Its
        hyperparameters stay as they are.
      variables: ``model.trainable_variables``.

    Raises:
      TypeError: ``to_arrays`` does not return a mapping.
      ValueError: paths or shapes do not match; the optimizer is not an Adadelta; or ``to_arrays``
        does more than move elements. The error lists everything that does not match.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import to_keras
      >>> state = adadelta().init({"w": jnp.ones((3, 2))})
      >>> def to_arrays(params):
      ...     return {"sequential/dense/kernel": params["w"]}
      >>> def save(state, model):
      ...     to_keras(state, to_arrays, model.optimizer, variables=model.trainable_variables)
      ...     model.save("model.keras")
    """
    parameters = named(variables)
    found = averages_of(state, to_arrays, "to_arrays", parameters)
    refuse(
        "The state does not fit the variables",
        [f"{name}: missing in what to_arrays returns" for name in sorted(found.fresh)],
    )
    if not optimizer.built:
        optimizer.build(list(variables))
    targets, problems = _variables(optimizer, parameters)
    refuse("The state does not fit the optimizer", problems)
    for name, pair in found.averages.items():
        for variable, average in zip(targets[name], pair, strict=True):
            variable.assign(np.array(as_numpy(average)))
    _iteration(optimizer).assign(found.count * _batches_per_update(optimizer))


def _iteration(optimizer: Any) -> Any:
    (variable,) = (v for v in optimizer.variables if v.path.endswith("/iteration"))
    return variable


def _batches_per_update(optimizer: Any) -> int:
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def _variables(
    optimizer: Any, parameters: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Returns the two variables of the optimizer for each parameter, and what does not match."""
    known = {v.path.rpartition("/")[2]: v for v in optimizer.variables}
    expected = {
        name: tuple(f"{name.replace('/', '_')}_{field}" for field in _FIELDS) for name in parameters
    }
    wanted = [path for pair in expected.values() for path in pair]
    averages = [path for path in known if path.endswith(_FIELDS)]
    problems = difference(averages, wanted, "the optimizer")
    if len(set(wanted)) < len(wanted):
        problems.append("two variables have the same path, apart from / and _; rename one")
    if problems:
        return {}, problems
    return {name: (known[e_g], known[e_x]) for name, (e_g, e_x) in expected.items()}, []


def hyperparameters_from_keras(source: Any) -> dict[str, float]:
    """Returns the arguments for :func:`.adadelta` that continue a run of Keras's Adadelta.

    Args:
      source: the optimizer of a model in Keras 3, or the path of a ``.keras`` file.

    Returns:
      A dict with ``learning_rate``, ``rho`` and ``eps``.

    Raises:
      ValueError: the optimizer is not an Adadelta, or it has settings that :func:`.adadelta` does
        not have, such as decoupled weight decay, clipping or a learning rate schedule; the error
        says what to write for each. Or a number is out of the range of :func:`.adadelta`.

    Example:
      >>> from optax_adadelta import adadelta
      >>> from optax_adadelta.convert import hyperparameters_from_keras
      >>> class Adadelta:  # model.optimizer
      ...     def get_config(self):
      ...         return {"learning_rate": 1.0, "rho": 0.95, "epsilon": 1e-7}
      >>> print(hyperparameters_from_keras(Adadelta()))
      {'learning_rate': 1.0, 'rho': 0.95, 'eps': 1e-07}
    """
    if isinstance(source, (str, os.PathLike)):
        class_name, config = KerasFile(source).config()
    else:
        names = [c.__name__ for c in type(source).__mro__]
        class_name = "Adadelta" if "Adadelta" in names else names[0]
        config = source.get_config()
    if class_name != "Adadelta":
        raise ValueError(f"The optimizer must be an Adadelta; it is a {class_name}.")
    rate, rho, eps = (config[name] for name in ("learning_rate", "rho", "epsilon"))
    rule = f"scale_by_adadelta(rho={rho!r}, eps={eps!r})"
    number = isinstance(rate, (int, float))
    problems = [
        f"{name}={config[name]!r}: {remedy.format(rule=rule, rate=rate if number else '...')}"
        for name, remedy in _REMEDIES.items()
        if config.get(name)
    ]
    if not number:
        what = rate.get("class_name") if isinstance(rate, Mapping) else "a function"
        problems.append(f"learning_rate is {what}: write it as a schedule of Optax, for {rule}")
    found = {"learning_rate": rate, "rho": rho, "eps": eps}
    problems += out_of_range(found if number else {"rho": rho, "eps": eps})
    refuse("adadelta has no such settings", problems)
    return found
