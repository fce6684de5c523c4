"""Evaluate a model: NLL and asymmetry of its score, and metrics of its samples.

python run_lib_evaluation.py --config EVAL_CONFIG --workdir NAME --metric nll --calculate
python run_lib_evaluation.py --config EVAL_CONFIG --workdir NAME --encode --encode_dataset --fidis
python run_lib_evaluation.py --config CLASS_EVAL_CONFIG --workdir NAME --stat --latent --fidis
python run_lib_evaluation.py --folders SAMPLES REAL_IMAGES --fidis --kid --prdc

Processes that torchrun started share what takes networks: --calculate, --stat, --latent, --encode
and --encode_dataset. The first alone reads, measures, prints and records.
"""

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_collections
from absl import flags

import cli
import evaluation
from configs import ranges
from configs.classes import draws_by_class
from utils import UserError, is_first

if TYPE_CHECKING:  # the command line does without it
    from metrics.feature_sets import FeatureSet

MODES = ("full", "class")
FOLDERS_CONFIG = pathlib.Path(__file__).parent / "configs" / "folders.py"
# What is about a run, and means nothing for two folders of images.
OF_A_RUN = (
    *("workdir", "calculate", "read", "encode", "encode_dataset", "stat", "latent", "nfe", "ode"),
    *("dataset_stat", "dry_run", "over_checkpoints"),
)


def define_flags(metric: str | None = None) -> None:
    """Define the evaluation flags; `metric` is what --metric stands at when it is not given."""
    of_folders = any(argument.partition("=")[0] == "--folders" for argument in sys.argv)
    cli.define_common_flags(default_config=str(FOLDERS_CONFIG) if of_folders else None)
    flags.DEFINE_enum(
        "metric", metric, list(evaluation.SCORE_METRICS), "What --calculate and --read are about."
    )
    flags.DEFINE_bool("calculate", False, "Calculate the metric, batch by batch.")
    flags.DEFINE_bool("read", False, "Average and print what was calculated.")
    flags.DEFINE_integer("checkpoint_idx", None, "Number of the checkpoint; else the newest.")
    flags.DEFINE_integer("bs", None, "Batch size.")
    flags.DEFINE_integer("slices", None, "Random vectors per image of the asymmetry.")
    flags.DEFINE_integer("nl", None, "Noise levels of the asymmetry.")
    flags.DEFINE_integer("total_repeat", None, "Repetitions of the asymmetry.")
    flags.DEFINE_float("atol", None, "Absolute tolerance of the likelihood's ODE.")
    flags.DEFINE_float("rtol", None, "Relative tolerance of the likelihood's ODE.")
    flags.DEFINE_bool("ema", False, "Take the averaged weights, not the published raw ones.")
    flags.DEFINE_bool("encode", False, "Write the features of the samples.")
    flags.DEFINE_bool("encode_dataset", False, "Write the features of the training images.")
    flags.DEFINE_bool("stat", False, "With classes: write the training images' features.")
    flags.DEFINE_bool("latent", False, "With classes: write the samples' features.")
    for sample_metric in evaluation.SAMPLE_METRICS:
        flags.DEFINE_bool(sample_metric.flag, False, sample_metric.help)
    cli.define_dry_run()
    flags.DEFINE_bool("nfe", False, "Print the mean NFE of the samples.")
    flags.DEFINE_bool("ode", False, "Evaluate the ODE samples.")
    flags.DEFINE_string("sampler", None, "Evaluate the samples of this sampler; else the config's.")
    flags.DEFINE_enum("mode", "full", MODES, "Over all samples, or class by class.")
    flags.DEFINE_enum(
        "backend",
        evaluation.OURS,
        evaluation.BACKENDS,
        f"Who computes {or_list(metric_flags())}.",
    )
    flags.DEFINE_integer(
        "sets", 1, "Cut the samples into so many sets: each one's metrics, minimum and mean."
    )
    flags.DEFINE_bool(
        "over_checkpoints",
        False,
        "Draw, encode and measure samples of every checkpoint of the run.",
    )
    flags.DEFINE_string("dataset_stat", None, "File of the real images' features.")
    flags.DEFINE_multi_string(
        "folders", None, "Compare two folders of images, the samples and the real images."
    )


def launch() -> None:
    cli.launch(main, pairs=("folders",))


def metric_flags() -> list[str]:
    """The flags that ask for metrics of samples, as they are typed."""
    return [f"--{metric.flag}" for metric in evaluation.SAMPLE_METRICS]


def or_list(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def asked_for(FLAGS: flags.FlagValues) -> list[evaluation.SampleMetric]:
    """The metrics of samples that the flags ask for."""
    return [metric for metric in evaluation.SAMPLE_METRICS if getattr(FLAGS, metric.flag)]


def main() -> None:
    """Do what the flags ask for, in the order in which results depend on each other."""
    FLAGS = flags.FLAGS
    config = FLAGS.config
    cli.override(
        config,
        eval__checkpoint_idx=FLAGS.checkpoint_idx,
        eval__batch_size=FLAGS.bs,
        eval__noise_levels=FLAGS.nl,
        eval__total_repeat=FLAGS.total_repeat,
        eval__atol=FLAGS.atol,
        eval__rtol=FLAGS.rtol,
        loss__slices=FLAGS.slices,
        sampling__method=cli.sampling_method(FLAGS.ode, FLAGS.sampler),
    )
    ranges.check(config)
    if FLAGS.folders:
        compare_folders(config, FLAGS)
        return
    if FLAGS.sets < 1 or (FLAGS.sets > 1 and FLAGS.mode == "class"):
        raise UserError(
            f"--sets is {FLAGS.sets}, --mode {FLAGS.mode}; expected 1 or more, and --mode full."
        )
    of_score = FLAGS.calculate or FLAGS.read
    by_class = FLAGS.stat or FLAGS.latent
    whole = FLAGS.encode or FLAGS.encode_dataset
    of_samples = by_class or whole or asked_for(FLAGS) or FLAGS.nfe
    if not (of_score or of_samples):
        raise UserError(
            "Nothing was asked for; give --calculate or --read (NLL, asymmetry), or --stat, "
            f"--latent, --encode, --encode_dataset, {or_list([*metric_flags(), '--nfe'])} "
            "(samples)."
        )
    if of_score and FLAGS.metric is None:
        choices = ", ".join(evaluation.SCORE_METRICS)
        raise UserError(f"--metric is missing; expected one of: {choices}.")
    require_kind(config, FLAGS, by_class, whole)
    if FLAGS.dry_run and FLAGS.over_checkpoints:
        raise UserError("--over_checkpoints has no --dry_run; give one of them.")
    if FLAGS.dry_run:
        plan(config, FLAGS)
        return
    if FLAGS.over_checkpoints:
        measure_checkpoints(config, FLAGS)
        return
    if of_score:
        score_metric(config, FLAGS)
    if draws_by_class(config):
        class_sample_metrics(config, FLAGS)
    else:
        sample_metrics_of(config, FLAGS)


def require_kind(
    config: ml_collections.ConfigDict, FLAGS: flags.FlagValues, by_class: bool, whole: bool
) -> None:
    """Raise a UserError unless what is asked for is of the samples that `config` draws."""
    if draws_by_class(config) and (whole or FLAGS.dataset_stat):
        raise UserError(
            "This configuration draws samples by class: --stat and --latent make their "
            "features, not --encode, --encode_dataset or --dataset_stat."
        )
    if not draws_by_class(config) and (by_class or FLAGS.mode == "class"):
        raise UserError(
            "--stat, --latent and --mode class need a configuration of a classifier or of "
            "classes; use --encode and --encode_dataset."
        )


def plan(config: ml_collections.ConfigDict, FLAGS: flags.FlagValues) -> None:
    """Print what the flags ask for."""
    from planning import scores

    scores.evaluate(
        config,
        FLAGS.workdir,
        metric=FLAGS.metric if FLAGS.calculate else None,
        read=FLAGS.metric if FLAGS.read else None,
        features=[name for name in scores.FEATURES if getattr(FLAGS, name)],
        metrics=[metric.name for metric in asked_for(FLAGS)],
        mode=FLAGS.mode,
        nfe=FLAGS.nfe,
    )


def score_metric(config: ml_collections.ConfigDict, FLAGS: flags.FlagValues) -> None:
    """NLL or asymmetry of a score model."""
    calculate, read = evaluation.SCORE_METRICS[FLAGS.metric].functions()
    if FLAGS.calculate:
        calculate(config, FLAGS.workdir, FLAGS.ema)
    if FLAGS.read and is_first():
        read(FLAGS.workdir)


def measure_checkpoints(config: ml_collections.ConfigDict, FLAGS: flags.FlagValues) -> None:
    """Metrics of samples over all checkpoints of a run."""
    from sweeps import checkpoints

    if draws_by_class(config):
        raise UserError("--over_checkpoints is for score models; this configuration has classes.")
    if not asked_for(FLAGS) or FLAGS.sets != 1:
        raise UserError(f"--over_checkpoints takes {or_list(metric_flags())}, and no --sets.")
    if FLAGS.encode_dataset:
        from metrics import encoding

        encoding.encode_dataset(config, FLAGS.workdir)
    checkpoints.measure(config, FLAGS.workdir, asked_for(FLAGS), FLAGS.dataset_stat, FLAGS.backend)


def class_sample_metrics(config: ml_collections.ConfigDict, FLAGS: flags.FlagValues) -> None:
    """Features and metrics of samples that were drawn class by class."""
    from metrics import encoding, feature_sets, measuring, sample_sets

    if FLAGS.stat:
        encoding.encode_real_classes(config, FLAGS.workdir)
    if FLAGS.latent:
        encoding.encode_class_samples(config, FLAGS.workdir)
    if not is_first():
        return
    if asked_for(FLAGS):
        compare(config, FLAGS, *feature_sets.open_classes(config, FLAGS.workdir))
    if FLAGS.nfe:
        classes = sample_sets.find_class_samples(config, FLAGS.workdir)
        measuring.nfe(config, FLAGS.workdir, list(itertools.chain.from_iterable(classes)))


def sample_metrics_of(config: ml_collections.ConfigDict, FLAGS: flags.FlagValues) -> None:
    """Features and metrics of samples that were drawn in divisions."""
    from metrics import encoding, feature_sets, measuring, sample_sets

    if FLAGS.encode_dataset:
        encoding.encode_dataset(config, FLAGS.workdir)
    if FLAGS.encode:
        encoding.encode_samples(config, FLAGS.workdir)
    if not is_first():
        return
    if asked_for(FLAGS):
        sets = feature_sets.open_sets(config, FLAGS.workdir, FLAGS.dataset_stat)
        compare(config, FLAGS, *sets)
    if FLAGS.nfe:
        rounds = sample_sets.find_division_samples(config, FLAGS.workdir)
        measuring.nfe(config, FLAGS.workdir, rounds)


def compare_folders(config: ml_collections.ConfigDict, FLAGS: flags.FlagValues) -> None:
    """Metrics of two folders of images that belong to no run."""
    from metrics import image_folders, measuring

    given = [f"--{name}" for name in OF_A_RUN if getattr(FLAGS, name)]
    given += ["--mode class"] if FLAGS.mode == "class" else []
    given += ["--sets"] if FLAGS.sets != 1 else []
    if given:
        raise UserError(
            f"--folders compares two folders of images, whatever made them; {', '.join(given)} "
            "is about a run. Give one or the other."
        )
    if len(FLAGS.folders) != 2:
        raise UserError(
            f"--folders A B takes two folders, the samples and the real images; given: "
            f"{', '.join(FLAGS.folders)}."
        )
    if not asked_for(FLAGS):
        raise UserError(f"Nothing was asked for; give {or_list(metric_flags())}.")
    real, generated = image_folders.open_folders(config, *FLAGS.folders)
    if is_first():
        for metric in asked_for(FLAGS):
            measuring.print_metric(metric, config, real, generated, FLAGS.backend)


def compare(
    config: ml_collections.ConfigDict,
    FLAGS: flags.FlagValues,
    real: "FeatureSet",
    generated: "FeatureSet",
) -> None:
    """Print and record the metrics that are asked for."""
    from metrics import measuring

    if FLAGS.sets > 1:
        for metric in asked_for(FLAGS):
            measuring.measure_sets(
                metric, config, FLAGS.workdir, real, generated, FLAGS.sets, FLAGS.backend
            )
        return
    for metric in asked_for(FLAGS):
        measuring.measure(metric, config, FLAGS.workdir, real, generated, FLAGS.mode, FLAGS.backend)


if __name__ == "__main__":
    define_flags()
    launch()
