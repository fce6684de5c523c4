"""CAS: which samples it reads, what it learns, continuation, its result, refusals."""

import json
import shutil

import numpy as np
import pytest
import tiny
import tiny_classifier
import torch

import datasets
from configs import common
from run_lib_cas import cas, read_samples
from storage.files import save_npz
from storage.workdir import Workdir
from training.cas import CASTraining
from utils import UserError


@pytest.fixture
def config(cache):
    return tiny_classifier.config("cas", cache)


def write_samples(folder, cache, count=3):
    """`count` real training digits of each class as samples, in rounds of 2."""
    split = datasets.load(tiny.config(cache).data, "train")
    for label in range(10):
        images = split.images[split.labels == label][:count].transpose(0, 2, 3, 1)
        for index in range(0, count, 2):
            path = folder / str(label) / f"samples_{index // 2}.npz"
            save_npz(path, samples=images[index : index + 2], nfe=1)
    return folder


def newest(workdir, name):
    return torch.load(Workdir(workdir).cas(name).checkpoint(), weights_only=True)


def test_samples_are_read_by_class_and_round(config, cache, here):
    """Round 10 comes after round 2, and each class gives its first num_samples_all / classes."""
    folder = write_samples(here / "samples", cache, count=24)
    config.eval.num_samples_all = 213
    split, _ = read_samples(config, folder, 10)
    real = datasets.load(config.data, "train")
    assert np.bincount(split.labels).tolist() == [22, 22, 22, *[21] * 7]
    for label, count in ((0, 22), (9, 21)):
        expected = real.images[real.labels == label][:count]
        assert np.array_equal(split.images[split.labels == label], expected)


def test_a_run_writes_its_files_and_its_accuracy(config, cache, here, capsys):
    write_samples(here / "samples", cache)
    accuracy = cas(config, "run", samples="samples")
    assert 0 <= accuracy <= 1
    root = Workdir("run").root
    assert newest("run", "samples")["step"] == 8
    written = json.loads((root / "metrics.json").read_text())["cas_samples"]
    assert written["accuracy"] == accuracy
    settings = written["settings"]
    assert (settings["images"], settings["steps"], settings["network"]) == (30, 8, "small_cnn")
    assert settings["tested_on"] == "360 test images of digits"
    output = capsys.readouterr().out
    assert f"CAS: accuracy {100 * accuracy:.2f} % on 360 test images of digits" in output
    assert "run --setup real" in output
    reference = cas(config, "run", setup="real")
    assert json.loads((root / "metrics.json").read_text()).keys() == {"cas_samples", "cas_real"}
    capsys.readouterr()
    # A finished run only reports again, now beside the reference.
    assert cas(config, "run", samples="samples") == accuracy
    output = capsys.readouterr().out
    assert f"CAS: accuracy {100 * reference:.2f} % on 360" in output
    assert f"CAS: accuracy {100 * accuracy:.2f} % on 360" in output


@pytest.mark.parametrize(("eval_freq", "images"), [(200, 1800), (2, 150)])
def test_validation_takes_two_percent_of_the_passes(eval_freq, images):
    """A training image takes three passes; never fewer images than a batch."""
    config = common.dlsm_cas(common.CIFAR10, "resnet18_cond")
    config.cas.model, config.training.eval_freq = "small_cnn", eval_freq
    test = datasets.Split(np.zeros((3000, 3, 8, 8), np.uint8), np.arange(3000) % 10, 10)
    job, seen = CASTraining(config, torch.device("cpu"), test, test), []
    job.model.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    job.validate(test, lambda: None)
    assert sum(seen) == images


@pytest.mark.slow
def test_real_digits_teach_it_and_shuffled_labels_do_not(config, cache, here):
    """The accuracy is of the test split, and depends on what the samples are."""
    for folder, shift in (("true", 0), ("false", 1)):
        write_samples(here / "true", cache, count=40)
        if shift:
            for label in range(10):
                shutil.copytree(here / "true" / str(label), here / folder / str((label + 1) % 10))
    config.eval.num_samples_all = 400
    config.training.n_iters = 150
    config.optim.lr = 3e-3
    assert cas(config, "a", samples="true") > 0.7
    assert cas(config, "b", samples="false") < 0.1


@pytest.mark.parametrize("folder", ["sample", "eval_samples"])
def test_a_set_ups_samples_are_found(config, cache, here, folder):
    """In the published place, else in eval_samples."""
    run = here / "results/classifier_digits_ours_resnet_small_cond"
    write_samples(run / "eval_samples", cache, count=1 if folder == "sample" else 3)
    if folder == "sample":
        write_samples(run / "sample", cache)
    cas(config, "run", setup="ours")
    settings = json.loads(Workdir("run").metrics.read_text())["cas_ours"]["settings"]
    assert settings["trained_on"].endswith(f"ours_resnet_small_cond/{folder}")


def test_missing_samples_are_counted(config, cache, here):
    folder = write_samples(here / "samples", cache)
    (folder / "4" / "samples_1.npz").unlink()
    shutil.rmtree(folder / "7")
    with pytest.raises(UserError, match=r"1 of the 3 .* class 4"):
        cas(config, "run", samples="samples")
    assert not Workdir("run").root.exists()
    config.eval.num_samples_all = 90
    with pytest.raises(UserError, match=r"6 of the 9 .* class 0"):
        cas(config, "run", samples="samples")


def test_other_images_are_not_mixed(config, cache, here):
    write_samples(here / "samples", cache)
    config.training.n_iters = 3
    cas(config, "run", samples="samples")
    path = here / "samples/4/samples_0.npz"
    save_npz(path, samples=np.zeros((2, 8, 8, 1), np.uint8), nfe=1)
    with pytest.raises(UserError, match="samples"):
        cas(config, "run", samples="samples")
