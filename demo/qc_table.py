"""Print NLL, Asym and NAsym of several workdirs side by side.

python demo/qc_table.py WORKDIR...
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from storage.workdir import Workdir


def main(workdirs):
    print("| model | NLL (bits/dim) | Asym | NAsym |")
    print("|---|---|---|---|")
    for workdir in workdirs:
        metrics = Workdir(workdir).recorded()
        nll, asym = metrics["nll"], metrics["asym"]
        print(
            f"| {workdir} | {nll['bits_per_dim']:.4f} ± {nll['standard_error']:.4f} | "
            f"{asym['asym']:.4g} | {asym['nasym']:.4g} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
