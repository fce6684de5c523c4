"""A UNet2DModel of diffusers as a score: against diffusers itself, and by the commands."""

import functools
import json

import numpy as np
import pytest
import torch
from commands import ROOT, command
from PIL import Image
from safetensors.torch import load_file, save_file

from configs import common
from models import jacobian
from models.labels import NO_LABEL
from models.trained import load_score, trained_weights
from samplers.denoisers import Denoiser
from samplers.deterministic import euler
from sde_lib import BETA_SCHEDULES
from storage import checkpoints, pipelines
from storage.workdir import Workdir
from utils import UserError

diffusers = pytest.importorskip("diffusers")

CPU = torch.device("cpu")
SIZE = 8


def write(directory, classes=None, **scheduler):
    """A tiny random UNet2DModel with attention, and its scheduler; both are returned too."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=classes,
    ).eval()
    scheduler = diffusers.DDPMScheduler(clip_sample=False, **scheduler)
    unet.save_pretrained(directory / "unet")
    scheduler.save_pretrained(directory / "scheduler")
    return unet, scheduler


def load(directory, classes=None):
    config = common.diffusers("folder")
    config.model.num_classes = classes
    return load_score(config, directory, CPU, use_ema=False)


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_the_chain_is_the_schedulers(tmp_path, schedule):
    _, scheduler = write(tmp_path, beta_schedule=schedule)
    sde = load(tmp_path).sde
    i = torch.arange(1000)
    scale, std = sde.marginal_prob(torch.ones(1000), i / 999)
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(scale.double() ** 2, expected, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(std.double() ** 2, 1 - expected, rtol=1e-3, atol=0)
    assert (sde.index(i / 999) == i).all()
    torch.testing.assert_close(sde.discrete_beta(i), scheduler.betas, rtol=1e-5, atol=0)
    for step in (0, 1, 500, 999):
        assert sde.time(sde.noise_level(step / 999)) * 999 == pytest.approx(step, abs=1e-6)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(sde.log_mean_coeff(t).sum(), t)
    torch.testing.assert_close(sde.beta(t), -2 * slope)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ddim(tmp_path, schedule, prediction):
    """Euler's method in σ on diffusers' own grid is its DDIM with η = 0."""
    unet, scheduler = write(tmp_path, beta_schedule=schedule, prediction_type=prediction)
    ddim = diffusers.DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(20)
    x = y = images(2)
    with torch.no_grad():
        for step in ddim.timesteps:
            y = ddim.step(unet(y, step).sample, step, y, eta=0.0).prev_sample

    trained = load(tmp_path)
    times = [step / 999 for step in ddim.timesteps.tolist()]
    sigmas = [*(trained.sde.noise_level(t) for t in times), 0.0]
    scale, _ = trained.sde.scale_and_std(times[0])
    ours = euler(Denoiser(trained.score, trained.sde), x.double() / scale, sigmas)
    # Random weights leave a large image; the difference is of float32's products.
    assert (ours - y).abs().max() < 1e-5 * max(1, y.abs().max())


@pytest.mark.parametrize("classes", [3, 4])
def test_classes(tmp_path, classes):
    """Of 4 embeddings for 4 classes none is added without a label; of 4 for 3 it is the last."""
    unet, _ = write(tmp_path, classes=4)
    trained = load(tmp_path, classes)
    x, step = images(3), torch.tensor([3.0, 500.0, 999.0])
    labels = torch.tensor([2, NO_LABEL, 0])
    score = trained.score.conditioned_on(labels)(x, step / 999)
    if classes == 4:
        with torch.no_grad():
            unet.class_embedding.weight[3] = 0
    noise = unet(x, step, class_labels=torch.tensor([2, 3, 0])).sample
    _, std = trained.sde.marginal_prob(step, step / 999)
    torch.testing.assert_close(score, -noise / std[:, None, None, None], rtol=1e-4, atol=1e-5)
    unlabelled = trained.score(x[1:2], step[1:2] / 999)
    torch.testing.assert_close(unlabelled, score[1:2], rtol=1e-4, atol=1e-5)


def test_asymmetry(tmp_path):
    """Against the whole Jacobian by autograd."""
    write(tmp_path)
    trained = load(tmp_path)
    score = trained.score
    score.net.double()
    x, t = images(1).double(), torch.tensor([0.3], dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda x: score(x, t), x)
    expected = expected.reshape(1, 3 * SIZE**2, 3 * SIZE**2)
    _, J = jacobian.matrix(functools.partial(score.value_and_jvp, x, t), x)
    # diffusers computes the embedding of the step in float32.
    torch.testing.assert_close(J, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(jacobian.asymmetry(J), jacobian.asymmetry(expected))
    assert jacobian.asymmetry(J) > 0


# ---------------------------------------------------------------- by the commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a pipeline and a folder of images."""
    root = tmp_path_factory.mktemp("diffusers")
    write(root / "tiny")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        (root / "images" / split).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
    return root


def run(line, place, *more):
    script, *arguments = line.split()
    config = [f"--config={ROOT}/configs/diffusers/own.py", "--config.device=cpu"]
    config += [f"--config.data.root={place}/images", f"--config.data.cache={place}/cache"]
    config += [f"--config.model.pretrained={place}/tiny", *more]
    done = command(" ".join([script, *arguments]), place, config)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


FEW = ("--config.training.snapshot_sampling=False", "--config.optim.lr=1e-3")
FEW += ("--config.optim.warmup=0", "--config.training.eval_freq=100")


@pytest.mark.slow
def test_commands_without_training(place):
    loose = "--bs 4 --atol 0.1 --rtol 0.1"
    run(f"run_lib_evaluation_nll.py --workdir P {loose} --calculate", place)
    assert "over 4 images" in run("run_lib_evaluation_nll.py --workdir P --read", place)
    draw = "run_lib_sampling.py --workdir P --bs 4 --num_samples 4 --num_divisions 1"
    run(f"{draw} --steps 5", place)
    run(
        f"{draw} --sampler pc --num_scales 5",
        place,
        "--config.sampling.predictor=ancestral_sampling",
    )
    run(f"{draw} --sampler ode", place, "--config.sampling.rtol=0.1", "--config.sampling.atol=0.1")
    for name in ("eval_sampling", "eval_sampling_ode", "eval_sampling_dpmpp_2m"):
        assert np.load(place / f"results/P/{name}/0/samples_0.npz")["samples"].std() > 0
    count = sum(p.numel() for p in load(place / "tiny").score.net.parameters())
    assert f"parameters: {count:,}" in run(
        "main.py --workdir P --dry_run --balancing_fac 0.01", place
    )


def test_export(place):
    run(
        "main.py --workdir E --bs 4 --balancing_fac 0.01",
        place,
        *FEW,
        "--config.training.n_iters=2",
    )
    run(f"main.py --workdir E --export_diffusers {place}/out", place)
    pipeline = diffusers.DDPMPipeline.from_pretrained(place / "out")
    checkpoint = place / "results/E/checkpoints/checkpoint.pth"
    trained = load_score(common.diffusers("folder"), checkpoint, CPU)
    x, step = images(2), torch.tensor([7.0, 900.0])
    noise = pipeline.unet(x, step).sample
    assert torch.equal(noise, trained.score.net(x, step))
    assert not torch.equal(noise, load(place / "tiny").score.net(x, step))
    assert torch.equal(pipeline.scheduler.alphas_cumprod, diffusers.DDPMScheduler().alphas_cumprod)
    for workdir, noted in (("new", False), ("E", True)):
        said = run(f"run_lib_sampling.py --workdir {workdir} --dry_run", place)
        assert ("config.model.pretrained is ignored" in said) == noted
    # And back.
    again = load(place / "out")
    assert torch.equal(noise, again.score.net(x, step))
    assert again.sde == trained.sde


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    write(tmp_path / "d")
    trained = load(tmp_path / "d")
    network, config = trained.score.net, trained.config
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for target in ("file", "d", ""):
        with pytest.raises(UserError, match="name a new directory"):
            pipelines.write(target, network, config)

    def fail(self, directory):
        raise OSError("full")

    (tmp_path / "e").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(diffusers.DDPMScheduler, "save_pretrained", fail)
        with pytest.raises(OSError, match="full"):
            pipelines.write("e", network, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "e", "file"]
    assert list((tmp_path / "e").iterdir()) == []
    pipelines.write("e", network, config)
    x, step = images(2), torch.tensor([7.0, 900.0])
    assert torch.equal(load(tmp_path / "e").score.net(x, step), network(x, step))


@pytest.mark.slow
def test_fine_tuning_lowers_the_asymmetry(place):
    few = ("--config.training.n_iters=50", "--config.loss.estimator=skew")
    run("main.py --workdir Q --bs 8 --balancing_fac 1 --slices 2", place, *FEW, *few)
    asym = "run_lib_evaluation_asym.py --bs 4 --nl 5 --slices 8"
    values = []
    for name in ("P2", "Q"):
        run(f"{asym} --workdir {name} --calculate", place, "--config.loss.estimator=skew")
        values.append(np.load(place / f"results/{name}/asym/repeat_0.npz")["nasym"].mean())

    assert values[1] < 0.8 * values[0]


# ---------------------------------------------------------------- mistakes


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(directory, name):
    """Write the weights anew under the names that the function `name` gives; None leaves one."""
    path = directory / "unet/diffusion_pytorch_model.safetensors"
    tensors = {name(old): tensor for old, tensor in load_file(path).items()}
    save_file({new: tensor for new, tensor in tensors.items() if new}, path)


SPOILED = {
    "a tensor is missing": lambda d: rename(d, lambda n: None if n == "conv_in.bias" else n),
    "a tensor is unexpected": lambda d: rename(d, lambda n: n.replace("conv_in.bias", "b")),
    "other shapes": lambda d: change(d / "unet/config.json", block_out_channels=[8, 24]),
    "no object": lambda d: (d / "unet/config.json").write_text("[1]"),
    "large beta": lambda d: change(d / "scheduler/scheduler_config.json", beta_end=2.0),
    "blocks": lambda d: change(d / "unet/config.json", down_block_types=7),
    "no weights": lambda d: (d / "unet/diffusion_pytorch_model.safetensors").unlink(),
    "no scheduler": lambda d: (d / "scheduler/scheduler_config.json").unlink(),
    "damaged": lambda d: (d / "unet/config.json").write_text("{"),
    "another network": lambda d: change(d / "unet/config.json", _class_name="UNet1DModel"),
    "flow": lambda d: change(d / "scheduler/scheduler_config.json", beta_schedule=None),
    "rescaled": lambda d: change(
        d / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True
    ),
    "schedule": lambda d: change(d / "scheduler/scheduler_config.json", beta_schedule="sigmoid"),
    "output": lambda d: change(d / "scheduler/scheduler_config.json", prediction_type="sample"),
    "no network": lambda d: (d / "unet").rename(d / "u"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_other_directories_get_a_sentence(tmp_path, kind):
    write(tmp_path)
    SPOILED[kind](tmp_path)
    with pytest.raises(UserError):
        load(tmp_path)


def test_fields_that_are_left_out_have_diffusers_defaults(tmp_path):
    unet, _ = write(tmp_path)
    path = tmp_path / "unet/config.json"
    fields = json.loads(path.read_text())
    for name in ("in_channels", "out_channels", "dropout", "act_fn"):
        del fields[name]
    path.write_text(json.dumps(fields))
    x, step = images(2), torch.tensor([3.0, 500.0])
    assert torch.equal(load(tmp_path).score.net(x, step), unet(x, step).sample)


def test_older_names_of_attention_are_read(tmp_path):
    """As in files of 2022, which diffusers renames itself."""
    unet, _ = write(tmp_path)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def name(n):
        for new, old in older.items():
            n = n.replace(new, old)
        return n

    rename(tmp_path, name)
    x, step = images(2), torch.tensor([3.0, 500.0])
    assert torch.equal(load(tmp_path).score.net(x, step), unet(x, step).sample)


def test_mistakes_get_a_sentence(tmp_path, monkeypatch):
    write(tmp_path / "d", classes=4)
    with pytest.raises(UserError, match="num_classes"):
        load(tmp_path / "d", 2)
    with pytest.raises(UserError, match="ncsnpp"):
        pipelines.write(tmp_path / "x", None, common.base("folder"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no/such"):
        pipelines.local("no/such")
    with pytest.raises(UserError, match=r"config\.json"):
        checkpoints.read(tmp_path)


def test_a_run_that_has_begun_is_not_its_pretrained_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d")
    config, place = common.diffusers("folder", str(tmp_path / "d")), Workdir("W")
    assert trained_weights(config, place) == pipelines.local(str(tmp_path / "d"))
    place.resume_point.parent.mkdir(parents=True)
    place.resume_point.touch()
    assert trained_weights(config, place) == place.checkpoint()
