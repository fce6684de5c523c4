"""What a sampler shows of its progress."""

import dataclasses

from tqdm import tqdm


@dataclasses.dataclass
class RoundProgress:
    """A sampler's callback: moves `bar` from `done` on by up to `count` samples, whole ones.

    A sampler of so many `steps` calls it after each. One whose steps are not known calls it with
    the share of the time travelled, the time reached and the evaluations so far, which are shown.
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
