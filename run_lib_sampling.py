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
from models.scores import GuidedScore
from storage.files import save_npz, stands, to_json
from storage.pictures import save_picture
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


def sample(config, workdir, division_idx=None):
    """Draw one division of ``config.eval.num_samples`` samples, or all of them in order.

    A round of ``config.eval.batch_size`` samples is written when it is whole; a round that is
    already there is kept. The noise of a round depends on (seed, division, round) alone.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    ranges.check(config)
    evaluation = config.eval
    chosen = divisions(evaluation, division_idx)
    sizes = shares(evaluation.num_samples, evaluation.num_divisions)
    device = get_device(config.device)
    place = Workdir(workdir)
    place.check()
    sde = sde_lib.from_config(config)
    sampler = sampling.from_config(config.sampling, sde)
    score, checkpoint = load_score(config, place.checkpoint(evaluation.checkpoint_idx), sde, device)
    place.create()
    log_to(place.log_file)

    ode = config.sampling.method == "ode"
    provenance = {
        "checkpoint_step": checkpoint.step,
        "weights": checkpoint.fingerprint,
        "config": config_hash(config),
        "sampling": config.sampling.to_dict(),
        "sde": repr(sde),
        "seed": config.seed,
    }
    log.info(
        "Drawing %d samples from step %d with the %s sampler on %s.",
        sum(sizes[d] for d in chosen),
        checkpoint.step,
        config.sampling.method,
        device,
    )
    rounds = {d: list(enumerate(split_rounds(sizes[d], evaluation.batch_size))) for d in chosen}
    for division, own in own_rounds(rounds):
        draw_rounds(
            score,
            sampler,
            config,
            device,
            folder=place.division(division, ode),
            rounds=own,
            stream=("division", config.seed, division),
            provenance=provenance,
        )
    log.info("The samples are in %s.", place.division(0, ode).parent)


def sample_classes(config, workdir, classes, division_idx=None):
    """Draw the samples of the chosen classes, guided by the classifier, class by class.

    ``config.eval.num_samples`` is shared among all classes, not only the chosen ones. A division
    is a share of each class's rounds. The noise of a round depends on (seed, class, round) alone.

    Args:
        classes: labels to draw.
        division_idx: the division to draw, or None for all of them.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    ranges.check(config)
    evaluation, model = config.eval, config.model
    chosen = divisions(evaluation, division_idx)
    sizes = shares(evaluation.num_samples, config.classifier.classes)
    device = get_device(config.device)
    place = Workdir(workdir)
    place.check()
    sde = sde_lib.from_config(config)
    sampler = sampling.from_config(config.sampling, sde)
    score, score_from = load_score(config, model.score_restore_path, sde, device)
    classifier, classifier_from = load_classifier(
        config, model.classifier_restore_path or place.checkpoint(evaluation.checkpoint_idx), device
    )
    place.create()
    log_to(place.log_file)

    ode = config.sampling.method == "ode"
    provenance = {
        "score_step": score_from.step,
        "score_weights": score_from.fingerprint,
        "classifier_step": classifier_from.step,
        "classifier_weights": classifier_from.fingerprint,
        "config": config_hash(config),
        "sampling": config.sampling.to_dict(),
        "sde": repr(sde),
        "seed": config.seed,
    }
    log.info(
        "Drawing classes %d to %d at scale %g with the %s sampler on %s: the score of step %d, "
        "the classifier of step %d.",
        classes[0],
        classes[-1],
        config.sampling.scaling_factor,
        config.sampling.method,
        device,
        score_from.step,
        classifier_from.step,
    )
    rounds = {}
    for label in classes:
        every = list(enumerate(split_rounds(sizes[label], evaluation.batch_size)))
        rounds[label] = [r for d in chosen for r in share(every, evaluation.num_divisions, d)]
    for label, own in own_rounds(rounds):
        guided = GuidedScore(
            score,
            classifier,
            sde,
            torch.tensor([label], device=device),
            config.sampling.scaling_factor,
        )
        draw_rounds(
            guided,
            sampler,
            config,
            device,
            folder=place.class_samples(label, ode),
            rounds=own,
            stream=("class", config.seed, label),
            provenance=provenance,
        )
    log.info("The samples are in %s.", place.class_samples(0, ode).parent)


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


def split_rounds(total, batch_size):
    """Sizes of the rounds of `total` samples; the last may be partial."""
    full, rest = divmod(total, batch_size)
    return [batch_size] * full + ([rest] if rest else [])


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


@dataclasses.dataclass
class RoundProgress:
    """A sampler's callback: moves `bar` from `done` on by `count` samples in `steps` calls.

    Whole samples; with `steps` None, where the number of calls is not known, none.
    """

    bar: tqdm
    done: int
    count: int
    steps: int | None
    calls: int = 0

    def __call__(self):
        self.calls += 1
        if self.steps:
            self.bar.update(self.done + self.count * self.calls // self.steps - self.bar.n)


def draw_rounds(score, sampler, config, device, *, folder, rounds, stream, provenance):
    """Draw the missing ones of `rounds`, (number, size), into ``folder/samples_{number}.npz``.

    `stream`, of `seed_for`, sets these rounds' noise apart from that of other folders.
    """
    domain = domains.from_config(config.data)
    advice = f"remove {folder.parent} to draw anew, or use another --workdir."
    bar = tqdm(
        total=sum(count for _, count in rounds),
        unit=domain.unit,
        desc=f"{folder.parent.name}/{folder.name}",
        disable=not is_first(),
    )
    with bar, logging_redirect_tqdm([log]):
        done = 0
        for index, count in rounds:
            path = folder / f"samples_{index}.npz"
            meta = dict(provenance, stream=stream, round=index)
            if not stands(path, meta, advice, samples=(count, *domain.stored_shape), nfe=()):
                noise = sampling.SeededNoise(device, *stream, index)
                x, nfe = sampler(
                    score,
                    noise.randn((count, *domain.shape)),
                    noise.randn_like,
                    callback=RoundProgress(bar, done, count, sampler.steps),
                )
                if not x.isfinite().all():
                    raise UserError(
                        f"Round {index} of {folder} came out with NaN or infinite values; nothing "
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
        sampling__method="ode" if FLAGS.ode else None,
        sampling__scaling_factor=FLAGS.scale,
    )
    if "classifier" in config:
        count = require_positive(config.classifier.classes, "config.classifier.classes")
        classes = chosen_classes(count, FLAGS.mode, FLAGS.classid, FLAGS.classidend)
        sample_classes(config, FLAGS.workdir, classes, FLAGS.division_idx)
    elif FLAGS.mode or FLAGS.classid is not None or FLAGS.classidend is not None:
        raise UserError("--mode, --classid and --classidend need a configuration of a classifier.")
    else:
        sample(config, FLAGS.workdir, FLAGS.division_idx)


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
    flags.DEFINE_integer("seed", None, "Seed of the samples.")
    cli.launch(main)
