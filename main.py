"""Train a score model or a noise-conditioned classifier.

python main.py --config configs/score/cifar10_score_configs.py --model score --workdir NAME

For a classifier --restore names the score model that it is trained against.
"""

from absl import flags

import cli
from configs.classes import describes_classifier
from utils import UserError

FLAGS = flags.FLAGS
cli.define_common_flags()
flags.DEFINE_enum("model", "score", ["score", "classifier"], "What to train.")
flags.DEFINE_string("restore", None, "Checkpoint to start from.")
flags.DEFINE_integer("bs", None, "Batch size; by default the configuration's.")
flags.DEFINE_float("balancing_fac", None, "Weight of the QC regulariser.")
flags.DEFINE_integer("slices", None, "Random vectors per image of the QC regulariser.")
cli.define_dry_run()


def main() -> None:
    import run_lib
    from planning import training as planned
    from training.classifier import ClassifierTraining

    config = FLAGS.config
    cli.override(
        config,
        training__batch_size=FLAGS.bs,
        loss__balancing_fac=FLAGS.balancing_fac,
        loss__slices=FLAGS.slices,
    )
    train = planned.train if FLAGS.dry_run else run_lib.train
    if FLAGS.model == "classifier":
        if not describes_classifier(config):
            raise UserError("This configuration describes no classifier; use --model score.")
        cli.override(config, model__score_restore_path=FLAGS.restore)
        train(config, FLAGS.workdir, make_job=ClassifierTraining)
    else:
        if describes_classifier(config):
            raise UserError("This configuration describes a classifier; use --model classifier.")
        train(config, FLAGS.workdir, restore=FLAGS.restore)


if __name__ == "__main__":
    cli.launch(main)
