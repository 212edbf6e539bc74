"""NumPy arrays from what other libraries have: tensors, variables, numbers."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np


def as_numpy(value: Any) -> np.ndarray:
    """Returns the NumPy array of a tensor, a variable, an array or a number, copied if it must be.

    bfloat16 becomes float32.
    """
    if hasattr(value, "detach"):  # a torch tensor, on any device
        value = value.detach().cpu()
        # bfloat16 tensors have no NumPy array.
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def is_complex(array: Any) -> bool:
    """Returns whether an array, tensor or variable is complex."""
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    return dtype.kind == "c" if isinstance(dtype, np.dtype) else "complex" in str(dtype)


def as_tensor(value: Any) -> Any:
    """Returns an array as a tensor, which torch requires, if torch is imported."""
    torch = sys.modules.get("torch")
    if torch is None or hasattr(value, "detach"):
        return value
    return torch.from_numpy(np.array(as_numpy(value)))


def empty_like(value: Any) -> np.ndarray:
    """Returns an array with the shape and dtype that `value` has in NumPy, in almost no memory."""
    like = as_numpy(value)
    return np.broadcast_to(np.zeros((), like.dtype), like.shape)


def real_size(array: np.ndarray) -> int:
    """Returns how many real numbers are in an array."""
    return array.size * (1 + is_complex(array))


def reals(array: np.ndarray) -> np.ndarray:
    """Returns the real numbers in an array. A complex one gets a last axis for its two parts."""
    if not is_complex(array):
        return array
    return np.stack([array.real, array.imag], axis=-1)


def from_reals(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the array of this dtype whose real numbers these are."""
    if np.dtype(dtype).kind != "c":
        return np.asarray(numbers, dtype)
    array = np.empty(numbers.shape[:-1], dtype)
    array.real, array.imag = numbers[..., 0], numbers[..., 1]
    return array
