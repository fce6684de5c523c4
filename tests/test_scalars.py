"""Scalars: what is written is what TensorBoard reads."""

import report
from storage.scalars import ScalarWriter


def test_what_is_after_the_resume_point_is_written_anew(tmp_path):
    for number, (purge_step, values) in enumerate([(1, (1.0, 2.0, 3.0)), (3, (9.0,))]):
        writer = ScalarWriter(tmp_path, purge_step)
        for step, value in enumerate(values, start=purge_step):
            writer.add_scalar("train/loss", value, step)
        writer.close()
        # TensorBoard reads files in the order of their names, which begin with the time.
        (written,) = tmp_path.glob("events.out.tfevents.*")
        written.rename(tmp_path / f"{number}.tfevents")
    steps, values = report.read_curves(tmp_path)["train/loss"]
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [1.0, 2.0, 9.0]
