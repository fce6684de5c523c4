"""Draw samples in divisions: the published sampling command.

python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --num_divisions 10 --division_idx 0
python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --mode class --classid 5

A configuration with a scale of guidance draws class by class, guided by its classifier or, without
one, by the class-conditional score itself. Started by torchrun, the processes share the rounds out
among themselves.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import torch
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import cli
import domains
import sampling
import sde_lib
from configs import ranges
from configs.classes import draws_by_class, number_of_classes
from models.scores import InParts
from planning import scores
from samplers.progress import RoundProgress
from samplers.rounds import Round, chosen_classes, divisions, own_rounds, share, split_rounds
from storage.files import remove_abandoned, save_npz, save_picture, stands, to_json
from storage.provenance import config_hash
from storage.trained import load_guidance, load_score
from storage.workdir import Workdir
from utils import (
    UserError,
    get_device,
    is_first,
    log,
    log_to,
    shares,
)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A sampler and what its samples are made with."""

    config: object
    place: Workdir
    device: torch.device
    sde: sde_lib.SDE
    sampler: object

    @classmethod
    def check(cls, config: ConfigDict, workdir: str) -> "Drawing":
        """Whatever can be checked before a checkpoint is read.

        Raises:
            UserError: something that was asked for does not exist or does not fit.
        """
        ranges.check(config)
        device = get_device(config.device)
        place = Workdir(workdir)
        place.check()
        sde = sde_lib.from_config(config)
        return cls(config, place, device, sde, sampling.from_config(config.sampling, sde))

    def open(self) -> None:
        """Make the workdir and its log."""
        self.place.create()
        log_to(self.place.log_file)

    def provenance(self, **weights: object) -> dict[str, object]:
        """What all files of the drawing have in common."""
        return {
            **weights,
            "config": config_hash(self.config),
            "sampling": sampling.settings(self.config.sampling),
            "sde": repr(self.sde),
            "seed": self.config.seed,
        }


def sample(
    config: ConfigDict,
    workdir: str,
    division_idx: int | None = None,
    checkpoint: str | None = None,
) -> None:
    """Draw one division of ``config.eval.num_samples`` samples, or all of them in order.

    A round of ``config.eval.batch_size`` samples is written when it is whole; a round that is
    already there is kept. Noise depends on (seed, division, round) alone, or for the samplers that
    are neither pc nor ode on (seed, number of the image).

    Args:
        division_idx: the division to draw, or None for all of them.
        checkpoint: path of the score model's; None: the workdir's ``eval.checkpoint_idx``.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    drawing = Drawing.check(config, workdir)
    evaluation, method = config.eval, config.sampling.method
    if config.sampling.guidance_interval:
        raise UserError(
            "config.sampling.guidance_interval needs a configuration of a classifier or of classes."
        )
    chosen = divisions(evaluation, division_idx)
    sizes = shares(evaluation.num_samples, evaluation.num_divisions)
    place = drawing.place
    path = checkpoint or place.checkpoint(evaluation.checkpoint_idx)
    score, loaded = load_score(config, path, drawing.sde, drawing.device)
    drawing.open()
    log.info(
        "Drawing %d samples from step %d with the %s sampler on %s.",
        sum(sizes[d] for d in chosen),
        loaded.step,
        method,
        drawing.device,
    )
    rounds = {
        d: split_rounds(sizes[d], evaluation.batch_size, first=sum(sizes[:d])) for d in chosen
    }
    for division, own in own_rounds(rounds):
        draw_rounds(
            drawing,
            InParts(score, evaluation.microbatch),
            folder=place.division(division, method),
            rounds=own,
            of_round=("division", config.seed, division),
            of_images=("image", config.seed),
            provenance=drawing.provenance(checkpoint_step=loaded.step, weights=loaded.fingerprint),
        )
    log.info("The samples are in %s.", place.division(0, method).parent)


def sample_classes(
    config: ConfigDict, workdir: str, classes: Sequence[int], division_idx: int | None = None
) -> None:
    """Draw the samples of the chosen classes, guided, class by class.

    ``config.eval.num_samples`` is shared among all classes, not only the chosen ones. A division
    is a share of each class's rounds. Noise depends on (seed, class, round) alone, or for the
    samplers that are neither pc nor ode on (seed, class, number of the image).

    Args:
        classes: labels to draw.
        division_idx: the division to draw, or None for all of them.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    drawing = Drawing.check(config, workdir)
    evaluation, method, scale = config.eval, config.sampling.method, config.sampling.scaling_factor
    chosen = divisions(evaluation, division_idx)
    sizes = shares(evaluation.num_samples, number_of_classes(config))
    place, device = drawing.place, drawing.device
    path = place.checkpoint(evaluation.checkpoint_idx)
    guidance, made_of = load_guidance(config, path, drawing.sde, device)
    steps = [(name.removesuffix("_step"), made_of[name]) for name in made_of if "_step" in name]
    drawing.open()
    log.info(
        "Drawing classes %d to %d at scale %g with the %s sampler on %s: %s.",
        classes[0],
        classes[-1],
        scale,
        method,
        device,
        ", ".join(f"the {name} of step {step}" for name, step in steps),
    )
    rounds = {}
    for label in classes:
        every = split_rounds(sizes[label], evaluation.batch_size)
        rounds[label] = [r for d in chosen for r in share(every, evaluation.num_divisions, d)]
    for label, own in own_rounds(rounds):
        guided = guidance(labels=torch.tensor([label], device=device), scale=scale)
        draw_rounds(
            drawing,
            InParts(guided, evaluation.microbatch),
            folder=place.class_samples(label, method),
            rounds=own,
            of_round=("class", config.seed, label),
            of_images=("class image", config.seed, label),
            provenance=drawing.provenance(**made_of),
        )
    log.info("The samples are in %s.", place.class_samples(0, method).parent)


def draw_rounds(
    drawing: Drawing,
    score: Callable,
    *,
    folder: pathlib.Path,
    rounds: Sequence[Round],
    of_round: tuple,
    of_images: tuple,
    provenance: dict[str, object],
) -> None:
    """Draw the missing ones of `rounds` into ``folder/samples_{number}.npz``.

    `of_round` and `of_images` are streams of `seed_for` that set the noise apart from that of other
    folders, and from that of other images.
    """
    device, sampler = drawing.device, drawing.sampler
    domain = domains.from_config(drawing.config.data)
    advice = f"remove {folder.parent} to draw anew, or use another --workdir."
    bar = tqdm(
        total=sum(each.count for each in rounds),
        unit=domain.unit,
        desc=f"{folder.parent.name}/{folder.name}",
        disable=not is_first(),
    )
    with bar, logging_redirect_tqdm([log]):
        done = 0
        for number, first, count in map(dataclasses.astuple, rounds):
            path = folder / f"samples_{number}.npz"
            picture = path.with_suffix(".png")
            # One process may have been killed at the picture of a round that another has written.
            remove_abandoned(picture)
            stream = sampler.stream((*of_round, number), (*of_images, first))
            meta = dict(provenance, stream=stream[:-1], round=stream[-1])
            if not stands(path, meta, advice, samples=(count, *domain.stored_shape), nfe=()):
                noise = sampler.noise(device, stream, count)
                x, nfe = sampler(
                    score,
                    noise.randn((count, *domain.shape)),
                    noise.randn_like,
                    callback=RoundProgress(bar, done, count, sampler.steps),
                )
                if not x.isfinite().all():
                    raise UserError(
                        f"Round {number} of {folder} came out with NaN or infinite values; nothing "
                        "was written. Look at the checkpoint, or lower config.sampling.snr."
                    )
                if (outside := domain.share_outside(x)) > 0.5:
                    log.warning(
                        "%s: %.0f %% of the values lie far outside the range of images, and are "
                        "clipped to 0 or 255. Likely causes: too little training, another SDE or "
                        "data.centered than in training, too few steps or too large a --scale.",
                        path,
                        100 * outside,
                    )
                samples = domain.to_stored(x)
                save_picture(picture, domain.picture(samples))
                save_npz(path, samples=samples, nfe=nfe, meta=to_json(meta))
            done += count
            bar.update(done - bar.n)


def main() -> None:
    FLAGS = flags.FLAGS
    config = FLAGS.config
    score_path, classifier_path = restore_paths(FLAGS.restore, FLAGS.restore_classifier)
    if FLAGS.seed is not None:
        config.seed = FLAGS.seed
    cli.override(
        config,
        eval__batch_size=FLAGS.bs,
        eval__num_samples=FLAGS.num_samples,
        eval__num_divisions=FLAGS.num_divisions,
        eval__checkpoint_idx=FLAGS.checkpoint_idx,
        sampling__num_scales=FLAGS.num_scales,
        model__score_restore_path=score_path,
        model__classifier_restore_path=classifier_path,
        sampling__method=cli.sampling_method(FLAGS.ode, FLAGS.sampler),
        sampling__steps=FLAGS.steps,
        sampling__scaling_factor=FLAGS.scale,
    )
    classes = None
    if draws_by_class(config):
        count = number_of_classes(config)
        classes = chosen_classes(count, FLAGS.mode, FLAGS.classid, FLAGS.classidend)
    elif FLAGS.mode or FLAGS.classid is not None or FLAGS.classidend is not None:
        raise UserError(
            "--mode, --classid and --classidend need a configuration of a classifier or of classes."
        )
    if FLAGS.dry_run:
        ranges.check(config)
        chosen = divisions(config.eval, FLAGS.division_idx)
        scores.plan_samples(config, FLAGS.workdir, chosen, classes, FLAGS.png)
        return
    if classes is None:
        sample(config, FLAGS.workdir, FLAGS.division_idx)
    else:
        sample_classes(config, FLAGS.workdir, classes, FLAGS.division_idx)
    if FLAGS.png:
        write_png_files(config, FLAGS.workdir)


def write_png_files(config: ConfigDict, workdir: str) -> None:
    """Write every sample that is drawn as a PNG file, beside the folder of the samples."""
    from metrics import image_folders, sharing

    sharing.wait()  # for what the other processes draw
    if not is_first():
        return
    place, method = Workdir(workdir), config.sampling.method
    samples = (place.class_samples if draws_by_class(config) else place.division)(0, method)
    log.info("The PNG files are in %s.", image_folders.write_samples(samples.parent))


def restore_paths(restore: Sequence[str], restore_classifier: str | None) -> tuple[str | None, ...]:
    """The score's and the classifier's checkpoint; a second --restore is the classifier's.

    Raises:
        UserError: more than two were given.
    """
    count = len(restore) + bool(restore_classifier)
    if count > 2:
        raise UserError(
            f"{count} checkpoints were given to restore; expected the score model's (--restore) "
            "and the classifier's (--restore_classifier, or a second --restore)."
        )
    score, second, *_ = (*restore, None, None)
    return score, restore_classifier or second


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_enum("mode", None, ["full", "class"], "Draw all classes, or --classid.")
    flags.DEFINE_integer("classid", None, "First class to draw.")
    flags.DEFINE_integer("classidend", None, "First class not to draw; else --classid alone.")
    flags.DEFINE_float("scale", None, "Weight of the guidance.")
    flags.DEFINE_multi_string("restore", [], "Checkpoint of the score model.")
    flags.DEFINE_string("restore_classifier", None, "Checkpoint of the classifier.")
    flags.DEFINE_integer("bs", None, "Samples drawn at a time.")
    flags.DEFINE_integer("num_samples", None, "Samples of all divisions together.")
    flags.DEFINE_integer("num_divisions", None, "Shares that the samples are split into.")
    flags.DEFINE_integer("division_idx", None, "The share to draw; without it, all of them.")
    flags.DEFINE_integer("checkpoint_idx", None, "Number of the checkpoint; else the newest.")
    flags.DEFINE_integer("num_scales", None, "Steps of the PC sampler.")
    flags.DEFINE_bool("ode", False, "Sample with the probability-flow ODE.")
    flags.DEFINE_string("sampler", None, "Sampler: pc, ode, heun, …; else the config's.")
    flags.DEFINE_integer("steps", None, "Steps of a sampler that is neither pc nor ode.")
    flags.DEFINE_integer("seed", None, "Seed of the samples.")
    cli.define_dry_run()
    flags.DEFINE_bool("png", False, "Write every sample as a PNG file too.")
    cli.launch(main)
