"""Where a training run continues: at the newest state in its workdir, if it is the same run."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Collection
from typing import Any

import ml_collections

from storage import checkpoints, descriptions, pipelines
from storage.checkpoints import TrainState
from storage.settings import describes_cas, describes_classifier
from storage.workdir import Workdir
from utils import UserError, flatten, log

# Fields of the random draws, the network and the loss, which a run cannot change. The optimiser's
# settings, the snapshot samples and `compute` may change.
FIXED_SECTIONS = ("data", "model", "classifier", "loss", "cas")
FIXED_TRAINING = (
    *("sde", "continuous", "likelihood_weighting", "reduce_mean", "eps", "batch_size"),
    *("weighting", "times", "log_sigma_mean", "log_sigma_std", "label_dropout"),
)
# Fields that older checkpoints do not hold, and what they were trained with.
ADDED = {"training.weighting": None, "training.times": "uniform", "model.preconditioning": None}
# Paths may change: files move.
PLACES = ("data.root", "data.cache", "model.pretrained")


def _is_fixed(field, before, step):
    section, _, name = field.partition(".")
    if field == "training.snapshot_freq":
        return step >= before  # checkpoint_1.pth, of this many steps, is written
    if field in PLACES or field.endswith("_path"):
        return False
    if section == "training":
        return name in FIXED_TRAINING
    return field == "seed" or section in FIXED_SECTIONS


def require_same_run(
    before: dict[str, Any],
    config: ml_collections.ConfigDict,
    path: str | os.PathLike,
    step: int,
) -> list[str]:
    """Refuse to continue the state at `path` with a `config` of another run.

    Args:
        before: the configuration in the state; empty in a file of the published code.
        step: the step of the state.

    Returns:
        Messages about changed fields that may change.

    Raises:
        UserError: a field that must not change differs; names it.
    """
    before, now = flatten(before), flatten(json.loads(config.to_json()))
    before = {**ADDED, **before} if before else before
    changed = [name for name in now if name in before and before[name] != now[name]]
    fixed = [name for name in changed if _is_fixed(name, before[name], step)]
    if fixed:
        differences = ", ".join(f"config.{n} {before[n]} (now {now[n]})" for n in fixed)
        # A flag cannot give None.
        flags = [f"with --config.{n}={before[n]}" for n in fixed if before[n] is not None]
        flags += [f"without --config.{n}" for n in fixed if before[n] is None]
        raise UserError(
            f"{path} was trained with {differences}. Continue it {' '.join(flags)}, or begin "
            "another run with another --workdir."
        )
    differences = ", ".join(f"{n} {now[n]} instead of {before[n]}" for n in changed)
    return [f"Changed: {differences}."] if changed else []


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        path, content: the checkpoint; None and {} for new weights.
        continues: whether the checkpoint is a state of this run.
        notes: messages about ignored files and arguments.
        foreign: files in the run's place that no run wrote, such as published ones.
    """

    path: str | os.PathLike | None = None
    content: dict[str, Any] = dataclasses.field(default_factory=dict)
    continues: bool = False
    notes: tuple[str, ...] = ()
    foreign: tuple[pathlib.Path, ...] = ()

    def adopt(
        self, config: ml_collections.ConfigDict, typed: Collection[str]
    ) -> ml_collections.ConfigDict:
        """`config` with the checkpoint's network, SDE and scaling, see `descriptions.adopt`.

        A run that starts from another run's weights keeps ``descriptions.OF_A_TRAINING``.

        Raises:
            UserError: the checkpoint is of another kind, or contradicts a field in `typed`.
        """
        if self.path is not None and not describes_cas(config):
            kind = "classifier" if describes_classifier(config) else "score model"
            checkpoints.require_kind(self.content, self.path, kind)
        keep = () if self.continues else descriptions.OF_A_TRAINING
        before = checkpoints.config_of(self.content)
        return descriptions.adopt(config, before, self.path, keep, typed)

    def load(self, state: TrainState, config: ml_collections.ConfigDict) -> list[str]:
        """Load the checkpoint into `state`; returns sentences for the log.

        Raises:
            UserError: the checkpoint does not fit, is that of another run, or is not before
                ``config.training.n_iters``.
        """
        if self.path is None:
            return ["Starting from new weights."]
        before = checkpoints.config_of(self.content) or {}
        if self.continues:
            step = checkpoints.read_count(self.content, "step", self.path, 0)
            changes = require_same_run(before, config, self.path, step)
            checkpoints.load_training(state, self.content, self.path)
            return [*self.notes, *changes, f"Continuing from {self.path} at step {state.step}."]
        init_step, n_iters = config.training.init_step, config.training.n_iters
        checkpoints.load_training(state, self.content, self.path, init_step)
        if isinstance(state.data, dict):
            # Weights may start a run on other data, but label embeddings need the same classes.
            kept = ("classes",) if config.model.get("num_classes") else ()
            state.data = {name: state.data[name] for name in kept if name in state.data}
        known = "step" in self.content
        counted = "" if known else ", since it does not say one (config.training.init_step)"
        if state.step >= n_iters:
            raise UserError(
                f"{self.path} counts as step {state.step}{counted}, and training ends at "
                f"config.training.n_iters, {n_iters}: nothing would be trained. Ask for more "
                "steps with --config.training.n_iters."
            )
        energy = before.get("model", {}).get("energy", config.model.energy)
        if energy != config.model.energy:
            log.warning(
                f"{self.path} has model.energy {energy}, and this run has {config.model.energy}: "
                "the network's output has another meaning, and training has to learn it anew."
            )
        return [f"Restored {self.path} at step {state.step}{counted}."]

    def require_room(self, step: int, training: ml_collections.ConfigDict, place: Workdir) -> None:
        """Raise a UserError if the training from `step` on would replace a `foreign` file."""
        last = training.n_iters // training.snapshot_freq
        written = {None, last, *range(step // training.snapshot_freq + 1, last)}
        for path in self.foreign:
            if path in map(place.checkpoint, written):
                raise UserError(
                    f"{path} is not the state of a run, and training would replace it. Move it "
                    "away, or train in another --workdir."
                )


def find(place: Workdir, restore: str | os.PathLike | None, pretrained: str | None = None) -> Start:
    """Where a run in `place` continues: its newest state, else `restore`, else new weights.

    The newest state is the resume point or, if it is of a later step, the last snapshot. A damaged
    file is ignored if there is another one. Weights that `pretrained` names, see `pipelines.local`,
    replace new ones. Ignored arguments are noted.

    Raises:
        UserError: there are such files, and none can be read; or `restore` cannot be read.
    """
    snapshots = [place.checkpoint(number) for number in reversed(place.numbers())]
    states, faults, foreign = [], [], []
    for path in [place.resume_point, place.checkpoint(), *snapshots]:
        if not path.exists():
            continue
        if states and path.samefile(states[0][1]):
            break  # the resume point is a link to the last snapshot
        try:
            content = checkpoints.read(path)
        except UserError as error:
            faults.append(f"Ignored: {error}")
            continue
        # Published files, put there for sampling, lack a training's state.
        if path == place.resume_point or {"step", "position", "config"} <= content.keys():
            states.append((checkpoints.read_count(content, "step", path, 0), path, content))
            if path != place.resume_point:
                break  # older snapshots are of earlier steps
        else:
            foreign.append(path)
    if states:
        _, path, content = max(states, key=lambda state: state[0])
        given = {"--restore": restore, "config.model.pretrained": pretrained}
        notes = [f"{n} {each} is ignored: the run has begun." for n, each in given.items() if each]
        return Start(path, content, True, (*faults, *notes), tuple(foreign))
    if faults:
        raise UserError(
            f"{faults[0].removeprefix('Ignored: ')} {place.root} holds no other state of its run. "
            "To begin another run, move the file away, or train in another --workdir."
        )
    if restore is None and pretrained is not None:
        restore = pipelines.local(pretrained)
    content = {} if restore is None else checkpoints.read(restore)
    return Start(restore, content, foreign=tuple(foreign))
