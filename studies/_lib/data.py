"""The data of the studies, downloaded once into a cache folder, with verified checksums."""

import argparse
import gzip
from pathlib import Path

import numpy as np
import pooch

# As sha256sum prints them.
CHECKSUMS = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  t10k-labels-idx1-ubyte.gz
74c75fd71783f1e6b71f8a622b993dc592897a97cd689c5090a07147a1b097b3  airfoil_self_noise.dat
5c2741199dc360fff0c1a068f57060d2125b16a5cab46800913a79d62c4b1d65  ae.train
4d863f4f982b660c326250606cec2d03f40953870a22759a05a6b23917332356  ae.test
"""
SHA256 = {name: digest for digest, name in map(str.split, CHECKSUMS.strip().splitlines())}
MNIST_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
AIRFOIL_URLS = (
    "https://archive.ics.uci.edu/ml/machine-learning-databases/00291/",
    "http://d2l-data.s3-accelerate.amazonaws.com/",
)
VOWELS_URLS = ("https://archive.ics.uci.edu/ml/machine-learning-databases/JapaneseVowels-mld/",)
# The utterances of each of the nine speakers, in the order of the files.
VOWELS_SPEAKERS = {"ae.train": (30,) * 9, "ae.test": (31, 35, 88, 44, 29, 24, 40, 50, 29)}
VOWELS_FRAMES = 29  # Of the longest utterance.


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the data is."""
    text = "folder that already has the data (default: download into a cache folder)"
    parser.add_argument("--data-dir", type=Path, help=text)
    text = "URL of a folder to download from (default: the usual places)"
    parser.add_argument("--data-url", help=text)


def mnist(options: argparse.Namespace):
    """Returns (images, labels) for training and for testing: [n, 784] uint8, [n] int32."""

    def read(name, header):
        path = _path(f"{name}-ubyte.gz", MNIST_URLS, options)
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    return tuple(
        (
            read(f"{part}-images-idx3", 16).reshape(-1, 28 * 28),
            read(f"{part}-labels-idx1", 8).astype(np.int32),
        )
        for part in ("train", "t10k")
    )


def airfoil(options: argparse.Namespace) -> np.ndarray:
    """Returns [1503, 6] float64: five properties of an airfoil, and its noise in dB."""
    return np.loadtxt(_path("airfoil_self_noise.dat", AIRFOIL_URLS, options))


def vowels(options: argparse.Namespace):
    """Returns (frames, lengths, speakers) for training and for testing.

    Frames are [n, 29, 12] float32, zero after the length of an utterance. Lengths and speakers are
    [n] int32.
    """

    def read(name, counts):
        text = _path(name, VOWELS_URLS, options).read_text("ascii")
        table = np.array([line.split() for line in text.splitlines() if line.strip()], np.float32)
        # A row of ones ends an utterance.
        ends = np.flatnonzero((table == 1).all(axis=1))
        lengths = np.diff(ends, prepend=-1) - 1
        frames = np.zeros((len(ends), VOWELS_FRAMES, table.shape[1]), np.float32)
        for series, end, length in zip(frames, ends, lengths, strict=True):
            series[:length] = table[end - length : end]
        speakers = np.repeat(np.arange(len(counts)), counts)
        return frames, lengths.astype(np.int32), speakers.astype(np.int32)

    return tuple(read(name, counts) for name, counts in VOWELS_SPEAKERS.items())


def _path(name: str, urls: tuple[str, ...], options: argparse.Namespace) -> Path:
    """Returns the path of the file, with a verified checksum."""
    if options.data_dir is not None:
        path = options.data_dir / name
        if not path.is_file():
            raise SystemExit(f"There is no {name} in --data-dir {options.data_dir}.")
        found = pooch.file_hash(path)
        if found != SHA256[name]:
            raise SystemExit(
                f"{path} is the wrong file: its SHA-256 is {found}, not {SHA256[name]}."
            )
        return path

    pooch.get_logger().setLevel("WARNING")
    failures = []
    for url in [options.data_url] if options.data_url else urls:
        try:
            return Path(
                pooch.retrieve(
                    f"{url.rstrip('/')}/{name}",
                    known_hash=f"sha256:{SHA256[name]}",
                    fname=name,
                    path=pooch.os_cache("optax_adadelta"),
                    downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
                )
            )
        except (OSError, ValueError) as error:
            failures.append(f"  {url}: {error}")
    raise SystemExit(
        "\n".join([f"Could not download {name}:", *failures])
        + "\nIf you have the file, name its folder with --data-dir. Or try another --data-url."
    )
