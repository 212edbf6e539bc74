"""The data of the experiments has the right checksum, or an error says what to do."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
from scripts import Data, module

NAME = "airfoil_self_noise.dat"
ROWS = np.random.default_rng(0).normal(size=(20, 6)).round(3)
CONTENT = "".join("\t".join(map(str, row)) + "\r\n" for row in ROWS).encode()


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path / "data", {NAME: CONTENT})


@pytest.fixture
def examples_data(data, monkeypatch):
    """The examples' module, with the checksum of the made-up file and a cache of its own."""
    monkeypatch.setattr(pooch, "os_cache", data.cache.joinpath)
    found = module("studies._lib.data")
    found.SHA256 = data.sha256
    return found


def options(data_dir=None, data_url=None):
    return SimpleNamespace(data_dir=data_dir, data_url=data_url)


def test_a_folder_that_has_the_file(examples_data, data):
    np.testing.assert_array_equal(examples_data.airfoil(options(data.folder)), ROWS)
    assert not data.cache.exists()


def test_a_folder_without_the_file(examples_data, tmp_path):
    with pytest.raises(SystemExit, match=f"no {NAME} in --data-dir"):
        examples_data.airfoil(options(tmp_path))


def test_a_folder_with_another_file_of_that_name(examples_data, data):
    changed = CONTENT.replace(b"1", b"2", 1)
    (data.folder / NAME).write_bytes(changed)
    digests = (hashlib.sha256(content).hexdigest() for content in (changed, CONTENT))
    with pytest.raises(SystemExit, match=r"SHA-256 is {}, not {}".format(*digests)):
        examples_data.airfoil(options(data.folder))
    assert (data.folder / NAME).read_bytes() == changed


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_download_is_kept(examples_data, data, slash):
    with data.served() as url:
        for _ in range(3):
            np.testing.assert_array_equal(
                examples_data.airfoil(options(data_url=url + slash)), ROWS
            )
    assert data.requests == [f"/{NAME}"]
    np.testing.assert_array_equal(examples_data.airfoil(options()), ROWS)


def test_a_damaged_download_is_made_again(examples_data, data):
    with data.served() as url:
        examples_data.airfoil(options(data_url=url))
        (kept,) = data.cache.rglob(NAME)
        kept.write_bytes(CONTENT[:-10])
        np.testing.assert_array_equal(examples_data.airfoil(options(data_url=url)), ROWS)
    assert kept.read_bytes() == CONTENT


def test_a_download_of_something_else(examples_data, data):
    (data.folder / NAME).write_bytes(b"Please log in.")
    with data.served() as url, pytest.raises(SystemExit, match=r"Could not(?s:.)*--data-dir") as e:
        examples_data.airfoil(options(data_url=url))
    assert url in str(e.value)
    assert not list(data.cache.rglob(NAME))


def test_the_second_place_is_tried_when_the_first_fails(examples_data, data):
    with data.served() as url:
        examples_data.AIRFOIL_URLS = (f"{url}/nowhere/", f"{url}/")
        np.testing.assert_array_equal(examples_data.airfoil(options()), ROWS)
    assert data.requests == [f"/nowhere/{NAME}", f"/{NAME}"]


def test_no_place_that_answers(examples_data, data):
    with data.served() as url:
        examples_data.AIRFOIL_URLS = (f"{url}/here/", f"{url}/there/")
        with pytest.raises(SystemExit, match=r"/here/: 404(?s:.)*/there/: 404"):
            examples_data.airfoil(options())


def test_utterances_end_at_a_row_of_ones(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(length, 12)).round(4) for length in (7, 29, 12)]
    text = "".join(
        "\n".join(" ".join(map(str, row)) for row in [*frames, np.ones(12)]) + "\n"
        for frames in given
    )
    found = Data(tmp_path / "data", dict.fromkeys(("ae.train", "ae.test"), f"{text}\n".encode()))
    data = module("studies._lib.data")
    monkeypatch.setattr(data, "SHA256", found.sha256)
    monkeypatch.setattr(data, "VOWELS_SPEAKERS", {"ae.train": (2, 1), "ae.test": (0, 3)})
    (frames, lengths, speakers), test = data.vowels(options(found.folder))
    assert lengths.tolist() == test[1].tolist() == [7, 29, 12]
    assert (speakers.tolist(), test[2].tolist()) == ([0, 0, 1], [1, 1, 1])
    assert frames.shape == (3, 29, 12)
    for series, expected in zip(frames, given, strict=True):
        np.testing.assert_array_equal(series[: len(expected)], expected.astype(np.float32))
        assert not series[len(expected) :].any()
