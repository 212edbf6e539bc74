"""Runs the examples as their users do, with data made up for it and served on this machine."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BENCHMARKS = ROOT / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"
BARS = ("Training", "Drawing")
# The made-up data has its own checksums and cache folder, so that no file of the user's is touched.
WITH_CHECKSUMS = f"""
import json, pathlib, runpy, sys
sys.path.insert(0, {str(EXAMPLES)!r})
import _data, pooch
_data.SHA256 = json.loads(sys.argv[1])
pooch.os_cache = pathlib.Path(sys.argv[2]).joinpath
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Data:
    """Made-up files of data in a folder, which a server on this machine offers too."""

    def __init__(self, folder, files):
        self.folder = folder
        self.cache = folder.parent / "cache"
        self.sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self.requests = []
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    @contextlib.contextmanager
    def served(self):
        """Serves the folder, and gives its address."""
        asked = self.requests

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(self, *args):
                asked.append(self.path)

            def log_error(self, *args):
                pass

        handler = functools.partial(Handler, directory=self.folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


def start(name, *arguments, data=None, promotion="strict"):
    """Returns the finished process of an example, whatever came of it."""
    env = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": promotion}
    command = [sys.executable]
    if data is not None:
        command += ["-c", WITH_CHECKSUMS, json.dumps(data.sha256), data.cache]
    command += [EXAMPLES / f"{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, timeout=600)


def run(name, *arguments, data=None, promotion="strict"):
    """Returns what the example printed, having checked that stderr holds bars at most."""
    done = start(name, *arguments, data=data, promotion=promotion)
    assert done.returncode == 0, done.stderr
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    download = re.compile(r"\s*\d+%\|")
    assert [ln for ln in lines if not ln.startswith(BARS) and not download.match(ln)] == []
    return done.stdout


def refusal(name, *arguments, data=None):
    """Returns what the example says when it refuses to run, which is no traceback."""
    done = start(name, *arguments, data=data)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def benchmark(name, output):
    """Returns what the benchmark printed at smoke size, and its results."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--smoke", "--output", output]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=output.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text("utf-8"))


def numbers(pattern, printed):
    """Returns the numbers that the groups of the pattern hold, which must occur once."""
    (found,) = re.findall(pattern, printed)
    return [float(number) for number in ((found,) if isinstance(found, str) else found)]


def module(name, folder=EXAMPLES):
    """Returns the example, or the script of another folder, as a module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Other packages' deprecations of one another are not the example's.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(found)
    return found


def check_picture(path, smallest=10_000, largest=200_000):
    """Checks that the file is a picture, large enough to read and small enough to ship."""
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert smallest < len(content) < largest
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert width >= 800
    assert height >= 300
