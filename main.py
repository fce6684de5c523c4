"""Train a score model or a noise-conditioned classifier.

python main.py --config configs/score/cifar10_score_configs.py --model score --workdir NAME

For a classifier --restore names the score model that it is trained against. With
--export_diffusers DIR nothing is trained: the newest EMA weights are written for diffusers.
"""

from absl import flags
from ml_collections import ConfigDict

import cli
from storage.settings import describes_cas, describes_classifier
from utils import UserError, log

FLAGS = flags.FLAGS
cli.define_common_flags()
flags.DEFINE_enum("model", "score", ["score", "classifier"], "What to train.")
flags.DEFINE_string("restore", None, "Checkpoint to start from.")
flags.DEFINE_integer("bs", None, "Batch size; by default the configuration's.")
flags.DEFINE_float("balancing_fac", None, "Weight of the QC regulariser.")
flags.DEFINE_integer("slices", None, "Random vectors per image of the QC regulariser.")
flags.DEFINE_string("export_diffusers", None, "Write the trained model there; train nothing.")
cli.define_dry_run()


FIELDS = {
    "bs": "training.batch_size",
    "balancing_fac": "loss.balancing_fac",
    "slices": "loss.slices",
}


def export(config: ConfigDict, directory: str) -> None:
    """Write the EMA weights of the workdir's newest checkpoint to `directory`.

    Raises:
        UserError: there is no checkpoint, or its network is not one of diffusers.
    """
    import torch

    from models.trained import load_score, score_path
    from storage import pipelines
    from storage.workdir import Workdir

    path = score_path(config, Workdir(FLAGS.workdir))
    trained = load_score(config, path, torch.device("cpu"))
    pipelines.write(directory, trained.score.net, trained.config)
    log.info("Wrote the %s to %s.", trained.loaded, directory)


def main() -> None:
    import run_lib
    from models.trained import adopt_from_checkpoints
    from training.classifier import ClassifierTraining
    from training.score import ScoreTraining

    config = FLAGS.config
    cli.apply_flags(config, FIELDS)
    if describes_cas(config):
        raise UserError("This configuration describes a CAS; use run_lib_evaluation_cas.py.")
    make_job, restore = ScoreTraining, FLAGS.restore
    if FLAGS.model == "classifier":
        if not describes_classifier(config):
            raise UserError(
                "This configuration describes no classifier; use --model score, or a configuration "
                "such as configs/demo/digits_classifier.py. Own pictures by class need no "
                "classifier: docs/own_pictures.md."
            )
        cli.refuse_flags(["balancing_fac", "slices"], "--model classifier")
        make_job, restore = ClassifierTraining, None
        if FLAGS.restore:
            config.model.score_restore_path = FLAGS.restore
    elif describes_classifier(config):
        raise UserError("This configuration describes a classifier; use --model classifier.")
    elif not config.loss.balancing_fac:
        cli.refuse_flags(["slices"], "a balancing factor of 0")
    if FLAGS.export_diffusers is not None:
        cli.refuse_flags([*FIELDS, "restore", "dry_run"], "--export_diffusers")
        export(config, FLAGS.export_diffusers)
        return
    typed = cli.typed_fields()
    if FLAGS.model == "classifier":
        paths = [("score model", config.model.score_restore_path)]
        config = adopt_from_checkpoints(config, paths, typed)
    if FLAGS.dry_run:
        import planning

        planning.train(config, FLAGS.workdir, restore, make_job, typed)
    else:
        run_lib.train(config, FLAGS.workdir, restore, make_job, typed)


if __name__ == "__main__":
    cli.launch(main)
