"""Write the averaged weights of a run alone, in half precision, to be passed on.

python scripts/release.py --config CONFIG --workdir NAME [--checkpoint_idx N] --out FILE.pth

The file is a checkpoint that every command reads; a training that starts from it has no moments.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import ml_collections
import torch
from absl import flags

import cli
from models.trained import load_score
from storage.files import atomic_write
from storage.workdir import Workdir
from utils import log


def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """float32 arrays in float16; others, as the noise levels in float64, stay."""
    return {
        name: value.half() if value.dtype == torch.float32 else value
        for name, value in weights.items()
    }


def release(
    config: ml_collections.ConfigDict, checkpoint: str | os.PathLike, path: pathlib.Path
) -> None:
    """Write what the checkpoint of a score model averages to `path`, whole or not at all.

    Raises:
        UserError: the checkpoint is missing or does not fit the configuration.
    """
    trained = load_score(config, checkpoint, torch.device("cpu"))
    content = {
        "model": halved(trained.score.net.state_dict()),
        "step": trained.loaded.step,
        "config": trained.config.to_json(),
    }
    with atomic_write(path) as file:
        torch.save(content, file)
    log.info(
        "Wrote step %d to %s: %.1f MiB.", trained.loaded.step, path, path.stat().st_size / 2**20
    )


def main() -> None:
    FLAGS = flags.FLAGS
    checkpoint = Workdir(FLAGS.workdir).checkpoint(FLAGS.checkpoint_idx)
    release(FLAGS.config, checkpoint, pathlib.Path(FLAGS.out))


if __name__ == "__main__":
    cli.define_common_flags()
    flags.DEFINE_integer("checkpoint_idx", None, "Which checkpoint; the newest without it.")
    flags.DEFINE_string("out", None, "The file to write.", required=True)
    cli.launch(main)
