"""What docs/extending.md adds in a configuration file is known to all commands."""

import json
import re

import numpy as np
import pytest
import tiny
from commands import brief_features, start

PAGE = tiny.ROOT / "docs/extending.md"


@pytest.mark.slow
def test_a_configuration_file_adds_to_every_table(tmp_path):
    blocks = re.findall(r"```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text("\n\n".join(reversed(blocks)))
    changes = dict(tiny.changes(tmp_path / "cache"), **{"training.n_iters": 4, "sampling.steps": 3})
    extra = [f"--config.{name}={value}" for name, value in changes.items()]

    def run(line):
        script, *rest = line.split()
        line = f"{script} --config mine.py --workdir W {' '.join(rest)}"
        done = start(line, tmp_path, extra, brief_features).wait(300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("main.py")
    run("run_lib_sampling.py")
    printed = run("run_lib_evaluation_fidis.py --encode --encode_dataset --measure mean_distance")
    numbers = json.loads((tmp_path / "results/W/metrics.json").read_text())
    (entry,) = [value for name, value in numbers.items() if name.startswith("mean_distance")]
    assert np.isfinite(entry["distance"])
    samples = entry["settings"]["samples"]
    assert samples["sampling"]["method"] == "my_euler"
    assert f"{entry['distance']:.6g}" in printed
