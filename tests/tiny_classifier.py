"""The smallest configurations of class-conditional models, beside `tiny`'s score model."""

import importlib

import tiny

import run_lib
from storage.workdir import Workdir
from training.classifier import ClassifierTraining

NAMES = {"classifier": "digits_classifier", "guided": "digits_guided", "cas": "digits_cas"}


def changes(kind, cache):
    """Fields that make the demo's configuration of `kind` tiny."""
    fields = {
        **tiny.changes(cache),
        "model.score_restore_path": str(Workdir("score").checkpoint()),
        "classifier.nf": 8,
    }
    if kind == "classifier":  # such a configuration samples nothing
        return {name: value for name, value in fields.items() if not name.startswith("eval.")}
    fields["eval.num_samples_all"] = 30
    fields["eval.num_divisions"] = 1
    fields["eval.batch_size"] = 2
    return fields


def config(kind, cache, **more):
    """The tiny configuration; `more` is fields with "__" for the dot."""
    result = importlib.import_module(f"configs.demo.{NAMES[kind]}").get_config()
    more = {name.replace("__", "."): value for name, value in more.items()}
    result.update_from_flattened_dict({**changes(kind, cache), **more})
    return result


def arguments(kind, cache, **more):
    """The same as command-line arguments."""
    fields = changes(kind, cache) | {k.replace("__", "."): v for k, v in more.items()}
    path = tiny.ROOT / f"configs/demo/{NAMES[kind]}.py"
    return [f"--config={path}", *(f"--config.{name}={value}" for name, value in fields.items())]


def train_score(cache):
    """The score model that the classifiers are trained against: the run "score"."""
    run_lib.train(tiny.config(cache, training__n_iters=4), "score")


def train(cache, workdir, **more):
    return run_lib.train(config("classifier", cache, **more), workdir, make_job=ClassifierTraining)
