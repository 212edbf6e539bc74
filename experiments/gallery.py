"""Make every picture of docs/gallery.md, and the numbers behind it.

Runs the examples one after the other, each in full, into one folder. That takes an hour and a half
on two cores, nearly all of it for the MNIST tables and figures. With --draw-only the pictures are
drawn anew from the numbers that are there, in a minute; the two that take seconds are run again.

Needs: pip install "optax_adadelta[examples]"
"""

import argparse
import subprocess
import sys
from pathlib import Path

from experiments import _data

HERE = Path(__file__).parent
# Whether the example reads data that has to be downloaded, and whether its output is a picture.
EXAMPLES = {
    "digits": (False, True),
    "linear_regression": (False, True),
    "trajectories": (False, False),
    "airfoil": (True, False),
    "mnist_tables": (True, False),
    "mnist_figures": (True, False),
}


def command(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the command that runs an example into the folder."""
    downloads, writes_picture = EXAMPLES[name]
    words = [sys.executable, str(HERE / f"{name}.py"), "--output"]
    picture = f"{name}{'-smoke' * options.smoke}.png"
    words += [str(options.output / picture if writes_picture else options.output)]
    words += ["--smoke"] * options.smoke
    words += ["--draw-only"] * (options.draw_only and not writes_picture)
    if downloads and options.data_dir:
        words += ["--data-dir", str(options.data_dir)]
    if downloads and options.data_url:
        words += ["--data-url", options.data_url]
    return words


def main() -> None:
    """Reads the options and runs the examples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = "which to run (default: all)"
    add("--examples", nargs="+", choices=list(EXAMPLES), default=list(EXAMPLES), help=text)
    text = "the folder for numbers and pictures (default: %(default)s)"
    add("--output", type=Path, default=Path("docs/gallery"), help=text)
    add("--draw-only", action="store_true", help="train nothing that takes long (default: off)")
    add("--smoke", action="store_true", help="only try that all works (default: off)")
    _data.add_options(parser)
    options = parser.parse_args()

    for name in options.examples:
        print(f"=== {name}", flush=True)
        done = subprocess.run(command(name, options))
        if done.returncode:
            raise SystemExit(f"{name} failed with exit status {done.returncode}.")
    print(f"Numbers and pictures: {options.output}")


if __name__ == "__main__":
    main()
