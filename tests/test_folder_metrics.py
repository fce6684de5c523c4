"""run_lib_evaluation.py --folders A B: any two folders of images, with torch-fidelity's numbers."""

import functools

import numpy as np
import pytest
import tiny
from commands import refused, works
from drawn import draw
from PIL import Image
from test_features import weights  # noqa: F401 (a fixture)
from torch_fidelity import calculate_metrics

import run_lib_evaluation  # noqa: F401 (imported here, the forks need not)
from metrics import feature_classifier, image_folders
from utils import UserError

FOLDERS = "run_lib_evaluation.py --folders"
SMALL = ["--config.device=cpu", "--config.eval.kid_subset_size=3"]


def fill(folder, count, size, mode="RGB", suffix="png", darkest=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([count, size])
    channels = () if mode == "L" else (3,)
    for number in range(count):
        array = rng.integers(darkest, 256, (size, size + 2, *channels), dtype=np.uint8)
        # Not padded: 10 comes before 2, as torch-fidelity sorts them.
        Image.fromarray(array).convert(mode).save(folder / f"{number}.{suffix}")


def printed(text):
    """The numbers of the printed tables by their names."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith(("#", "20"))]
    return {
        name: float(value)
        for names, values in zip(rows[::2], rows[1::2], strict=True)
        for name, value in zip(names, values[1:], strict=True)
    }


def test_numbers_are_torch_fidelitys(tmp_path, weights):  # noqa: F811
    """Images of two sizes, grey and with an alpha channel, PNG and JPEG; and what is no image."""
    fill(tmp_path / "A", 4, 24)
    fill(tmp_path / "B", 3, 40, suffix="jpg", darkest=128)
    fill(tmp_path / "B", 2, 40, mode="RGBA")
    (tmp_path / "B/deeper").mkdir()
    (tmp_path / "B/README.txt").write_text("no image")
    flags = [*SMALL, f"--config.eval.inception_weights={weights}"]
    text = works(f"{FOLDERS} A B --fidis --kid --prdc", tmp_path, flags)
    assert "# 4 samples (folder A), 5 real images" in text
    ours = printed(text)
    theirs = calculate_metrics(
        input1=str(tmp_path / "A"),
        input2=str(tmp_path / "B"),
        isc=True,
        fid=True,
        kid=True,
        isc_splits=1,
        kid_subset_size=3,
        feature_extractor_weights_path=str(weights),
        cuda=False,
        batch_size=4,
        save_cpu_ram=True,  # no processes that load the images
        cache=False,
        verbose=False,
    )
    for name, key in (
        ("fid", "frechet_inception_distance"),
        ("is", "inception_score_mean"),
        ("kid", "kernel_inception_distance_mean"),
    ):
        assert ours[name] == pytest.approx(theirs[key], rel=1e-3), name
    assert ours.keys() >= {"precision", "recall", "density", "coverage"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "B"]  # nothing is written


def test_a_configuration_may_name_the_extractor(tmp_path, monkeypatch):
    """Here the digits' own classifier; --folders=A --folders=B is the same."""
    briefly = functools.partial(feature_classifier.train_small_classifier, steps=3)
    monkeypatch.setattr(feature_classifier, "train_small_classifier", briefly)
    fill(tmp_path / "A", 8, 8, mode="L")
    fill(tmp_path / "B", 7, 8, mode="L")
    line = "run_lib_evaluation.py --folders=A --folders=B --prdc"
    said = works(line, tmp_path, [f"--config={tiny.CONFIG}"])
    assert "features classifier-digits-" in said
    assert "a classifier of digits" in said


def test_folders_hold_what_training_takes(tmp_path):
    """The same formats, which lie as they lie there."""
    names = [f"{suffix}.{suffix}" for suffix in ("bmp", "gif", "jpeg", "png", "ppm", "tif", "webp")]
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste("black", (0, 0, 8, 4))
    for name in names:
        picture.save(tmp_path / name, exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    for name in (".DS_Store", "._1.jpg", "Thumbs.db"):
        (tmp_path / name).write_text("no image")
    paths = image_folders.image_paths(tmp_path)
    assert [path.name for path in paths] == sorted([*names, "transparent.png"])
    (batch,) = image_folders.image_batches(tmp_path, 100, channels=3)
    images = dict(zip([path.name for path in paths], batch.read(), strict=True))
    assert (images["transparent.png"] == 255).all()
    for name in ("jpeg.jpeg", "png.png", "tif.tif", "webp.webp"):
        assert images[name][7].max() < 60 < 200 < images[name][0].min(), name


def test_mistakes_get_a_sentence(tmp_path):
    fill(tmp_path / "A", 3, 8)
    (tmp_path / "empty").mkdir()
    refused(f"{FOLDERS} A A", tmp_path, (), "Nothing was asked for", "--fidis", "--kid")
    refused(f"{FOLDERS} A --fidis", tmp_path, (), "--folders")
    refused(f"{FOLDERS} A none --fidis", tmp_path, (), "none")
    refused(f"{FOLDERS} A empty --fidis", tmp_path, (), "empty")
    refused(f"{FOLDERS} A A --encode --fidis --mode class", tmp_path, (), "--encode", "--mode")
    classifier = ["--config.eval.features=classifier", "--config.device=cpu"]
    refused(f"{FOLDERS} A A --fidis", tmp_path, classifier, "data.dataset")
    refused("run_lib_evaluation.py --fidis", tmp_path, (), "--config")


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_are_the_samples_in_their_order(tmp_path, channels):
    images = draw(tmp_path / "eval_sampling", 2, 26, 12, shape=(8, 6, channels))
    target = image_folders.write_samples(tmp_path / "eval_sampling")
    assert target == tmp_path / "eval_sampling_png"
    batches = image_folders.image_batches(target, 10, channels)
    read = np.concatenate([batch.read() for batch in batches])
    np.testing.assert_array_equal(read, images)
    draw(tmp_path / "eval_sampling", 1, 12, 12, shape=(8, 6, channels), seed=43)
    (tmp_path / "eval_sampling/1/samples_0.npz").unlink()
    image_folders.write_samples(tmp_path / "eval_sampling")
    assert [path.name[:10] for path in sorted(target.iterdir())] == (
        ["0000_00000"] * 12 + ["0000_00001"] + ["0001_00001"]
    )


def test_images_of_a_folder_are_of_one_size(tmp_path):
    fill(tmp_path, 11, 8)
    for spoil in (lambda path: Image.new("L", (9, 9)).save(path), lambda p: p.write_bytes(b"no")):
        spoil(tmp_path / "9.png")
        with pytest.raises(UserError, match=r"9\.png"):
            [batch.read() for batch in image_folders.image_batches(tmp_path, 20, channels=3)]
