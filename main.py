"""Train a score model or a noise-conditioned classifier.

python main.py --config configs/score/cifar10_score_configs.py --model score --workdir NAME
"""

from absl import flags

import cli

FLAGS = flags.FLAGS
cli.define_common_flags()
flags.DEFINE_enum("model", "score", ["score"], "What to train.")
flags.DEFINE_string("restore", None, "Checkpoint to start from.")
flags.DEFINE_integer("bs", None, "Batch size; by default the configuration's.")
flags.DEFINE_float("balancing_fac", None, "Weight of the QC regulariser.")
flags.DEFINE_integer("slices", None, "Random vectors per image of the QC regulariser.")


def main():
    import run_lib

    config = FLAGS.config
    cli.override(
        config,
        training__batch_size=FLAGS.bs,
        loss__balancing_fac=FLAGS.balancing_fac,
        loss__slices=FLAGS.slices,
    )
    run_lib.train(config, FLAGS.workdir, restore=FLAGS.restore)


if __name__ == "__main__":
    cli.launch(main)
