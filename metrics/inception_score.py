"""The Inception score (Salimans et al., 2016, arXiv 1606.03498): exp E_x KL(p(y|x) ‖ p(y))."""

import numpy as np
from scipy.special import entr, log_softmax

from metrics.feature_arrays import checked, float64_chunks


def inception_score(logits: np.ndarray) -> float:
    """The Inception score of logits (N, K), over the whole set: no splits, as TF-GAN's.

    E KL(p(y|x) ‖ p(y)) = H(p(y)) − E H(p(y|x)), which needs one pass and no log of a zero.

    Raises:
        UserError: no samples, or values that are not finite.
    """
    logits = checked(logits, "logits")
    marginal, sum_p_log_p = np.zeros(logits.shape[1]), 0.0
    for chunk in float64_chunks(logits):
        log_p = log_softmax(chunk, axis=1)
        p = np.exp(log_p)
        marginal += p.sum(axis=0)
        sum_p_log_p += np.vdot(p, log_p)
    count = len(logits)
    return float(np.exp(entr(marginal / count).sum() + sum_p_log_p / count))
