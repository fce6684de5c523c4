"""Evaluate a model: NLL and asymmetry of its score, and metrics of its samples.

python run_lib_evaluation.py --config EVAL_CONFIG --workdir NAME --metric nll --calculate
python run_lib_evaluation.py --config EVAL_CONFIG --workdir NAME --encode --encode_dataset --fidis
python run_lib_evaluation.py --config CLASS_EVAL_CONFIG --workdir NAME --stat --latent --fidis

The ranks of torchrun share the work of --calculate, --stat, --latent, --encode and
--encode_dataset. Only rank 0 reads, measures, prints and records.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags

import cli
import evaluation
import run_lib_likelihood
from metrics import encoding, feature_sets, sample_sets
from models.trained import adopt_from_checkpoints, checkpoint_paths
from storage import settings
from storage.files import to_json
from storage.settings import describes_classifier, draws_by_class
from storage.workdir import Workdir
from utils import UserError, flatten, is_first, lookup

FLAGS = flags.FLAGS
# The fields that flags set.
FIELDS = {
    "checkpoint_idx": "eval.checkpoint_idx",
    "bs": "eval.batch_size",
    "num_images": "eval.num_images",
    "nl": "eval.noise_levels",
    "total_repeat": "eval.total_repeat",
    "atol": "eval.atol",
    "rtol": "eval.rtol",
    "slices": "loss.slices",
}
METRIC_FLAGS = [*(metric.flag for metric in evaluation.SAMPLE_METRICS), "measure"]
# Each flag that starts a computation, with the flags that the computation reads.
CHOICE_OF_SAMPLES = {"ode", "sampler", "scale"}
NLL = {"metric", "checkpoint_idx", "bs", "num_images", "atol", "rtol", "ema"}
ASYM = {"metric", "checkpoint_idx", "bs", "num_images", "slices", "nl", "total_repeat", "ema"}
ENCODE = {"bs", *CHOICE_OF_SAMPLES}
MEASURE = {"mode", "dataset_stat", *CHOICE_OF_SAMPLES}
READS = {
    "calculate": {"nll": NLL, "asym": ASYM},
    "read": {"nll": {"metric", "ema"}, "asym": {"metric", "ema", "total_repeat"}},
    **dict.fromkeys(("encode", "encode_dataset", "latent"), ENCODE),
    "stat": {"bs"},
    **dict.fromkeys(METRIC_FLAGS, MEASURE),
    "nfe": CHOICE_OF_SAMPLES,
}


def define_flags(metric: str | None = None) -> None:
    """Define the evaluation flags; `metric` is the default of --metric."""
    cli.define_common_flags()
    flags.DEFINE_enum(
        "metric", metric, list(evaluation.SCORE_METRICS), "Metric of --calculate and --read."
    )
    flags.DEFINE_bool("calculate", False, "Calculate the metric, batch by batch.")
    flags.DEFINE_bool("read", False, "Average and print the calculated values.")
    flags.DEFINE_integer("checkpoint_idx", None, "Number of the checkpoint; else the newest.")
    flags.DEFINE_integer("bs", None, "Batch size.")
    flags.DEFINE_integer("num_images", None, "Test images of NLL and asymmetry; else all.")
    flags.DEFINE_integer("slices", None, "Random vectors per image of the asymmetry.")
    flags.DEFINE_integer("nl", None, "Noise levels of the asymmetry.")
    flags.DEFINE_integer("total_repeat", None, "Repetitions of the asymmetry.")
    flags.DEFINE_float("atol", None, "Absolute tolerance of the likelihood's ODE.")
    flags.DEFINE_float("rtol", None, "Relative tolerance of the likelihood's ODE.")
    flags.DEFINE_bool(
        "ema", False, "Use the EMA weights; the default, as published, is the raw ones."
    )
    flags.DEFINE_bool("encode", False, "Write the features of the samples.")
    flags.DEFINE_bool("encode_dataset", False, "Write the features of the real images.")
    flags.DEFINE_bool("stat", False, "With classes: write the real images' features.")
    flags.DEFINE_bool("latent", False, "With classes: write the samples' features.")
    for sample_metric in evaluation.SAMPLE_METRICS:
        flags.DEFINE_bool(sample_metric.flag, False, sample_metric.help)
    flags.DEFINE_multi_string("measure", [], "Metrics of samples that the configuration adds.")
    flags.DEFINE_bool("nfe", False, "Print the mean NFE of the samples.")
    cli.define_sampler_flags()
    cli.define_dry_run()
    flags.DEFINE_enum("mode", "full", ["full", "class"], "Over all samples, or class by class.")
    flags.DEFINE_string("dataset_stat", None, "File of the real images' features.")


def launch() -> None:
    cli.launch(main, lists=["measure"])


def main() -> None:
    """Run what the flags ask for, in the order of the dependencies."""
    config, workdir = FLAGS.config, FLAGS.workdir
    asked = [name for name in READS if FLAGS[name].value]
    metrics = [metric for metric in evaluation.SAMPLE_METRICS if metric.flag in asked]
    by_name = {metric.name: metric for metric in evaluation.SAMPLE_METRICS}
    metrics += [lookup(by_name, name, "--measure") for name in FLAGS.measure]
    cli.apply_flags(config, FIELDS)
    require_asked(asked)
    cli.choose_sampler(config)
    if asked != ["read"]:  # the files that are read hold their settings
        config = with_model_of_checkpoint(config)
    settings.check(config)
    require_kind(config, asked)
    if {"latent", "encode", "nfe", *METRIC_FLAGS} & {*asked}:
        Workdir(workdir).require()
        for origin in sample_sets.origins(config, Workdir(workdir)):
            refuse_other_settings(config, origin)
    if "read" in asked and "calculate" not in asked:
        _, meta = run_lib_likelihood.read_files(workdir, FLAGS.metric, FLAGS.ema)
        refuse_other_settings(config, meta)
    if FLAGS.dry_run:
        import planning

        planning.evaluate(config, workdir, asked, FLAGS.metric, FLAGS.ema, FLAGS.dataset_stat)
        return
    if "calculate" in asked:
        calculate = {
            "nll": run_lib_likelihood.calculate_nll,
            "asym": run_lib_likelihood.calculate_asym,
        }
        calculate[FLAGS.metric](config, workdir, FLAGS.ema)
    if {"stat", "encode_dataset"} & {*asked}:
        encoding.encode_dataset(config, workdir)
    if {"latent", "encode"} & {*asked}:
        encoding.encode_samples(config, workdir)
    if not is_first():
        return
    if "read" in asked:
        if FLAGS.metric == "nll":
            run_lib_likelihood.read_nll(workdir, FLAGS.ema)
        else:
            run_lib_likelihood.read_asym(workdir, FLAGS.ema, FLAGS.total_repeat)
    if metrics:
        sets = feature_sets.open_sets(config, workdir, FLAGS.dataset_stat)
        refuse_other_settings(config, sets[1].origin)
        evaluation.measure(metrics, config, *sets, Workdir(workdir), FLAGS.mode)
    if "nfe" in asked:
        evaluation.nfe(config, workdir)


def require_asked(asked: Sequence[str]) -> None:
    """Raise a UserError if no flag of `READS` was given, or none of them reads a given flag."""
    if not asked:
        flags_of_samples = [f"--{name}" for name in READS if name not in ("calculate", "read")]
        raise UserError(
            "Nothing was asked for; give --calculate or --read (NLL, asymmetry), or for samples "
            f"{', '.join(flags_of_samples)}."
        )
    if {"calculate", "read"} & {*asked} and FLAGS.metric is None:
        choices = ", ".join(evaluation.SCORE_METRICS)
        raise UserError(f"--metric is missing; expected one of: {choices}.")
    read = set()
    for name in asked:
        reads = READS[name]
        read |= reads[FLAGS.metric] if isinstance(reads, dict) else reads
    unread = {*NLL, *ASYM, *ENCODE, *MEASURE} - read
    use = " ".join(f"--{name}" for name in asked)
    use += " without --calculate" if asked == ["read"] else ""
    cli.refuse_flags(sorted(unread), use)
    cli.refuse_fields([FIELDS[name] for name in unread & {*FIELDS} - {"bs", "slices"}], use)


def refuse_other_settings(config: ml_collections.ConfigDict, origin: dict[str, Any]) -> None:
    """Raise a UserError if a typed field contradicts the `origin` of existing files."""
    known = {f"sampling.{name}": value for name, value in origin.get("sampling", {}).items()}
    fields_of = {"seed": "seed", "data.dataset": "dataset"}
    known |= {field: origin[name] for field, name in fields_of.items() if name in origin}
    fields = flatten(config.to_dict())
    for name in sorted(cli.typed_fields() & known.keys()):
        if to_json(fields[name]) != to_json(known[name]):
            raise UserError(
                f"config.{name} is {fields[name]}, but the existing files were made with "
                f"{known[name]}; leave it out, or make others."
            )


def with_model_of_checkpoint(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`config` with the model of the checkpoint that is evaluated."""
    kind = "classifier" if describes_classifier(config) else "score model"
    path = dict(checkpoint_paths(config, Workdir(FLAGS.workdir)))[kind]
    if kind == "score model" and config.model.get("score_restore_path"):
        cli.refuse_flags(["checkpoint_idx"], "config.model.score_restore_path")
    return adopt_from_checkpoints(config, [(kind, path)], cli.typed_fields())


def require_kind(config: ml_collections.ConfigDict, asked: Sequence[str]) -> None:
    """Raise a UserError unless `config` describes a model of the kind that `asked` needs."""
    if describes_classifier(config) and {"calculate", "read"} & {*asked}:
        raise UserError(
            "NLL and asymmetry need a score model, but this configuration describes a classifier; "
            "give the score model's configuration and workdir."
        )
    by_class = draws_by_class(config)
    wrong = {"encode", "encode_dataset"} if by_class else {"stat", "latent"}
    if wrong & {*asked} or (by_class and FLAGS.dataset_stat):
        raise UserError(
            "--encode, --encode_dataset and --dataset_stat are for samples without classes, --stat "
            f"and --latent for samples with classes; those of this model have "
            f"{'classes' if by_class else 'none'}. If its checkpoint is in another workdir, "
            "give the number with --config.model.num_classes."
        )
    for flag, given in (("mode class", FLAGS.mode == "class"), ("scale", FLAGS.scale is not None)):
        if given and not by_class:
            raise UserError(f"--{flag} needs samples with classes; those of this model have none.")


if __name__ == "__main__":
    define_flags()
    launch()
