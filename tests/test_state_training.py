"""Training with averages in few bits: that the script runs, what it compares, what it found."""

import gzip
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

# Means outside float32's spread over the seeds: all are lower, that is, better.
OUTSIDE = {("mixed scales", measure, "8 bits") for measure in ("training loss", "distance")}
OUTSIDE.add(("MNIST", "training loss", "8 bits"))
BEGIN, END = "<!-- state training -->", "<!-- /state training -->"
FEW = ("16 bits", "8 bits")


@pytest.fixture(scope="module")
def script():
    return scripts.module("studies.state_training")


@pytest.fixture(scope="module")
def tasks():
    return scripts.module("studies._lib.storage_tasks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MNIST's files with three images of one grey level each, and as many labels."""
    path = tmp_path_factory.mktemp("mnist")
    for part, levels in (("train", (0, 51, 255)), ("t10k", (255, 102, 0))):
        images = np.repeat(np.array(levels, np.uint8), 784).tobytes()
        (path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images))
        labels = bytes((7, 0, 9))
        (path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))
    return path


@pytest.fixture(scope="module")
def committed(script):
    return json.loads(script.RESULTS.read_text("utf-8"))


def made_up(float32, few):
    """A report of one task and measure, with the same at 16 and 8 bits."""
    results = {"float32": float32, "16 bits": few, "8 bits": few}
    results = {width: {"training loss": values} for width, values in results.items()}
    return {"seeds": len(few), "tasks": {"a task": {"results": results}}}


@pytest.mark.scripts
def test_at_smoke_size_few_bits_train_as_float32_does_but_not_the_same(tmp_path):
    printed, report = scripts.benchmark("state_training", tmp_path / "training.json")
    assert "MNIST is left out" in printed
    assert list(report["tasks"]) == ["digits", "sorting", "mixed scales"]
    assert "optax_adadelta" in report["versions"]
    for name, task in report["tasks"].items():
        assert f"| {name} | training loss |" in printed
        full = task["results"]["float32"]["training loss"]
        assert len(set(full)) == report["seeds"] == 2
        for width in FEW:
            few = task["results"][width]["training loss"]
            assert few != full
            np.testing.assert_allclose(few, full, rtol=0.03)
    accuracies = report["tasks"]["digits"]["results"]
    assert min(min(measured["test accuracy"]) for measured in accuracies.values()) > 80


@pytest.mark.scripts
def test_without_its_files_mnist_is_refused_before_anything_is_trained(tmp_path):
    message = scripts.refusal("studies.state_training", "--data-dir", tmp_path)
    assert "there is no train-images-idx3-ubyte.gz, train-labels" in message


def test_mnist_is_read(tasks, folder):
    task = tasks.mnist(False, folder)
    for (images, labels), levels in ((task.train, (0, 0.2, 1)), (task.test, (1, 0.4, 0))):
        assert images.shape == (3, 784)
        np.testing.assert_allclose(images, np.outer(levels, np.ones(784)), rtol=1e-6)
        assert labels.tolist() == [7, 0, 9]


def test_the_digits_are_those_of_the_example(tasks):
    example = scripts.module("digits")
    task = tasks.digits(False)
    shapes = [layer["w"].shape for layer in jax.eval_shape(task.init, jax.random.key(0))]
    assert shapes == list(example.LAYERS.values())
    assert task.batch == example.BATCH
    for ours, theirs in zip((task.train, task.test), example.load(0), strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_nearly_all_of_the_state_is_kept_in_few_bits(script, tasks, folder):
    for name, task in tasks.tasks(True, folder).items():
        params = jax.eval_shape(task.init, jax.random.key(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(params))

        def bytes_each(bits, task=task, params=params, count=count):
            state = jax.eval_shape(script.optimizer(task, bits).init, params)
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / count

        assert 8 <= bytes_each(None) < 8.01, name
        assert 4 <= bytes_each(16) < 4.01, name
        assert 2 <= bytes_each(8) < 2.01, name


def test_the_gradients_of_the_stress_differ_by_1e10_wherever_one_looks(tasks):
    task = tasks.mixed_scales(True)
    (minimum,) = task.test
    with jax.numpy_rank_promotion("allow"):
        gradients = jax.grad(task.loss)({"w": minimum + 1}, *task.train)["w"]
        at_minimum = jax.grad(task.loss)({"w": minimum}, *task.train)["w"]
        measured = task.measure({"w": minimum + 1}, minimum)
    sizes = np.log10(np.asarray(gradients)).reshape(-1, 64)
    assert np.min(sizes.max(axis=1) - sizes.min(axis=1)) > 9
    assert np.ptp(sizes) == pytest.approx(10, abs=0.01)
    np.testing.assert_allclose(at_minimum / gradients, 0, atol=1e-5)
    assert measured["distance"] == pytest.approx(0.5)
    np.testing.assert_allclose(measured["decades"], np.full(10, 0.5), rtol=1e-5)


def test_attention_is_asked_to_sort(tasks):
    task = tasks.sorting(True)
    numbers, wanted = task.train
    assert jnp.array_equal(jnp.sort(numbers), wanted)
    assert not jnp.array_equal(numbers, wanted)


def test_a_mean_outside_the_spread_is_said_to_be(script):
    full = [1.0, 2.0, 3.0]
    inside = script.compared(made_up(full, [1.9, 2.9, 3.9])["tasks"]["a task"]["results"])
    facts = inside["training loss"]["8 bits"]
    assert facts["holds"]
    assert facts["mean"] == pytest.approx(2.9)
    assert facts["apart"] == pytest.approx(0.9)
    assert facts["spread"] == pytest.approx(1)
    assert facts["spread apart"] == pytest.approx(0, abs=1e-9)
    for few in ([2.1, 3.1, 4.1], [-0.1, 0.9, 1.9], [1.0, 2.0, math.nan], [1.0, 2.0, math.inf]):
        report = made_up(full, few)
        assert script.table(report).endswith("| no, no |")
    assert script.table(made_up(full, full)).endswith("| yes, yes |")
    assert "| 5.00 ± 0.00 |" in script.table(made_up([5, 5], [5, 5]))


def test_only_the_table_of_a_page_changes(script, committed):
    page = f"a\n\n{BEGIN}\nold\n{END}\n\nb\n"
    filled = script.with_table(page, committed)
    assert filled.startswith(f"a\n\n{BEGIN}\n| ")
    assert filled.endswith(f" |\n{END}\n\nb\n")
    assert "old" not in filled
    assert script.with_table(filled, committed) == filled


def test_the_committed_results_are_of_every_task_and_of_five_seeds(script, committed):
    assert committed["seeds"] >= 5
    assert "--smoke" not in committed["command"]
    assert list(committed["tasks"]) == ["digits", "MNIST", "sorting", "mixed scales"]
    outside = set()
    for name, task in committed["tasks"].items():
        assert set(task["results"]) == set(script.WIDTHS)
        for measure, widths in script.compared(task["results"]).items():
            outside |= {(name, measure, width) for width in FEW if not widths[width]["holds"]}
            if measure in ("training loss", "distance"):
                limit = widths["float32"]["mean"] + widths["float32"]["spread"]
                assert all(widths[width]["mean"] < limit for width in FEW)
    assert outside == OUTSIDE


def test_the_page_shows_the_committed_results(script, committed):
    page = script.PAGE.read_text("utf-8")
    assert BEGIN in page
    assert script.with_table(page, committed) == page
