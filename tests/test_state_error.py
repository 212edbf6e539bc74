"""The comparison of low-bit states: its codes, that its script runs, what the results say."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scripts

MODULE = scripts.module("studies.state_error")
BEGIN, END = f"<!-- {MODULE.PART} -->", f"<!-- /{MODULE.PART} -->"
CODES = MODULE.codes
BLOCKED = {
    "octaves": CODES.octaves(),
    "octaves, a power of two": CODES.octaves(whole=True),
    "fixed": CODES.fixed(1.0, (33, 6), (28, 2)),
    "fixed, coarser from within": CODES.fixed(0.5, (10, 18), (37, 2)),
    "octaves, 6 bits": CODES.octaves(64),
    "octaves, 4 bits": CODES.octaves(16),
    "logarithmic": CODES.logarithmic(),
    "linear": CODES.linear,
    "dynamic": CODES.dynamic,
    "e4m3_root": CODES.e4m3_root,
}
MOST_CODES = {"octaves, 6 bits": 64, "octaves, 4 bits": 16}
SHORT = {"6 + 10": CODES.short_float(10, 2.0**-32), "7 + 9": CODES.short_float(9, 0.0)}

# To nearest fails where gradients do not vary, a grid for each block takes another pass, and three
# segments take more arithmetic.
AS_GOOD = {
    "16 bits, to nearest",
    "8 bits, octaves of blocks of 128",
    "8 bits, three segments in each grid",
}
BOUNDS = {16: {"mixed": 6e-7, "rows": 6e-7, "heavy tails": 1e-6}}
BOUNDS[8] = {"mixed": 2e-3, "rows": 2e-3, "heavy tails": 3e-3}


def values(rows, octaves):
    """Positive numbers over so many octaves, the ends of which are in every row."""
    exponents = np.random.default_rng(0).uniform(0, octaves, (rows, CODES.BLOCK))
    exponents[:, :2] = 0, octaves
    return jnp.asarray(2**exponents * 1e-6, jnp.float32)


def dithered(code, x, dithers):
    """What becomes of `x` with each of the dithers."""
    return np.stack([np.float64(code(x, jnp.full_like(x, u))) for u in dithers])


EVEN = (np.arange(256) + 0.5) / 256
ENDS = (0, 1 - 2**-24)


@pytest.mark.parametrize("name", BLOCKED)
def test_a_row_has_no_more_values_than_codes(name):
    made = dithered(BLOCKED[name], values(4, 12), (*ENDS, 0.5))
    for row in range(4):
        assert 10 < len(np.unique(made[:, row])) <= MOST_CODES.get(name, 256)


@pytest.mark.parametrize("name", [*BLOCKED, *SHORT])
def test_a_dithered_value_is_right_on_the_average(name):
    root = np.sqrt if name == "e4m3_root" else np.asarray
    code = {**BLOCKED, **SHORT}[name]
    x = values(4, 12)
    low, high = root(dithered(code, x, ENDS))
    off = np.abs(root(dithered(code, x, EVEN)).mean(axis=0) - root(x))
    # The first two columns have the least and the largest, and the largest saturates.
    assert np.all((off <= (high - low) / 200 + 1e-6 * root(x))[:, 2:])


@pytest.mark.parametrize("name", [*BLOCKED, *SHORT])
def test_a_value_that_was_kept_stays(name):
    code = {**BLOCKED, **SHORT}[name]
    kept = code(values(4, 12), jnp.full((4, CODES.BLOCK), 0.5))
    for u in (0.01, 0.5, 0.99):
        np.testing.assert_allclose(code(kept, jnp.full_like(kept, u)), kept, rtol=2e-6)


def test_the_dynamic_map_has_256_values():
    made = CODES.dynamic_map()
    assert made.size == np.unique(made).size == 256
    assert (made[0], made[-1]) == (0, 1)


@pytest.mark.parametrize("dither", [CODES.weyl, CODES.random])
def test_a_dither_is_even_over_the_elements_and_over_the_steps(dither):
    index = jnp.arange(4096, dtype=jnp.uint32)
    made = np.stack([np.stack(dither(jnp.uint32(t), index)) for t in range(1000)])
    assert made.min() >= 0
    assert made.max() < 1
    of_elements, of_steps = (np.abs(np.sort(made, axis=a).mean(axis=a) - 0.5) for a in (2, 0))
    assert of_elements.max() < 0.03
    assert of_steps.max() < 0.05
    assert abs(np.corrcoef(made[:, 0].ravel(), made[:, 1].ravel())[0, 1]) < 0.01


def test_averages_in_float32_give_the_updates_of_the_package():
    for gradients, scale in MODULE.random_gradients(4, 100).values():
        exact = np.asarray(MODULE.through_package(gradients, scale, 0.95, None))
        store = CODES.each(CODES.exact)
        made = np.asarray(MODULE.through_store(gradients, scale, 0.95, store, CODES.weyl))
        assert MODULE.error(made, exact)["NMSE"] < 1e-12


def test_an_error_that_is_none_or_not_finite_can_be_shown():
    ones = np.ones(3)
    assert MODULE.cell(MODULE.error(ones, ones)) == "0"
    assert MODULE.cell(MODULE.error(1.1 * ones, ones)) == "10"
    assert MODULE.cell(MODULE.error(1.000123 * ones, ones)) == "0.012"
    for bad in (3.0, math.inf, math.nan):
        assert MODULE.cell(MODULE.error(bad * ones, ones)) == "diverges"


def assert_complete(results):
    assert set(results) == {*MODULE.SHIPPED, *MODULE.ALTERNATIVES}
    for row in results.values():
        for arrangement in MODULE.ARRANGEMENTS:
            assert [*row[arrangement]] == [f"rho {rho}" for rho in MODULE.RHOS]
    assert results["state_bits=16"]["bytes per parameter"] == 4
    assert results["state_bits=8"]["bytes per parameter"] == 2


@pytest.mark.scripts
def test_at_smoke_size_every_variant_is_compared(tmp_path, monkeypatch):
    output = tmp_path / "state_error.json"
    printed, report = scripts.benchmark("state_error", output)
    assert "optax_adadelta" in report["versions"]
    assert_complete(report["results"])
    assert all(f"{name} |" in printed or f"`{name}`" in printed for name in report["results"])
    for name in MODULE.SHIPPED:
        for arrangement in MODULE.ARRANGEMENTS:
            assert not any(
                case["diverged"] for case in report["results"][name][arrangement].values()
            )

    # The saved results fill a page, and nothing else on it changes.
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n", encoding="utf-8")
    monkeypatch.setattr(MODULE, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["state_error.py", "--table", "--output", str(output)])
    MODULE.main()
    filled = page.read_text("utf-8")
    assert filled == f"a\n{BEGIN}\n{MODULE.table(report)}\n{END}\nb\n"
    MODULE.main()
    assert page.read_text("utf-8") == filled


@pytest.mark.parametrize("page", ["", "<!-- state errors -->", "<!-- /state errors -->"])
def test_a_page_without_its_markers_is_refused(page):
    with pytest.raises(SystemExit, match="needs the lines"):
        MODULE.with_table(page, {"results": {}})


def committed():
    return json.loads(MODULE.RESULTS.read_text("utf-8"))


def worst(row, rho=0.95):
    """The largest NMSE of the arrangements."""
    made = [row[arrangement][f"rho {rho}"]["NMSE"] for arrangement in MODULE.ARRANGEMENTS]
    return math.inf if None in made else max(made)


def test_the_committed_results_are_of_every_variant_and_keep_the_promises():
    results = committed()["results"]
    assert_complete(results)
    for bits, bounds in BOUNDS.items():
        for arrangement, bound in bounds.items():
            assert results[f"state_bits={bits}"][arrangement]["rho 0.95"]["NMSE"] < bound
    for name in set(MODULE.ALTERNATIVES) - AS_GOOD:
        bits = 16 if results[name]["bytes per parameter"] >= 4 else 8
        assert worst(results[f"state_bits={bits}"]) < worst(results[name]), name
    for name in ("linear", "bitsandbytes' dynamic map"):
        assert worst(results[f"8 bits, {name} in blocks"]) > 1


def test_the_page_shows_the_committed_results():
    page = MODULE.PAGE.read_text("utf-8")
    assert MODULE.with_table(page, committed()) == page
