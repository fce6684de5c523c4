"""Evaluate a model: NLL and asymmetry of its score, and metrics of its samples.

python run_lib_evaluation.py --config EVAL_CONFIG --workdir NAME --metric nll --calculate
"""

from absl import flags

import cli
from utils import UserError

METRICS = ("nll", "asym")


def define_flags(metric=None):
    """Define the evaluation flags; `metric` is what --metric stands at when it is not given."""
    cli.define_common_flags()
    flags.DEFINE_enum("metric", metric, METRICS, "What --calculate and --read are about.")
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


def main():
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
    )
    if not (FLAGS.calculate or FLAGS.read):
        raise UserError("Nothing was asked for; give --calculate or --read.")
    if FLAGS.metric is None:
        raise UserError(f"--metric is missing; expected one of: {', '.join(METRICS)}.")
    score_metric(config, FLAGS)


def score_metric(config, FLAGS):
    import score_metrics

    calculate, read = {
        "nll": (score_metrics.calculate_nll, score_metrics.read_nll),
        "asym": (score_metrics.calculate_asym, score_metrics.read_asym),
    }[FLAGS.metric]
    if FLAGS.calculate:
        calculate(config, FLAGS.workdir, FLAGS.ema)
    if FLAGS.read:
        read(FLAGS.workdir)


if __name__ == "__main__":
    define_flags()
    cli.launch(main)
