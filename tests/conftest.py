"""Every test runs strict: no implicit dtype or rank promotion, eight devices, float32 default."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: (
        _COMPILED.append(seconds) if event.endswith("/backend_compile_duration") else None
    )
)


@pytest.fixture
def compiled():
    """Returns how many programs JAX has compiled so far, by its own count."""
    return lambda: len(_COMPILED)


@pytest.fixture
def x64():
    """The test runs with 64-bit types enabled."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
