"""What repeats other runs: the same evaluation of many checkpoints."""
