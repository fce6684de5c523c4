"""Fast samplers: tens of evaluations of the score where predictor and corrector take thousands.

`denoisers` turns a score under any SDE into a denoiser D(x, σ), `grids` chooses the noise levels,
`deterministic` and `stochastic` hold the samplers, `fast` names them, `noise` gives every image a
seed of its own.
"""
