"""The pages' code runs with JAX's defaults, as it does for readers."""

import jax
import pytest


@pytest.fixture(autouse=True)
def defaults():
    """Undoes the strictness of the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
