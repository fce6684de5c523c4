"""The published name of `run_lib_evaluation.py` for FID, IS, precision and recall of samples."""

import run_lib_evaluation

if __name__ == "__main__":
    run_lib_evaluation.define_flags()
    run_lib_evaluation.launch()
