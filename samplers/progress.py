"""The progress bar of a sampler."""

import dataclasses

from tqdm import tqdm


@dataclasses.dataclass
class RoundProgress:
    """A sampler's callback: advances `bar` from `done` by up to `count` whole samples.

    A sampler with a known number of `steps` calls it after each step. Other samplers pass the
    fraction of the interval done, the time and the NFE, which are shown.
    """

    bar: tqdm
    done: int
    count: int
    steps: int | None
    calls: int = 0

    def __call__(
        self, share: float | None = None, time: float | None = None, nfe: int | None = None
    ) -> None:
        self.calls += 1
        if share is None:
            share = self.calls / self.steps
        else:
            self.bar.set_postfix(t=f"{time:.3g}", nfe=nfe)
        self.bar.update(self.done + int(self.count * share) - self.bar.n)
