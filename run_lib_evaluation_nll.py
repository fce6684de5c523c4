"""The published name of `run_lib_evaluation.py --metric nll`."""

import run_lib_evaluation

if __name__ == "__main__":
    run_lib_evaluation.define_flags(metric="nll")
    run_lib_evaluation.launch()
