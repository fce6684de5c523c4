"""Fast samplers: tens of evaluations of the score where predictor and corrector take thousands.

`denoisers` turns a score under any SDE into a denoiser D(x, σ), `grids` computes the noise levels,
`deterministic` and `stochastic` contain the samplers, `fast` is their registry, and `noise` seeds
each image.
"""
