"""Classification accuracy score of class-conditional samples: the published command.

python run_lib_evaluation_cas.py --config configs/eval/cifar10/eval_cifar10_configs_cas.py \\
    --workdir NAME --setup ours
"""

from absl import flags

import cli
from storage.settings import describes_cas
from utils import UserError


def main() -> None:
    import run_lib_cas
    from models.trained import adopt_from_checkpoints
    from storage.workdir import Workdir

    FLAGS = flags.FLAGS
    config = FLAGS.config
    if not describes_cas(config):
        raise UserError("This configuration does not describe a CAS; use one of …_configs_cas.py.")
    cli.apply_flags(config, {"bs": "training.batch_size"})
    classifier = ("classifier", Workdir(FLAGS.workdir).checkpoint())
    config = adopt_from_checkpoints(config, [classifier], cli.typed_fields())
    run_lib_cas.cas(config, FLAGS.workdir, FLAGS.setup, FLAGS.samples)


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_enum(
        "setup",
        None,
        ["base", "ours", "scale", "real"],
        "Set-up whose samples to train on; real: the real training images, for reference.",
    )
    flags.DEFINE_string("samples", None, "Folder of the samples; else the set-up's own.")
    flags.DEFINE_integer("bs", None, "Batch size of the training.")
    cli.launch(main)
