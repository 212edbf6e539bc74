"""Fingerprints: what changes them, and that pictures and timings are of today's code."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from studies._lib import stamps as fingerprints
from studies._lib.report import DOCS, RESULTS, load, load_all

ROOT = fingerprints.ROOT
PICTURES = sorted(path for path in DOCS.rglob("*") if path.suffix in (".png", ".gif"))
PICTURES = [path for path in PICTURES if "_build" not in path.parts]
TIMINGS = [*sorted(RESULTS.glob("*-jax-*.json")), RESULTS / "growth.json"]
# Measured on a GPU before the dither got its offset in an addition of its own, which the loops that
# move memory do not notice. Remove with new results.
OLD = {("state_step-gpu-jax-0.11.2", storage) for storage in ("16 bits", "8 bits")}


def data_of(program):
    """The results that a program draws from, and the command that draws."""
    if program.startswith("examples/"):
        name = program.removeprefix("examples/").removesuffix(".py")
        return (), f"python -m studies.gallery --only {name}"
    if program == "studies/step_report.py":
        return load_all("step-cpu-*.json"), "python -m studies.step_report"
    if program == "studies/_growth_report.py":
        return [load(RESULTS / "growth.json")], "python -m studies.growth --table"
    if program == "studies/kills.py":
        results = [load(DOCS / "many_devices" / "kills.json")]
        return results, "python -m studies.kills --draw-only"
    if program == "studies/compare.py":
        results = load_all("*.json", DOCS / "when_to_use")
        return results, "python -m studies.compare --draw-only"
    name = program.removeprefix("studies/").removesuffix(".py")
    command = f"python -m studies.gallery --draw-only --only {name}"
    return [load(DOCS / "gallery" / f"{name}.json")], command


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_committed_picture_is_drawn_by_today_s_program_from_today_s_results(path):
    stamp = fingerprints.stamp_of(path)
    results, command = data_of(stamp["program"])
    today = {"program": stamp["program"]}
    today["code"] = fingerprints.of_program(ROOT / stamp["program"])
    if results:
        today["data"] = fingerprints.of_data(*results)
    assert stamp == today, f"{path.name} is out of date. Run: {command}"


def timings():
    """The fingerprints in every file of timings: the file, the storage and the fingerprint."""
    for path in TIMINGS:
        for storage, found in load(path)["arithmetic"].items():
            yield path, storage, found
    yield (
        "airfoil",
        "float32",
        load(DOCS / "gallery" / "airfoil.json")["forms"]["arithmetic"]["float32"],
    )


@pytest.fixture(scope="module")
def today():
    """The fingerprints of today's arithmetic."""
    return fingerprints.of_arithmetic()


def test_timings_are_of_today_s_arithmetic(today):
    known = [(getattr(path, "stem", path), storage, found) for path, storage, found in timings()]
    old = {(name, storage) for name, storage, found in known if found != today[storage]}
    assert old == OLD, "Measure again: python -m benchmarks.NAME, or studies.airfoil"


def test_every_file_of_timings_has_a_fingerprint():
    assert len(TIMINGS) >= 10
    assert all("float32" in load(path)["arithmetic"] for path in TIMINGS)


SOURCE = '''
"""What this is."""

from studies._lib import report as _report


def area(side: float) -> float:
    """Returns the area."""
    return side * side  # A square.
'''


@pytest.fixture
def fingerprint(tmp_path):
    """A function of a source that returns its fingerprint."""

    def of(source):
        (tmp_path / "program.py").write_text(source)
        return fingerprints.of_program(tmp_path / "program.py")

    return of


def test_comments_docstrings_and_layout_do_not_change_a_program(fingerprint):
    same = SOURCE.replace("  # A square.", "").replace("What this is.", "Something else.")
    same = same.replace("Returns the area.", "The area.").replace(
        "side * side", "(side\n    * side)"
    )
    assert same != SOURCE
    assert fingerprint(same) == fingerprint(SOURCE)


@pytest.mark.parametrize("new", ["side + side", "side * 2", "side * side * 1", "'side'"])
def test_other_code_is_another_program(fingerprint, new):
    assert fingerprint(SOURCE.replace("side * side", new)) != fingerprint(SOURCE)


def test_a_helper_that_is_imported_belongs_to_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path)
    folder = tmp_path / "some"
    folder.mkdir()
    program = folder / "program.py"
    program.write_text("from some import _one\nfrom some._two import two\n")
    found = []
    for one, two in (("a = 1", "two = 2"), ("a = 2", "two = 2"), ("a = 1", "two = 3")):
        (folder / "_one.py").write_text(one)
        (folder / "_two.py").write_text(two)
        found.append(fingerprints.of_program(program))
    assert len(set(found)) == 3


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_stamp_can_be_read_and_leaves_the_picture_as_it_is(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
    picture = tmp_path / f"picture.{kind}"
    Image.fromarray(pixels).save(picture)
    program = ROOT / "examples" / "digits.py"
    fingerprints.stamp(picture, program, {"a": 1})
    fingerprints.stamp(picture, program, {"a": 2})
    assert fingerprints.stamp_of(picture) == {
        "program": "examples/digits.py",
        "code": fingerprints.of_program(program),
        "data": fingerprints.of_data({"a": 2}),
    }
    with Image.open(picture) as image:
        image.verify()
    with Image.open(picture) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("L")), pixels)


def test_other_arithmetic_has_another_fingerprint(monkeypatch, today):
    import jax

    from optax_adadelta import _equation

    delta = _equation.delta
    monkeypatch.setattr(_equation, "delta", lambda *given: jnp.negative(delta(*given)))
    jax.clear_caches()
    changed = fingerprints.of_arithmetic()
    monkeypatch.undo()
    jax.clear_caches()
    assert changed["float32"] != today["float32"]
    assert fingerprints.of_arithmetic() == today
