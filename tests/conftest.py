"""Every test runs strict: no implicit dtype or rank promotion, eight devices, float32 default."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The ordinary cases are always the same, so that no run fails by chance; the nightly ones are new.
hypothesis.settings.register_profile(
    "ordinary", max_examples=40, derandomize=True, database=None, deadline=None
)
hypothesis.settings.register_profile("nightly", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ordinary"))

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


def pytest_addoption(parser):
    parser.addoption(
        "--fail-skipped", action="store_true", help="a test that would be skipped fails"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and item.config.getoption("--fail-skipped"):
        report.outcome = "failed"
    return report
