"""Every test runs strict: no implicit dtype or rank promotion, eight devices, float32 default."""

import os
import re

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

collect_ignore = ["kills.py"]  # a script that needs orbax

# noxfile.py has a session for each of these, and CI runs them all.
OWN_SESSION = {"accelerators", "devices", "frameworks", "peers", "scripts", "slow", "types"}

_COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: (
        _COMPILED.append(seconds) if event.endswith("/backend_compile_duration") else None
    )
)


_FORGOTTEN = [0]


@pytest.fixture(autouse=True)
def forget_programs():
    """A compiled program takes up to 2 MB, and later tests need few of those before."""
    yield
    if len(_COMPILED) - _FORGOTTEN[-1] > 300:
        jax.clear_caches()
        _FORGOTTEN.append(len(_COMPILED))


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


@pytest.fixture
def optax_promotes():
    """Some of Optax's wrappers and schedules mix dtypes, so the test cannot be strict about it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def frameworks_promote():
    """Their layers mix dtypes and ranks, so the test cannot be strict about it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def kills():
    """What kills examples/distributed.py."""
    pytest.importorskip("orbax.checkpoint")
    import kills

    return kills


def pytest_addoption(parser):
    parser.addoption(
        "--fail-skipped", action="store_true", help="a test that would be skipped fails"
    )


def pytest_collection_modifyitems(config, items):
    """Leaves out tests with a marker that has a session of its own, unless `-m` names it."""
    named = set(re.findall(r"\w+", config.option.markexpr))
    left_out = [
        item
        for item in items
        if (own := {mark.name for mark in item.iter_markers()} & OWN_SESSION) and not own & named
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and item.config.getoption("--fail-skipped"):
        report.outcome = "failed"
    return report
