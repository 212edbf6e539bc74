"""Runs examples and studies as users do, with made-up data from a local server."""

import contextlib
import functools
import hashlib
import http.server
import importlib
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
STUDIES = ROOT / "studies"
# The other examples have tests of their own.
WITHOUT_PICTURE = {"distributed", "from_torch", "log_to_tensorboard"}
WITH_PICTURE = {path.stem for path in EXAMPLES.glob("*.py")} - WITHOUT_PICTURE
BARS = ("Training", "Drawing")
# The made-up data has its own checksums and cache folder, so no file of the user is touched.
WITH_CHECKSUMS = """
import json, pathlib, runpy, sys
import pooch
from studies._lib import data as _data
_data.SHA256 = json.loads(sys.argv[1])
pooch.os_cache = pathlib.Path(sys.argv[2]).joinpath
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


class Data:
    """Made-up data files in a folder, which a local server can offer."""

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
        """Serves the folder, and yields its address."""
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
    """Returns the finished process of an example, or of a module such as `studies.airfoil`."""
    env = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": promotion}
    command = [sys.executable]
    if data is not None:
        command += ["-c", WITH_CHECKSUMS, json.dumps(data.sha256), data.cache, name]
    elif "." in name:
        command += ["-m", name]
    else:
        command += [EXAMPLES / f"{name}.py"]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=env,
        cwd=ROOT,
        timeout=600,
    )


def run(name, *arguments, data=None, promotion="strict"):
    """Returns what the script printed, and checks that stderr has only progress bars."""
    done = start(name, *arguments, data=data, promotion=promotion)
    assert done.returncode == 0, done.stderr
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    download = re.compile(r"\s*\d+%\|")
    assert [ln for ln in lines if not ln.startswith(BARS) and not download.match(ln)] == []
    return done.stdout


def refusal(name, *arguments, data=None):
    """Returns the error message of a script that refuses to run, without a traceback."""
    done = start(name, *arguments, data=data)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def benchmark(name, output):
    """Returns what the benchmark printed at smoke size, and its results."""
    done = start(f"studies.{name}", "--smoke", "--output", output, promotion="standard")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text("utf-8"))


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
