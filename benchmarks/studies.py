"""What the studies of trained models share: commands one after the other, and means over seeds.

A study runs the repository's commands as they are typed. Each of them goes on where it was cut and
keeps what stands, and so does the study; its folder says in study.json what it was begun with.
"""

import hashlib
import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np

import cli
from experiments import common
from readers.idx import read_idx
from storage.files import atomic_write, remove_abandoned, save_json
from storage.workdir import Workdir, suffix
from utils import UserError, require_positive

ROOT = pathlib.Path(__file__).parent.parent
# Fields that a study gives its commands, and the flag of the study's own that says them.
OWN = {
    "data.root": "--root",
    "seed": "--seeds",
    "training.init_step": "--restore",
    "training.n_iters": "--steps",
}
SHAPE = (28, 28)
# A sampler's own flags; `pc` is otherwise the papers', of 2,000 evaluations.
SAMPLER_FLAGS = {"pc": ["--num_scales=100"]}
METRICS = {
    "fid_is": ("fid",),
    "prdc": ("precision", "recall", "density", "coverage"),
}


class Commands:
    """Runs commands, each with those of the study's flags whose field its configuration has.

    Args:
        flags: ``--config.section.field=value`` each.
        configs: the files of all configurations of the study.
        root: the data root of every command.

    Raises:
        UserError: none of them has the field of a flag, or the study sets it itself.
    """

    def __init__(self, flags, configs, root):
        self.flags = list(flags)
        self.root = root
        for flag in self.flags:
            field = field_of(flag)
            if field in OWN:
                raise UserError(f"This study sets config.{field} itself; give it {OWN[field]}.")
            if not any(has_field(config, flag) for config in configs):
                raise UserError(f"No configuration of this study has the field of {flag}.")

    def __call__(self, script, config, workdir, *flags):
        """Run a script of the repository, and stop the study with its status if it fails."""
        own = [flag for flag in self.flags if has_field(config, flag)]
        own.append(f"--config.data.root={self.root}")
        arguments = [f"--config={ROOT / config}", f"--workdir={workdir}", *flags, *own]
        print("$", script, *arguments, flush=True)
        done = subprocess.run([sys.executable, str(ROOT / script), *arguments], check=False)
        if done.returncode:
            sys.exit(done.returncode)


def field_of(flag):
    """``section.field`` of ``--config.section.field=value``."""
    return flag.removeprefix("--config.").partition("=")[0]


def has_field(config, flag):
    """Whether the configuration of a file has the field of ``--config.section.field=value``."""
    module = importlib.import_module(config.removesuffix(".py").replace("/", "."))
    *sections, field = field_of(flag).split(".")
    found = module.get_config()
    for section in sections:
        found = found.get(section, {})
    return field in found


def launch(main, arguments):
    """Run ``main(arguments)``; a mistake ends in one sentence."""
    try:
        main(arguments)
    except UserError as error:
        cli.fail(error)


def begin(folder, restored, flags):
    """Note in the workdir `folder` which weights and flags its models are made of.

    Raises:
        UserError: others were noted, whose models would be taken for those of this study, or the
            file of the weights cannot be read.
    """
    try:
        weights = pathlib.Path(restored).read_bytes()
    except OSError as error:
        raise UserError(f"{restored} cannot be read ({error.strerror}).") from None
    made_of = {"weights": hashlib.sha256(weights).hexdigest(), "flags": sorted(flags)}
    path = Workdir(folder).root / "study.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, made_of)
    elif json.loads(path.read_text()) != made_of:
        raise UserError(
            f"{path.parent} holds the models of a study with another --restore or other flags "
            f"than now, see {path}; move it away to begin anew."
        )


def part_of_test_set(root, split, count):
    """A data root whose Fashion-MNIST has `count` images of the real test set as its own.

    They are the first ones (test) or those after them (validation), which no model was trained on.

    Raises:
        UserError: the set is not there, or has too few images.
    """
    start = count if split == "validation" else 0
    return _part(root, f"{split}-{count}", "t10k", start, count)


def part_of_training_set(root, count):
    """A data root whose Fashion-MNIST has the first `count` images of the training set as its own.

    Raises:
        UserError: as `part_of_test_set`.
    """
    return _part(root, f"train-{count}", "train", 0, count)


def _part(root, name, part, start, count):
    """A data root named `name` with `count` images of the split `part`, and the other one whole."""
    require_positive(count, "The number of images")
    source = pathlib.Path(root) / "fashion_mnist"
    target = pathlib.Path("results/studies") / name / "fashion_mnist"
    for split in ("train", "t10k"):
        for stem, shape in (("images-idx3-ubyte", SHAPE), ("labels-idx1-ubyte", ())):
            file = _file(source, f"{split}-{stem}")
            if split == part:
                whole = read_idx(file, shape)
                array = whole[start : start + count]
                if len(array) < count:
                    raise UserError(f"{file} holds {len(whole)} images, too few for {name}.")
                content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
                _write_once(target / f"{split}-{stem}", content + array.tobytes())
            else:
                _write_once(target / file.name, file.read_bytes())
    return target.parent


def _file(folder, stem):
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder} lacks {stem}; expected the four IDX files of Fashion-MNIST.")


def _write_once(path, content):
    """Leave a file that has the content alone: data caches know files by their times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    if not path.exists() or path.read_bytes() != content:
        with atomic_write(path) as file:
            file.write(content)


def sample_metrics(workdir, sampler, mode="full"):
    """The recorded metrics of a workdir's samples, a dict of floats."""
    recorded = Workdir(workdir).recorded()
    kind = "_class" if mode == "class" else ""
    found = {}
    for metric, names in METRICS.items():
        values = recorded[f"{metric}{kind}{suffix(sampler)}"]
        found.update({name: values[name] for name in names})
    return found


def print_table(title, results):
    """Print mean ± standard deviation over seeds, from {row: [{column: value} of each seed]}."""
    columns = list(next(iter(results.values()))[0])
    rows = []
    for name, seeds in results.items():
        cells = [spread([values[column] for values in seeds]) for column in columns]
        rows.append([name, str(len(seeds)), *cells])
    print()
    common.print_table([title, "seeds", *columns], rows)


def spread(values):
    """Mean ± standard deviation in text; of a single value itself."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"
