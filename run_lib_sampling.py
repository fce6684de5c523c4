"""Draw samples: the published sampling command.

python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --num_divisions 10 --division_idx 0
python run_lib_sampling.py --config EVAL_CONFIG --workdir NAME --mode class --classid 5

Samples with classes (of a classifier's configuration or a class-conditional score) are drawn class
by class, others in divisions. Under torchrun the processes share the rounds.
"""

import dataclasses
import itertools
import json
import operator
import pathlib
from collections.abc import Collection, Mapping, Sequence

import torch
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import cli
import domains
import sampling
from domains import Images, Points
from metrics import sharing
from metrics.sample_sets import PER_FILE, Part, describe, numbered_rounds, parts_of
from models.scores import InParts, ScoreFunction
from models.trained import (
    SamplingModel,
    adopt_from_checkpoints,
    checkpoint_paths,
    load_sampling_model,
)
from samplers import rounds
from samplers.progress import RoundProgress
from samplers.rounds import Round
from storage import descriptions, settings
from storage.files import is_up_to_date, load_npz, read_meta, save_npz, save_picture, to_json
from storage.provenance import differences
from storage.settings import describes_classifier, draws_by_class, number_of_classes
from storage.workdir import Workdir
from utils import UserError, get_device, is_first, log, log_to, rank_and_size

FLAGS = flags.FLAGS
# The fields that flags set.
FIELDS = {
    "bs": "eval.batch_size",
    "num_samples": "eval.num_samples",
    "num_divisions": "eval.num_divisions",
    "checkpoint_idx": "eval.checkpoint_idx",
    "num_scales": "sampling.num_scales",
    "steps": "sampling.steps",
    "seed": "seed",
}
OF_CLASSES = ("mode", "classid", "classidend", "scale")


def sample(
    config: ConfigDict,
    workdir: str,
    classes: Sequence[int] | None = None,
    division_idx: int | None = None,
) -> None:
    """Draw ``config.eval.num_samples`` samples, of all divisions or classes together.

    Each round of ``config.eval.batch_size`` samples is a file; existing files are kept. A division
    is a folder or, with classes, a share of each class's rounds. The noise of pc and ode depends on
    (seed, folder, round), that of other samplers on (seed, image) or (seed, class, image).

    Args:
        classes: labels to draw, of samples that have them; None: all.
        division_idx: the division to draw; None: all of them.

    Raises:
        UserError: something that was asked for does not exist or does not fit.
    """
    drawing, place = prepare(config, workdir, classes, division_idx), Workdir(workdir)
    config, guidance = drawing.model.config, drawing.model.guidance
    device = get_device(config.device)
    place.create()
    log_to(place.log_file)
    log.info("Drawing %s, on %s. Weights: %s.", drawing, device, drawing.model.description)
    local_shard = sharing.local_shard(list(drawing.files))
    for index, part in itertools.groupby(local_shard, operator.attrgetter("part")):
        score = drawing.model.trained.score
        if guidance is not None:
            labels = torch.tensor([index], device=device)
            score = guidance(labels=labels, scale=config.sampling.scaling_factor)
        draw_rounds(drawing, InParts(score, config.eval.microbatch), list(part))
    log.info("The samples are in %s.", drawing.parts[0].folder.parent)


@dataclasses.dataclass(frozen=True)
class RoundFile:
    """The file of a round, its stream of random numbers, and its settings."""

    path: pathlib.Path
    stream: tuple
    meta: dict[str, object]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The plan of a sampling command.

    Attributes:
        model, sampler: the model and the sampler to draw with.
        parts: the folders of all samples of the configuration.
        files: the files of the rounds to draw, over all processes.
        kept: rounds whose files exist.
    """

    model: SamplingModel
    sampler: "sampling.Sampler"
    parts: Sequence[Part]
    files: Mapping[Round, RoundFile]
    kept: Collection[Round]

    def __str__(self) -> str:
        drawn = [each.part for each in self.files]
        names = describe(self.parts, drawn, self.model.origin.get("classes", ()))
        method = self.model.config.sampling.method
        return f"{self.count} samples, {names}, by the sampler {method}"

    @property
    def count(self) -> int:
        """The number of samples, including existing ones."""
        return sum(each.count for each in self.files)


def prepare(
    config: ConfigDict, workdir: str, classes: Sequence[int] | None, division_idx: int | None
) -> Drawing:
    """Load the model and check all that can be checked; writes nothing. Arguments as in `sample`.

    Raises:
        UserError: something does not exist or fit, or a file was drawn with other settings.
    """
    settings.check(config)
    place = Workdir(workdir)
    model = load_sampling_model(config, place, get_device(config.device))
    config, guided = model.config, model.guidance is not None
    if config.sampling.guidance_interval and not guided:
        raise UserError("config.sampling.guidance_interval needs a model that guides by class.")
    sampler = sampling.from_config(config.sampling, model.trained.sde)
    parts = parts_of(config, place)
    origin = {
        **model.origin,
        **descriptions.identity(config),
        "sampling": sampling.settings(config.sampling, guided),
        "sde": repr(model.trained.sde),
        "seed": config.seed,
    }
    files = {}
    for each in rounds_of(config, parts, classes, division_idx):
        stream = sampler.stream(*streams(config.seed, each, guided))
        path = parts[each.part].folder / f"samples_{each.number}.npz"
        files[each] = RoundFile(path, stream, dict(origin, stream=stream[:-1], round=stream[-1]))
    return Drawing(model, sampler, parts, files, kept_rounds(config, parts, files, origin))


def rounds_of(
    config: ConfigDict,
    parts: Sequence[Part],
    classes: Sequence[int] | None,
    division_idx: int | None,
) -> list[Round]:
    """The rounds that a command draws, over all processes.

    Raises:
        UserError: there is no such division.
    """
    chosen = rounds.divisions(config.eval, division_idx)
    sizes, batch_size = [part.expected for part in parts], config.eval.batch_size
    if not draws_by_class(config):
        return rounds.of_divisions(sizes, batch_size, chosen)
    classes = range(len(parts)) if classes is None else classes
    return rounds.of_classes(sizes, batch_size, classes, chosen, config.eval.num_divisions)


def kept_rounds(
    config: ConfigDict,
    parts: Sequence[Part],
    files: Mapping[Round, RoundFile],
    origin: Mapping[str, object],
) -> set[Round]:
    """The rounds of `files` that exist; all files of `parts` are checked to be of one `origin`.

    The samples of rounds of other processes are not read.

    Raises:
        UserError: a file was drawn with other settings.
    """
    folder, wanted = parts[0].folder.parent, json.loads(to_json(origin))
    advice = f"remove {folder} to draw anew, or use another --workdir, with --restore FILE."
    found_files = {path for part in parts for _, path in numbered_rounds(part.folder)}
    for path in sorted(found_files - {file.path for file in files.values()}):
        try:
            found = read_meta(path, load_npz(path, "meta")["meta"])
        except UserError:  # damaged: it is drawn again if requested
            continue
        if changed := differences({n: found[n] for n in found if n not in PER_FILE}, wanted):
            raise UserError(f"{path} was made with {', '.join(changed)}; {advice}")
    shape, (rank, size) = domains.from_config(config.data).stored_shape, rank_and_size()
    kept = set()
    for index, (each, file) in enumerate(files.items()):
        shapes = {"samples": (each.count, *shape), "nfe": ()} if index % size == rank else {}
        if is_up_to_date(file.path, file.meta, advice, **shapes):
            kept.add(each)
    return kept


def draw_rounds(drawing: Drawing, score: ScoreFunction, part: Sequence[Round]) -> None:
    """Draw the rounds of a part, except the kept ones, and write their files.

    Raises:
        UserError: samples are not finite.
    """
    config, sampler = drawing.model.config, drawing.sampler
    domain, device = domains.from_config(config.data), get_device(config.device)
    folder = drawing.files[part[0]].path.parent
    bar = tqdm(
        total=sum(each.count for each in part),
        unit=domain.unit,
        desc=f"{folder.parent.name}/{folder.name}",
        disable=not is_first(),
    )
    done = 0
    with bar, logging_redirect_tqdm([log]):
        for each in part:
            file = drawing.files[each]
            if each not in drawing.kept:
                noise = sampler.noise(device, file.stream, each.count)
                latents = noise.randn((each.count, *domain.shape))
                progress = RoundProgress(bar, done, each.count, sampler.steps)
                x, nfe = sampler(score, latents, noise.randn_like, callback=progress)
                check_values(x, domain, file.path)
                samples = domain.to_stored(x)
                save_picture(file.path.with_suffix(".png"), domain.picture(samples))
                save_npz(file.path, samples=samples, nfe=nfe, meta=to_json(file.meta))
            done += each.count
            bar.update(done - bar.n)


def check_values(x: torch.Tensor, domain: Images | Points, path: pathlib.Path) -> None:
    """Warn if most values of the samples x are clipped.

    Raises:
        UserError: a value is not finite.
    """
    if not x.isfinite().all():
        raise UserError(
            f"The samples of {path} have NaN or infinite values and were not written. Check the "
            "checkpoint and the sampler's settings."
        )
    if (outside := domain.share_outside(x)) > 0.5:
        log.warning(
            f"{path}: {outside:.0%} of the values lie far outside the range of images and are "
            "clipped. Check the number of steps, the scale of guidance and the checkpoint: a model "
            "that was trained briefly gives such samples too."
        )


def streams(seed: int, each: Round, guided: bool) -> tuple[tuple, tuple]:
    """The streams of random numbers (`utils.stream_key`) of a round, and of its images."""
    if guided:
        return ("class", seed, each.part, each.number), ("class image", seed, each.part, each.first)
    return ("division", seed, each.part, each.number), ("image", seed, each.first)


def main() -> None:
    config = FLAGS.config
    score_path, classifier_path = restore_paths(FLAGS.restore, FLAGS.restore_classifier)
    cli.apply_flags(config, FIELDS)
    cli.choose_sampler(config)
    if score_path:
        config.model.score_restore_path = score_path
    if classifier_path:
        if not describes_classifier(config):
            raise UserError("--restore_classifier needs a configuration of a classifier.")
        config.model.classifier_restore_path = classifier_path
    paths = checkpoint_paths(config, Workdir(FLAGS.workdir))
    config = adopt_from_checkpoints(config, paths, cli.typed_fields())
    method = config.sampling.method
    unread = {"pc": ["steps"], "ode": ["steps", "num_scales"]}.get(method, ["num_scales"])
    cli.refuse_flags(unread, f"the sampler {method}")
    cli.refuse_fields([FIELDS[name] for name in unread], f"the sampler {method}")
    named = [config.model.get("score_restore_path")]
    named += [config.model.classifier_restore_path] if describes_classifier(config) else []
    if all(named):
        cli.refuse_flags(["checkpoint_idx"], "checkpoints that are named")
    classes = None
    if draws_by_class(config):
        count = number_of_classes(config)
        classes = rounds.chosen_classes(count, FLAGS.mode, FLAGS.classid, FLAGS.classidend)
    else:
        cli.refuse_flags(OF_CLASSES, "a model without classes")
    if FLAGS.dry_run:
        import planning

        drawing = prepare(config, FLAGS.workdir, classes, FLAGS.division_idx)
        missing = drawing.count - sum(each.count for each in drawing.kept)
        planning.sample(drawing.model, drawing.sampler, str(drawing), missing)
        return
    sample(config, FLAGS.workdir, classes, FLAGS.division_idx)


def restore_paths(restore: Sequence[str], restore_classifier: str | None) -> tuple[str | None, ...]:
    """The score's and the classifier's checkpoint; a second --restore is the classifier's.

    Raises:
        UserError: more than two were given.
    """
    paths = [*restore, *([restore_classifier] if restore_classifier else [])]
    if len(paths) > 2:
        raise UserError(
            f"{len(paths)} checkpoints were given to restore; expected the score model's "
            "(--restore) and the classifier's (--restore_classifier, or a second --restore)."
        )
    score, second = (*restore, None, None)[:2]
    return score, restore_classifier or second


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_enum("mode", None, ["full", "class"], "Draw all classes, or --classid.")
    flags.DEFINE_integer("classid", None, "First class to draw.")
    flags.DEFINE_integer(
        "classidend", None, "End of the classes, exclusive; default: --classid alone."
    )
    flags.DEFINE_multi_string("restore", [], "Checkpoint of the score model.")
    flags.DEFINE_string("restore_classifier", None, "Checkpoint of the classifier.")
    flags.DEFINE_integer("bs", None, "Samples drawn at a time.")
    flags.DEFINE_integer("num_samples", None, "Samples of all divisions together.")
    flags.DEFINE_integer("num_divisions", None, "Number of divisions of the samples.")
    flags.DEFINE_integer("division_idx", None, "Division to draw; default: all.")
    flags.DEFINE_integer("checkpoint_idx", None, "Number of the checkpoint; else the newest.")
    flags.DEFINE_integer("num_scales", None, "Steps of the PC sampler.")
    cli.define_sampler_flags()
    flags.DEFINE_integer("steps", None, "Steps of a sampler that is neither pc nor ode.")
    flags.DEFINE_integer("seed", None, "Seed of the samples.")
    cli.define_dry_run()
    cli.launch(main)
