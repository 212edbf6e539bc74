"""A user's program under type checkers."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.types
PROGRAM = pathlib.Path(__file__).parent / "typed_program.py"
CHECKERS = {
    # Optax has annotations, but does not offer them to mypy.
    "mypy": ["--strict", "--disable-error-code=import-untyped", "--cache-dir", os.devnull],
    "pyright": ["--pythonpath", sys.executable],
}


def check(checker, program):
    pytest.importorskip(checker)
    command = [sys.executable, "-m", checker, *CHECKERS[checker], str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=program.parent)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_program_has_no_type_errors(checker):
    status, told = check(checker, PROGRAM)
    assert status == 0, told


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_wrong_type_is_found(checker, tmp_path):
    program = tmp_path / "wrong.py"
    program.write_text(
        "from optax_adadelta import AdadeltaState\n\n\n"
        "def count(state: AdadeltaState) -> str:\n"
        "    return state.count\n",
        encoding="utf-8",
    )
    status, told = check(checker, program)
    assert status != 0
    assert "str" in told


def test_the_program_runs():
    subprocess.run([sys.executable, PROGRAM], check=True, capture_output=True)
