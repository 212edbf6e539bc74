"""Files that Keras 3 saves: HDF5, alone or in a zip archive with the configuration."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_adadelta._storage import Averages
from optax_adadelta.convert._arrays import as_numpy


class KerasFile:
    """The optimizer in a file that ends in .keras or .weights.h5."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a file and reads the configuration, if there is one."""
        self._path = os.fspath(path)
        self._weights: Any = self._path
        self._compiled: dict[str, Any] | None = None
        if zipfile.is_zipfile(self._path):
            with zipfile.ZipFile(self._path) as archive:
                self._compiled = json.loads(archive.read("config.json")).get("compile_config") or {}
                self._weights = io.BytesIO(archive.read("model.weights.h5"))

    def config(self) -> tuple[str, dict[str, Any]]:
        """Returns the class and the configuration of the optimizer."""
        if self._compiled is None:
            raise ValueError(
                f"{self._path} has no hyperparameters. Pass a .keras file, which model.save writes,"
                " or the optimizer itself."
            )
        optimizer = self._compiled.get("optimizer")
        if not isinstance(optimizer, dict):
            raise ValueError(f"{self._path} has no optimizer: the model was saved uncompiled.")
        return optimizer["class_name"], optimizer["config"]

    def read(self, names: Iterable[str]) -> tuple[int, dict[str, Averages]]:
        """Returns the number of updates made, and the averages by name.

        Args:
          names: the names of the trainable variables, in the order of the model.
        """
        names = list(names)
        name, arrays = self._arrays()
        per_update, copies = self._settings(name)
        # First the iteration, and the learning rate unless it is a schedule. Then the arrays of
        # other options, each for all variables, and then the two averages of each variable.
        before = len(arrays) - 2 * len(names)
        possible = [1 + rate + copy * len(names) for rate in (0, 1) for copy in copies]
        if before not in possible:
            raise ValueError(
                f"{self._path} has {len(arrays)} arrays of the optimizer, which do not fit"
                f" {len(names)} variables: {', '.join(names)}. Pass model.trainable_variables of"
                " the model that was saved. If it was saved before its first step, start with a new"
                " state."
            )
        pairs = zip(arrays[before::2], arrays[before + 1 :: 2], strict=True)
        averages = {name: Averages(*pair) for name, pair in zip(names, pairs, strict=True)}
        return updates_made(arrays[0], per_update), averages

    def _settings(self, name: str) -> tuple[int, tuple[int, ...]]:
        """Returns the batches per update, and how many other arrays each variable may have."""
        if self._compiled is None:
            if not re.fullmatch(r"adadelta(_\d+)?", name):
                raise ValueError(
                    f"The optimizer in {self._path} is called {name!r}, not 'adadelta'. If it is an"
                    " Adadelta with a name of its own, save the model as a .keras file, which has"
                    " the class of the optimizer."
                )
            return 1, (0,)
        class_name, config = self.config()
        if class_name != "Adadelta":
            raise ValueError(
                f"The optimizer in {self._path} must be an Adadelta; it is {class_name}."
            )
        steps = config.get("gradient_accumulation_steps")
        return steps or 1, (bool(config.get("use_ema")) + bool(steps),)

    def _arrays(self) -> tuple[str, list[np.ndarray]]:
        """Returns the name of the optimizer and its arrays, in the order of its variables."""
        try:
            h5py = importlib.import_module("h5py")
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"Reading {self._path} needs h5py. Run: pip install h5py", name="h5py"
            ) from None
        try:
            file = h5py.File(self._weights, "r")
        except OSError as error:
            raise ValueError(
                f"{self._path} is not a .keras or .weights.h5 file of Keras 3: {error}"
            ) from error
        with file:
            if "optimizer/vars" not in file:
                raise ValueError(
                    f"{self._path} has no optimizer of Keras 3. Save the compiled model after"
                    " training with model.save(...keras) or model.save_weights(....weights.h5)."
                )
            group = file["optimizer/vars"]
            arrays = [_array(group[str(i)]) for i in range(len(group))]
            return str(group.attrs.get("name")), arrays


def updates_made(batches: np.ndarray, per_update: int) -> int:
    """Returns the number of updates, of which each takes the gradients of several batches."""
    updates, waiting = divmod(int(batches), per_update)
    if waiting:
        raise ValueError(
            f"The gradients of {waiting} batches wait for the next update, after {per_update}, and"
            " would be lost. Convert the state right after an update."
        )
    return updates


def _array(dataset: Any) -> np.ndarray:
    array = np.array(dataset)
    # HDF5 has no bfloat16: Keras writes its bytes.
    return as_numpy(array.view(jnp.bfloat16) if array.dtype.kind == "V" else array)
