"""What a sampler shows of its progress."""

import dataclasses

from tqdm import tqdm


@dataclasses.dataclass
class RoundProgress:
    """A sampler's callback: moves `bar` from `done` on by `count` samples in `steps` calls.

    Whole samples; with `steps` None, where the number of calls is not known, none.
    """

    bar: tqdm
    done: int
    count: int
    steps: int | None
    calls: int = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.steps:
            self.bar.update(self.done + self.count * self.calls // self.steps - self.bar.n)
