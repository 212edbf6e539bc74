"""Growth: that the script runs, what it measures, and the arithmetic of the estimate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from studies import _estimate as estimate
from studies._lib.report import RESULTS, load
from optax_adadelta import adadelta

GROWTH = scripts.module("studies.growth")
REPORT = scripts.module("studies._growth_report")
BITS = {"float32": None, "16 bits": 16, "8 bits": 8}
# Bytes of both averages of a parameter, and of the scalars of a state: the count and the unit.
BYTES = {"float32": (8, 4), "16 bits": (4, 8), "8 bits": (2, 8), "optax": (8, 0)}
MARKS = "<!-- growth -->\n<!-- /growth -->\n<!-- estimate -->\n<!-- /estimate -->\n"

pytestmark = pytest.mark.scripts


def assert_complete(report, models, counts):
    assert list(report["models"]) == list(models)
    for name, model in report["models"].items():
        layers, width = models[name]
        size = 12 * layers * width**2 + 13 * layers * width + 2 * width
        assert (model["parameters"], model["leaves"]) == (size, 12 * layers + 2)
        assert list(model["devices"]) == list(map(str, counts))
        for count, rules in model["devices"].items():
            assert set(rules) == set(BYTES)
            for rule, facts in rules.items():
                each, scalars = BYTES[rule]
                assert facts["state bytes on a device"] == each * size / int(count) + scalars
                assert facts["collectives"] == 0
                low, high = facts["quartiles"]
                assert 0 < facts["least"] <= low <= facts["seconds"] <= high
                assert facts["compile CPU seconds"] > 0
                assert facts["compile wall seconds"] > 0


def test_at_smoke_size_every_mesh_and_storage_is_measured(tmp_path, monkeypatch):
    output = tmp_path / "growth.json"
    printed, report = scripts.benchmark("growth", output)
    assert_complete(report, GROWTH.SMOKE, GROWTH.SMOKE_DEVICES)
    assert "smoke, 4 devices, 8 bits: " in printed

    # The saved results fill a page and can be drawn.
    page, picture = tmp_path / "page.md", tmp_path / "growth.png"
    page.write_text(f"a\n{MARKS}b\n", encoding="utf-8")
    monkeypatch.setattr(GROWTH, "PAGE", page)
    monkeypatch.setattr(GROWTH, "PICTURE", picture)
    monkeypatch.setattr("sys.argv", ["growth.py", "--table", "--output", str(output)])
    GROWTH.main()
    scripts.check_picture(picture)
    filled = page.read_text("utf-8")
    assert filled.startswith("a\n")
    assert filled.endswith("\nb\n")
    assert REPORT.tables(report) in filled
    GROWTH.main()
    assert page.read_text("utf-8") == filled


def test_the_models_have_the_sizes_that_their_names_say_and_can_be_split():
    for name, (layers, width) in GROWTH.MODELS.items():
        shapes = GROWTH.transformer(layers, width)
        size = 1e-6 * sum(map(math.prod, shapes))
        assert size == pytest.approx(float(name.removesuffix("M")), rel=0.05)
        assert all(shape[0] % count == 0 for shape in shapes for count in GROWTH.DEVICES)


def test_the_bytes_of_a_tree_are_those_of_the_fullest_device():
    mesh = Mesh(jax.devices()[:4], ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    tree = [jax.device_put(np.zeros(8, np.float32), split)]
    assert GROWTH.largest_part(tree) == 8
    tree.append(jax.device_put(np.zeros(3, np.float32), whole))
    assert GROWTH.largest_part(tree) == 8 + 12
    tree.append(jax.device_put(np.zeros(5, np.uint8), jax.devices()[2]))
    assert GROWTH.largest_part(tree) == 8 + 12 + 5


def test_a_collective_of_a_program_for_cpus_would_be_counted():
    mesh = Mesh(jax.devices()[:4], ("data",))
    x = jax.device_put(np.ones(8, np.float32), NamedSharding(mesh, PartitionSpec("data")))
    program = jax.jit(jnp.sum).lower(x).compile().as_text()
    assert GROWTH.read_program(program, ())["collectives"] == 1


def test_one_round_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["growth.py", "--rounds", "1"])
    with pytest.raises(SystemExit):
        GROWTH.main()
    assert "at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("storage", BITS)
@pytest.mark.parametrize("dtype", estimate.PARAMETER_BYTES)
def test_the_estimate_counts_the_bytes_of_the_state_that_the_package_makes(dtype, storage):
    p = jax.ShapeDtypeStruct((1000,), jnp.dtype(dtype))
    state = jax.eval_shape(adadelta(state_bits=BITS[storage]).init, p)
    found = sum(1000 * average.dtype.itemsize for average in (state.e_g, state.e_x))
    assert found == 1000 * estimate.STATE_BYTES[storage]


@pytest.mark.parametrize("storage", BITS)
@pytest.mark.parametrize("dtype", estimate.PARAMETER_BYTES)
def test_compiled_programs_move_the_bytes_that_the_estimate_counts(dtype, storage):
    counted = estimate.bytes_per_parameter(dtype, storage)
    for found in load(RESULTS / "accelerators.json")["cards"].values():
        facts = found["cases"][estimate.COMPILED[dtype]][storage]
        assert facts["bytes"] / facts["parameters on a device"] == pytest.approx(counted, rel=2e-3)
        assert facts["collectives"] == 0


def test_the_estimate_is_what_one_computes_by_hand():
    # 70e9 / 256 = 273,437,500 parameters on a device.
    assert estimate.state_bytes("float32") == 2_187_500_000
    assert estimate.state_bytes("16 bits") == 1_093_750_000
    assert estimate.state_bytes("8 bits") == 546_875_000
    assert estimate.held_bytes("bfloat16", "8 bits") == 1_640_625_000
    assert estimate.held_bytes("float32", "float32") == 4_375_000_000
    assert estimate.step_bytes("bfloat16", "float32") == 22 * 273_437_500
    assert estimate.step_bytes("float32", "16 bits") == 20 * 273_437_500
    # 6.015625e9 bytes at 3.35e12 per second; 10 * 273,437,500 at 819e9.
    h100, v5e = estimate.CHIPS["H100"], estimate.CHIPS["TPU v5e"]
    assert estimate.least_seconds("bfloat16", "float32", h100) == pytest.approx(1.7957e-3, rel=1e-4)
    assert estimate.least_seconds("bfloat16", "8 bits", v5e) == pytest.approx(3.3387e-3, rel=1e-4)
    # 6 * 70e9 * 8192 = 3.44064e15 operations; 0.4 * 989e12 and 0.4 * 197e12 per second.
    assert estimate.training_seconds(h100) == pytest.approx(8.6973, rel=1e-4)
    assert estimate.training_seconds(v5e) == pytest.approx(43.663, rel=1e-4)
    # 140e9 bytes, three times, except for the device's own 256th.
    assert estimate.fsdp_bytes("bfloat16") == 418_359_375_000
    assert estimate.fsdp_bytes("float32") == 2 * estimate.fsdp_bytes("bfloat16")


def test_the_committed_results_are_of_every_model_mesh_and_storage():
    report = load(RESULTS / "growth.json")
    assert "--smoke" not in report["command"]
    assert_complete(report, GROWTH.MODELS, GROWTH.DEVICES)


def test_the_page_shows_the_committed_results_and_the_estimate():
    page = REPORT.PAGE.read_text("utf-8")
    results = load(RESULTS / "growth.json"), load(RESULTS / "accelerators.json")
    assert REPORT.with_tables(page, *results) == page
