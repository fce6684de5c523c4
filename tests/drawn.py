"""Samples as run_lib_sampling.py leaves them, made up in no time."""

import numpy as np

from storage.files import save_npz, to_json
from utils import shares

META = {
    "checkpoint_step": 70,
    "weights": "0123456789abcdef",
    "sampling": {"method": "pc", "snr": 0.16},
    "sde": "VESDE()",
    "seed": 42,
}


def draw(folder, parts, total, size, shape=(8, 8, 3), **changes):
    """`total` random samples in rounds of `size`, in `parts` folders; returns them in order."""
    every = []
    for part, count in enumerate(shares(total, parts)):
        for index, start in enumerate(range(0, count, size)):
            rng = np.random.default_rng([part, index])
            images = rng.integers(0, 256, (min(size, count - start), *shape), dtype=np.uint8)
            meta = to_json({**META, **changes, "stream": part, "round": index})
            path = folder / str(part) / f"samples_{index}.npz"
            save_npz(path, samples=images, nfe=20 * (part + 1), meta=meta)
            every.append(images)
    return np.concatenate(every)
