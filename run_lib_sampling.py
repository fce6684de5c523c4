"""Draw samples in divisions: the published sampling command.

python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --num_divisions 10 --division_idx 0
python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --mode class --classid 5

A configuration that describes a classifier draws class by class, guided by it. Started by torchrun,
the processes share the rounds out among themselves.
"""

import dataclasses

import torch
from absl import flags
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import cli
import domains
import sampling
import sde_lib
from configs import ranges
from models.scores import GuidedScore, InParts
from planning import scores
from samplers.progress import RoundProgress
from storage.files import save_npz, save_picture, stands, to_json
from storage.provenance import config_hash
from storage.trained import load_classifier, load_score
from storage.workdir import Workdir
from utils import (
    UserError,
    get_device,
    is_first,
    log,
    log_to,
    rank_and_size,
    require_positive,
    shares,
)


@dataclasses.dataclass(frozen=True)
class Round:
    """`count` images of a folder, written to one file: its `number`, and that of the first one."""

    number: int
    first: int
    count: int


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A sampler and what its samples are made with."""

    config: object
    place: Workdir
    device: torch.device
    sde: sde_lib.SDE
    sampler: object

    @classmethod
    def check(cls, config, workdir):
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

    def open(self):
        """Make the workdir and its log."""
        self.place.create()
        log_to(self.place.log_file)

    def provenance(self, **weights):
        """What all files of the drawing have in common."""
        return {
            **weights,
            "config": config_hash(self.config),
            "sampling": sampling.settings(self.config.sampling),
            "sde": repr(self.sde),
            "seed": self.config.seed,
        }


def sample(config, workdir, division_idx=None, checkpoint=None):
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
        raise UserError("config.sampling.guidance_interval needs a configuration of a classifier.")
    chosen = divisions(evaluation, division_idx)
    sizes = shares(evaluation.num_samples, evaluation.num_divisions)
    place = drawing.place
    path = checkpoint or place.checkpoint(evaluation.checkpoint_idx)
    score, checkpoint = load_score(config, path, drawing.sde, drawing.device)
    drawing.open()
    log.info(
        "Drawing %d samples from step %d with the %s sampler on %s.",
        sum(sizes[d] for d in chosen),
        checkpoint.step,
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
            provenance=drawing.provenance(
                checkpoint_step=checkpoint.step, weights=checkpoint.fingerprint
            ),
        )
    log.info("The samples are in %s.", place.division(0, method).parent)


def sample_classes(config, workdir, classes, division_idx=None):
    """Draw the samples of the chosen classes, guided by the classifier, class by class.

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
    evaluation, model, method = config.eval, config.model, config.sampling.method
    chosen = divisions(evaluation, division_idx)
    sizes = shares(evaluation.num_samples, config.classifier.classes)
    place, device, sde = drawing.place, drawing.device, drawing.sde
    score, score_from = load_score(config, model.score_restore_path, sde, device)
    classifier, classifier_from = load_classifier(
        config, model.classifier_restore_path or place.checkpoint(evaluation.checkpoint_idx), device
    )
    drawing.open()
    log.info(
        "Drawing classes %d to %d at scale %g with the %s sampler on %s: the score of step %d, "
        "the classifier of step %d.",
        classes[0],
        classes[-1],
        config.sampling.scaling_factor,
        method,
        device,
        score_from.step,
        classifier_from.step,
    )
    rounds = {}
    for label in classes:
        every = split_rounds(sizes[label], evaluation.batch_size)
        rounds[label] = [r for d in chosen for r in share(every, evaluation.num_divisions, d)]
    for label, own in own_rounds(rounds):
        labels = torch.tensor([label], device=device)
        guided = GuidedScore(score, classifier, sde, labels, config.sampling.scaling_factor)
        draw_rounds(
            drawing,
            InParts(guided, evaluation.microbatch),
            folder=place.class_samples(label, method),
            rounds=own,
            of_round=("class", config.seed, label),
            of_images=("class image", config.seed, label),
            provenance=drawing.provenance(
                score_step=score_from.step,
                score_weights=score_from.fingerprint,
                classifier_step=classifier_from.step,
                classifier_weights=classifier_from.fingerprint,
            ),
        )
    log.info("The samples are in %s.", place.class_samples(0, method).parent)


def chosen_classes(count, mode, first, end):
    """The labels that ``--mode``, ``--classid`` and ``--classidend`` choose of `count` classes.

    Raises:
        UserError: the flags contradict each other or name a class that does not exist.
    """
    if mode != "class":
        if first is not None or end is not None:
            raise UserError("--classid and --classidend choose classes only with --mode class.")
        return range(count)
    if first is None:
        raise UserError("--mode class needs --classid, the class to draw.")
    if not 0 <= first < count:
        raise UserError(f"--classid is {first}; the classes go from 0 to {count - 1}.")
    if end is None:
        end = first + 1
    if end <= first:
        raise UserError(
            f"--classidend is {end}; it is the first class that is not drawn, so it must be above "
            f"--classid, {first}."
        )
    if end > count:
        raise UserError(
            f"--classidend is {end}; the classes go from 0 to {count - 1}, and {count} draws them "
            "to the last."
        )
    return range(first, end)


def divisions(evaluation, division_idx):
    """The divisions to draw: all of ``config.eval.num_divisions``, or one.

    Raises:
        UserError: there is no such division.
    """
    count = evaluation.num_divisions
    if division_idx is None:
        return range(count)
    if not 0 <= division_idx < count:
        raise UserError(
            f"--division_idx is {division_idx}; with {count} divisions it goes from 0 to "
            f"{count - 1}."
        )
    return range(division_idx, division_idx + 1)


def share(items, parts, index):
    """The `index`-th of `parts` shares of a list, in order."""
    sizes = shares(len(items), parts)
    start = sum(sizes[:index])
    return items[start : start + sizes[index]]


def split_rounds(total, batch_size, first=0):
    """The rounds of `total` samples, the number of the first one given; the last may be partial."""
    starts = range(0, total, batch_size)
    return [
        Round(number, first + start, min(batch_size, total - start))
        for number, start in enumerate(starts)
    ]


def own_rounds(rounds):
    """What this process draws of the `rounds` of several folders, a dict of lists.

    The rounds are dealt out in turn among the processes that torchrun started, which need not
    speak to each other. Yields the folders' names with this process's rounds.
    """
    rank, size = rank_and_size()
    dealt = 0
    for name, every in rounds.items():
        yield name, [r for turn, r in enumerate(every, dealt) if turn % size == rank]
        dealt += len(every)


def draw_rounds(drawing, score, *, folder, rounds, of_round, of_images, provenance):
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
                samples = domain.to_stored(x)
                save_picture(path.with_suffix(".png"), domain.picture(samples))
                save_npz(path, samples=samples, nfe=nfe, meta=to_json(meta))
            done += count
            bar.update(done - bar.n)


def main():
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
    if cli.describes_classifier(config):
        count = require_positive(config.classifier.classes, "config.classifier.classes")
        classes = chosen_classes(count, FLAGS.mode, FLAGS.classid, FLAGS.classidend)
    elif FLAGS.mode or FLAGS.classid is not None or FLAGS.classidend is not None:
        raise UserError("--mode, --classid and --classidend need a configuration of a classifier.")
    if FLAGS.dry_run:
        ranges.check(config)
        chosen = divisions(config.eval, FLAGS.division_idx)
        scores.plan_samples(config, FLAGS.workdir, chosen, classes)
        return
    if classes is None:
        sample(config, FLAGS.workdir, FLAGS.division_idx)
    else:
        sample_classes(config, FLAGS.workdir, classes, FLAGS.division_idx)
    if FLAGS.png:
        write_png_files(config, FLAGS.workdir)


def write_png_files(config, workdir):
    """Write every sample that is drawn as a PNG file, beside the folder of the samples."""
    from metrics import image_folders

    place, method = Workdir(workdir), config.sampling.method
    by_class = cli.describes_classifier(config)
    samples = (place.class_samples if by_class else place.division)(0, method)
    log.info("The PNG files are in %s.", image_folders.write_samples(samples.parent))


def restore_paths(restore, restore_classifier):
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
    flags.DEFINE_float("scale", None, "Weight of the classifier's gradient.")
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
