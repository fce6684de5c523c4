"""Which files make up a set of samples: complete, in order, of one origin, or a sentence."""

import numpy as np
import pytest
from drawn import draw

from configs.demo import digits
from metrics.sample_sets import Part, find, find_samples, numbered_rounds
from storage.files import save_npz
from storage.workdir import Workdir
from utils import UserError, shares


def parts(folder, count, total):
    return [Part(f"class {i}", folder / str(i), n) for i, n in enumerate(shares(total, count))]


def refused(folder, count, total, *said):
    with pytest.raises(UserError) as error:
        find(parts(folder, count, total), "samples", "Draw them.")
    for text in said:
        assert text in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    draw(tmp_path, 5, 50, 2)
    for gone in numbered_rounds(tmp_path / "3"):
        gone[1].unlink()
    for index in (1, 4):
        (tmp_path / "1" / f"samples_{index}.npz").unlink()
    refused(tmp_path, 5, 50, "class 3 has 0 of 10", "class 1 has 6 of 10", "Draw")
    refused(tmp_path, 30, 300, "class 5 has 0 of 10", "and 17 more")


def test_more_than_was_asked_for_is_named(tmp_path):
    draw(tmp_path, 3, 30, 5)
    refused(tmp_path, 2, 20, f"{tmp_path / '2'} was not asked for")
    refused(tmp_path, 3, 24, "class 0 has 10 of 8")


def test_different_origins_do_not_mix(tmp_path):
    draw(tmp_path / "a", 2, 8, 2)
    draw(tmp_path / "b", 2, 8, 2, weights="ffff", more=1)
    (tmp_path / "b/1/samples_1.npz").replace(tmp_path / "a/1/samples_1.npz")
    refused(tmp_path / "a", 2, 8, "1/samples_1.npz", "weights=", "more=")


def test_files_of_the_published_code_say_nothing_and_are_taken(tmp_path):
    save_npz(tmp_path / "0/samples_0.npz", samples=np.zeros((2, 8, 8, 3), np.uint8))
    [[item]] = find(parts(tmp_path, 1, 2), "samples", "")
    assert item.origin == {}
    draw(tmp_path / "other", 2, 4, 2)
    (tmp_path / "0").replace(tmp_path / "other/0.new")
    (tmp_path / "other/0.new/samples_0.npz").replace(tmp_path / "other/0/samples_0.npz")
    (tmp_path / "other/0.new").rmdir()
    refused(tmp_path / "other", 2, 4, "samples_0.npz")


@pytest.mark.parametrize("spoil", [{"meta": "{"}, {"meta": "[]"}])
def test_a_file_of_somebody_elses_is_named(tmp_path, spoil):
    good = {"samples": np.zeros((2, 8, 8, 3), np.uint8)}
    save_npz(tmp_path / "0/samples_0.npz", **(good | spoil))
    refused(tmp_path, 1, 2, "samples_0.npz")


def test_images_of_another_kind_are_named(tmp_path):
    place, config = Workdir(str(tmp_path)), digits.get_config()
    draw(place.division(0, "").parent, 1, 4, 2)
    config.eval.num_samples, config.eval.num_divisions = 4, 1
    with pytest.raises(UserError, match=r"\(8, 8, 3\).*\(8, 8, 1\)"):
        find_samples(config, place)
