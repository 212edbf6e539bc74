"""How experiments run: parts are saved when they are done, and errors come before the training."""

import json
import sys

import pytest
from matplotlib.figure import Figure

import studies
from studies._lib import report as _report
from studies._lib import runner as _runner

PARTS = {"one": 2, "two": 50}


class Made:
    """An experiment without training, and what was asked of it."""

    def __init__(self):
        self.asked = []
        self.loaded = 0
        self.fails = None
        self.experiment = _runner.Experiment(
            module="studies.airfoil",
            description="An experiment.",
            epochs=PARTS,
            load=self.load,
            make=self.make,
            pictures=lambda found: {"a_picture": Figure()},
            tables=lambda found: {
                "a table": f"| {found['one']['number'] + found['two']['number']} |"
            },
            smoke_epochs=3,
        )

    def load(self, options):
        self.loaded += 1
        return 100

    def make(self, part, data, options):
        if part == self.fails:
            raise KeyboardInterrupt
        self.asked.append((part, options.seeds, options.epochs))
        return {"number": data + len(self.asked)}


@pytest.fixture
def made():
    return Made()


@pytest.fixture
def start(made, monkeypatch, tmp_path):
    """A function that runs the experiment with some arguments, in a new folder."""

    def start(*arguments, output=tmp_path / "new"):
        monkeypatch.setattr(sys, "argv", ["airfoil.py", "--output", str(output), *arguments])
        _report.run(lambda: _runner.run(made.experiment))

    return start


@pytest.fixture
def saved(tmp_path):
    """A function that reads what was saved."""
    return lambda name="airfoil": json.loads((tmp_path / "new" / f"{name}.json").read_text())


def test_all_parts_are_made_drawn_and_printed(start, made, saved, tmp_path, capsys):
    start("--seeds", "3")
    assert made.asked == [("one", 3, 2), ("two", 3, 50)]
    report = saved()
    assert [(part["number"], part["epochs"]) for part in report.values()] == [(101, 2), (102, 50)]
    for part in report.values():
        assert part["command"] == "python -m studies.airfoil --seeds 3"
        assert {"date", "machine", "versions", "arithmetic", "seeds"} < set(part)
        assert str(tmp_path) not in json.dumps(part)
    printed = capsys.readouterr().out
    assert "a table\n\n| 203 |\n" in printed
    assert f"Picture: {tmp_path / 'new' / 'a_picture.png'}\n" in printed
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"airfoil.json", "a_picture.png"}


def test_a_smoke_run_is_short_and_has_files_of_its_own(start, made, saved, tmp_path):
    start("--smoke")
    assert made.asked == [("one", 2, 2), ("two", 2, 3)]
    assert list(saved("airfoil-smoke")) == list(PARTS)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"airfoil-smoke.json", "a_picture-smoke.png"}


def test_one_part_alone_leaves_the_others(start, made, saved, capsys):
    start("--only", "two", "--epochs", "7")
    assert made.asked == [("two", 5, 7)]
    assert "no tables and pictures yet. Run also: --only one\n" in capsys.readouterr().out
    before = saved()["two"]
    start("--only", "one")
    assert saved()["two"] == before
    assert list(saved()) == ["two", "one"] or list(saved()) == ["one", "two"]
    assert "| " in capsys.readouterr().out


def test_drawing_again_trains_nothing(start, made, capsys):
    start()
    printed = capsys.readouterr().out
    start("--draw-only")
    assert capsys.readouterr().out == printed
    assert len(made.asked) == 2
    assert made.loaded == 1


def test_an_interrupted_run_keeps_what_is_done(start, made, saved, capsys):
    made.fails = "two"
    with pytest.raises(SystemExit) as stopped:
        start()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"
    assert saved()["one"]["number"] == 101


def test_a_missing_package_is_named():
    def main():
        import no_such_package_at_all  # noqa: F401

    with pytest.raises(SystemExit, match=r"^no_such_package_at_all is not installed\. Run: pip"):
        _report.run(main)


def test_a_package_that_is_missing_at_the_start_is_named():
    studies.require("numpy")
    with pytest.raises(SystemExit, match=r"^no_such_package_at_all is not installed\. Run: pip"):
        studies.require("numpy", "no_such_package_at_all")


def test_an_output_that_is_a_file_is_refused_before_the_data_is_loaded(start, made, tmp_path):
    (tmp_path / "file").write_text("What somebody keeps.")
    with pytest.raises(SystemExit, match=r"^Cannot write --output .*file/airfoil\.json: "):
        start(output=tmp_path / "file")
    assert made.loaded == 0
    assert (tmp_path / "file").read_text() == "What somebody keeps."


def test_results_that_cannot_be_read_are_found_before_the_data_is_loaded(start, made, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "airfoil.json").write_text('{"one": ')
    with pytest.raises(SystemExit, match=r"airfoil\.json is not a file of results"):
        start()
    assert made.loaded == 0
    assert (tmp_path / "new" / "airfoil.json").read_text() == '{"one": '


def test_drawing_without_results_says_what_to_run(start, tmp_path):
    with pytest.raises(SystemExit, match=r"There is no .*airfoil\.json\. Run the script without"):
        start("--draw-only")


@pytest.mark.parametrize("option", ["--seeds", "--epochs"])
def test_numbers_below_one_are_refused(start, made, option, capsys):
    with pytest.raises(SystemExit) as refused:
        start(option, "0")
    assert refused.value.code == 2
    assert "--seeds and --epochs must be at least 1" in capsys.readouterr().err
    assert made.loaded == 0


def test_a_file_that_was_there_is_kept_and_a_new_one_is_not_left_behind(tmp_path):
    kept, new = tmp_path / "kept.json", tmp_path / "folder" / "new.json"
    kept.write_text("What somebody keeps.")
    for path in (kept, new):
        _report.check_writable(path)
    assert kept.read_text() == "What somebody keeps."
    assert new.parent.is_dir()
    assert not new.exists()
