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


def main():
    import run_lib

    config = FLAGS.config
    cli.override(config, training__batch_size=FLAGS.bs)
    run_lib.train(config, FLAGS.workdir, restore=FLAGS.restore)


if __name__ == "__main__":
    cli.launch(main)
