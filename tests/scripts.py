"""Runs examples as users do, imports studies, and makes up data for them."""

import gzip
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# The other examples have tests of their own.
WITHOUT_PICTURE = {"distributed", "from_torch", "log_to_tensorboard"}
WITH_PICTURE = {path.stem for path in EXAMPLES.glob("*.py")} - WITHOUT_PICTURE
BARS = re.compile(r"Training|Drawing|\s*\d+%\|")
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def made_up_airfoil():
    """Returns the file of a linear model with noise, in units as far apart as the real ones."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(703, 5)) * [3000, 6, 0.1, 15, 0.01] + [2900, 7, 0.1, 50, 0.01]
    target = features @ [-1e-3, -0.4, -36, 0.1, -150] + 130 + 6 * rng.normal(size=703)
    table = np.column_stack([features, target])
    text = "".join("\t".join(f"{x:.6g}" for x in row) + "\r\n" for row in table)
    return {"airfoil_self_noise.dat": text.encode()}


def made_up_mnist(images=350):
    """Returns the files of images of ten patterns in which most pixels come from any of them."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28)) * (rng.random((10, 28, 28)) < 0.2)

    def idx(array):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)

    files = {}
    for part in ("train", "t10k"):
        labels = rng.integers(0, 10, images)
        others = patterns[rng.integers(0, 10, (images, 28, 28)), *np.ogrid[:28, :28]]
        shown = np.where(rng.random((images, 28, 28)) < 0.2, patterns[labels], others)
        files[f"{part}-images-idx3-ubyte.gz"] = idx(shown)
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
    return files


def start(name, *arguments, promotion="strict"):
    """Returns the finished process of an example."""
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": promotion},
        cwd=ROOT,
        timeout=600,
    )


def run(name, *arguments, promotion="strict"):
    """Returns what the example printed, and checks that stderr has only progress bars."""
    done = start(name, *arguments, promotion=promotion)
    assert done.returncode == 0, done.stderr
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    assert [line for line in lines if not BARS.match(line)] == []
    return done.stdout


def refusal(name, *arguments):
    """Returns the error message of an example that refuses to run, without a traceback."""
    done = start(name, *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def numbers(pattern, printed):
    """Returns the numbers that the groups of the pattern hold, which must occur once."""
    (found,) = re.findall(pattern, printed)
    return [float(number) for number in ((found,) if isinstance(found, str) else found)]


def module(name):
    """Returns an example, or a module such as `studies.airfoil`."""
    with warnings.catch_warnings():
        # Deprecations inside other packages.
        warnings.simplefilter("ignore")
        if "." in name:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    return found


def check_picture(path, smallest=10_000, largest=200_000):
    """Checks that the file is a picture, large enough to read and small enough to ship."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert smallest < len(content) < largest
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert width >= 800
    assert height >= 300
