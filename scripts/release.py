"""Write only the EMA weights of a run, in half precision, for publication.

python scripts/release.py --config CONFIG --workdir NAME [--checkpoint_idx N] --out FILE.pth

The file is a checkpoint that every command reads; it has no optimiser state for training.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import torch
from absl import flags

import cli
from models.trained import load_score
from storage.files import atomic_write
from storage.workdir import Workdir
from utils import log


def main() -> None:
    FLAGS = flags.FLAGS
    checkpoint = Workdir(FLAGS.workdir).checkpoint(FLAGS.checkpoint_idx)
    trained = load_score(FLAGS.config, checkpoint, torch.device("cpu"))
    weights = trained.score.net.state_dict()
    content = {
        # The noise levels stay float64.
        "model": {n: x.half() if x.dtype == torch.float32 else x for n, x in weights.items()},
        "step": trained.loaded.step,
        "config": trained.config.to_json(),
    }
    with atomic_write(FLAGS.out) as file:
        torch.save(content, file)
    size = pathlib.Path(FLAGS.out).stat().st_size / 2**20
    log.info("Wrote step %d to %s: %.1f MiB.", trained.loaded.step, FLAGS.out, size)


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_integer("checkpoint_idx", None, "Which checkpoint; the newest without it.")
    flags.DEFINE_string("out", None, "The file to write.", required=True)
    cli.launch(main)
