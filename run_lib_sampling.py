"""Draw samples in divisions: the published sampling command.

python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --num_divisions 10 --division_idx 0
"""

import functools
import json

from absl import flags
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import cli
import datasets
import sampling
import sde_lib
from run_lib import load_score
from utils import (
    UserError,
    Workdir,
    get_device,
    load_npz,
    log,
    log_to,
    require_positive,
    save_image_grid,
    save_npz,
)


def sample(config, workdir, division_idx=None):
    """Draw one division of ``config.eval.num_samples`` samples, or all of them in order.

    A round of ``config.eval.batch_size`` samples is written when it is whole; a round that is
    already there is kept. The noise of a round depends on (seed, division, round) alone.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    evaluation = config.eval
    for field in ("batch_size", "num_samples", "num_divisions"):
        require_positive(evaluation[field], f"config.eval.{field}")
    sizes = shares(evaluation.num_samples, evaluation.num_divisions)
    if division_idx is not None and not 0 <= division_idx < len(sizes):
        raise UserError(
            f"--division_idx is {division_idx}; with {len(sizes)} divisions it goes from 0 to "
            f"{len(sizes) - 1}."
        )
    device = get_device(config.device)
    place = Workdir(workdir)
    place.check()
    sde = sde_lib.from_config(config)
    sampler = sampling.from_config(config.sampling, sde)
    score, checkpoint = load_score(config, place.checkpoint(evaluation.checkpoint_idx), sde, device)
    place.create()
    log_to(place.log_file)

    ode = config.sampling.method == "ode"
    divisions = range(len(sizes)) if division_idx is None else [division_idx]
    provenance = {
        "checkpoint_step": checkpoint.step,
        "weights": checkpoint.fingerprint,
        "sampling": config.sampling.to_dict(),
        "sde": repr(sde),
        "seed": config.seed,
    }
    log.info(
        "Drawing %d samples from step %d with the %s sampler on %s.",
        sum(sizes[d] for d in divisions),
        checkpoint.step,
        config.sampling.method,
        device,
    )
    for division in divisions:
        rounds = split_rounds(sizes[division], evaluation.batch_size)
        draw_rounds(
            score,
            sampler,
            config,
            device,
            folder=place.division(division, ode),
            rounds=rounds,
            stream=division,
            provenance=provenance,
        )
    log.info("The samples are in %s.", place.division(0, ode).parent)


def shares(total, parts):
    """Sizes of `parts` shares that add up to `total` and differ by one at the most."""
    share, rest = divmod(total, parts)
    return [share + (i < rest) for i in range(parts)]


def split_rounds(total, batch_size):
    """Sizes of the rounds of `total` samples; the last may be partial."""
    full, rest = divmod(total, batch_size)
    return [batch_size] * full + ([rest] if rest else [])


def draw_rounds(score, sampler, config, device, *, folder, rounds, stream, provenance):
    """Draw the missing ones of `rounds` (their sizes) into ``folder/samples_{round}.npz``.

    `stream` sets these rounds' noise apart from that of other folders.
    """
    data = config.data
    image = (data.num_channels, data.image_size, data.image_size)
    bar = tqdm(total=sum(rounds), unit="img", desc=f"{folder.parent.name}/{folder.name}")
    with bar, logging_redirect_tqdm([log]):
        for index, count in enumerate(rounds):
            path = folder / f"samples_{index}.npz"
            meta = json.dumps(dict(provenance, stream=stream, round=index), sort_keys=True)
            if not is_whole(path, (count, *image[1:], image[0]), meta):
                noise = sampling.SeededNoise(device, config.seed, stream, index)
                step = count / sampler.steps if sampler.steps else 0
                x, nfe = sampler(
                    score,
                    noise.randn((count, *image)),
                    noise.randn_like,
                    callback=functools.partial(bar.update, step),
                )
                images = datasets.to_uint8(datasets.inverse_scaler(x, data))
                save_image_grid(path.with_suffix(".png"), images)
                save_npz(path, samples=images, nfe=nfe, meta=meta)
            bar.update(sum(rounds[: index + 1]) - bar.n)


def is_whole(path, shape, meta):
    """Whether the round at `path` stands; a damaged file counts as missing.

    Raises:
        UserError: it stands, but was drawn otherwise.
    """
    if not path.exists():
        return False
    try:
        arrays = load_npz(path, "samples", "nfe", "meta")
    except UserError as error:
        log.info("Drawing again: %s", error)
        return False
    if arrays["samples"].shape == shape and str(arrays["meta"]) == meta:
        return True
    old = json.loads(str(arrays["meta"]))
    new = json.loads(meta)
    changed = [name for name in new if old.get(name) != new[name]] or ["the number of samples"]
    raise UserError(
        f"{path} holds samples drawn with another setting of {', '.join(changed)}; "
        f"remove {path.parent.parent} to draw anew, or use another --workdir."
    )


def main():
    FLAGS = flags.FLAGS
    config = FLAGS.config
    cli.override(
        config,
        eval__batch_size=FLAGS.bs,
        eval__num_samples=FLAGS.num_samples,
        eval__num_divisions=FLAGS.num_divisions,
        eval__checkpoint_idx=FLAGS.checkpoint_idx,
        model__num_scales=FLAGS.num_scales,
        sampling__method="ode" if FLAGS.ode else None,
    )
    if FLAGS.seed is not None:
        config.seed = FLAGS.seed
    if FLAGS.deterministic:
        cli.make_deterministic()
    sample(config, FLAGS.workdir, FLAGS.division_idx)


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_integer("bs", None, "Samples drawn at a time.")
    flags.DEFINE_integer("num_samples", None, "Samples of all divisions together.")
    flags.DEFINE_integer("num_divisions", None, "Shares that the samples are split into.")
    flags.DEFINE_integer("division_idx", None, "The share to draw; without it, all of them.")
    flags.DEFINE_integer("checkpoint_idx", None, "Number of the checkpoint; else the newest.")
    flags.DEFINE_integer("num_scales", None, "Steps of the PC sampler.")
    flags.DEFINE_bool("ode", False, "Sample with the probability-flow ODE.")
    flags.DEFINE_integer("seed", None, "Seed of the samples.")
    flags.DEFINE_bool("deterministic", False, "Allow PyTorch deterministic algorithms only.")
    cli.launch(main)
