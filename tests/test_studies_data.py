"""The data of the studies has the right checksum, or an error says what to do."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
from scripts import Data, made_up_airfoil, module

pytestmark = pytest.mark.scripts

((NAME, CONTENT),) = made_up_airfoil().items()
ROWS = np.array([line.split() for line in CONTENT.decode().splitlines()], float)


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path / "data", {NAME: CONTENT})


@pytest.fixture
def read(data, monkeypatch):
    """Reads the airfoil data, with the checksum of the made-up file and a cache of its own."""
    found = module("studies._lib.data")
    monkeypatch.setattr(pooch, "os_cache", data.cache.joinpath)
    monkeypatch.setattr(found, "SHA256", data.sha256)

    def read(data_dir=None, data_url=None, urls=None):
        if urls:
            monkeypatch.setattr(found, "AIRFOIL_URLS", urls)
        return found.airfoil(SimpleNamespace(data_dir=data_dir, data_url=data_url))

    return read


def test_a_folder_is_read_and_a_missing_or_another_file_refused(read, data, tmp_path):
    np.testing.assert_array_equal(read(data.folder), ROWS)
    with pytest.raises(SystemExit, match=f"no {NAME} in --data-dir"):
        read(tmp_path)
    changed = CONTENT.replace(b"1", b"2", 1)
    (data.folder / NAME).write_bytes(changed)
    digests = (hashlib.sha256(content).hexdigest() for content in (changed, CONTENT))
    with pytest.raises(SystemExit, match=r"SHA-256 is {}, not {}".format(*digests)):
        read(data.folder)
    assert not data.cache.exists()


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_download_is_kept_and_a_damaged_one_made_again(read, data, slash):
    with data.served() as url:
        for _ in range(3):
            np.testing.assert_array_equal(read(data_url=url + slash), ROWS)
        assert data.requests == [f"/{NAME}"]
        (kept,) = data.cache.rglob(NAME)
        kept.write_bytes(CONTENT[:-10])
        np.testing.assert_array_equal(read(data_url=url), ROWS)
    np.testing.assert_array_equal(read(), ROWS)


def test_every_place_is_tried_and_each_failure_told(read, data):
    with data.served() as url:
        np.testing.assert_array_equal(read(urls=(f"{url}/nowhere/", f"{url}/")), ROWS)
        assert data.requests == [f"/nowhere/{NAME}", f"/{NAME}"]
        next(data.cache.rglob(NAME)).unlink()
        with pytest.raises(SystemExit, match=r"/here/: 404(?s:.)*/there/: 404"):
            read(urls=(f"{url}/here/", f"{url}/there/"))
        (data.folder / NAME).write_bytes(b"Please log in.")
        with pytest.raises(SystemExit, match=r"Could not(?s:.)*--data-dir") as error:
            read(data_url=url)
    assert url in str(error.value)
    assert not list(data.cache.rglob(NAME))


def test_utterances_end_at_a_row_of_ones(monkeypatch, tmp_path):
    rng, found = np.random.default_rng(0), module("studies._lib.data")
    spoken = [rng.normal(size=(length, 12)).round(4) for length in (7, 29, 12)]
    text = "".join(
        "\n".join(" ".join(map(str, row)) for row in [*frames, np.ones(12)]) + "\n"
        for frames in spoken
    )
    files = Data(tmp_path / "data", dict.fromkeys(("ae.train", "ae.test"), f"{text}\n".encode()))
    monkeypatch.setattr(found, "SHA256", files.sha256)
    monkeypatch.setattr(found, "VOWELS_SPEAKERS", {"ae.train": (2, 1), "ae.test": (0, 3)})
    (frames, lengths, speakers), test = found.vowels(SimpleNamespace(data_dir=files.folder))
    assert lengths.tolist() == test[1].tolist() == [7, 29, 12]
    assert (speakers.tolist(), test[2].tolist()) == ([0, 0, 1], [1, 1, 1])
    for series, expected in zip(frames, spoken, strict=True):
        np.testing.assert_array_equal(series[: len(expected)], expected.astype(np.float32))
        assert not series[len(expected) :].any()
