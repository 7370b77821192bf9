r"""Win rates from preferences, plain and length-controlled.

A preference :math:`y` is 1 if the model's output is preferred, 0 if the reference's is, 0.5 if
neither is. The plain win rate is their mean. Judges like long outputs, so the length-controlled one
is what it would be if both outputs had the same length, after Dubois et al. 2024
(arXiv:2404.04475): a logistic regression

.. math:: P(y = 1) = \sigma(\beta_0 + \beta_1 \tanh(d / s)), \quad d = l_{model} - l_{reference},

with :math:`s` the standard deviation of the :math:`d`; the win rate at :math:`d = 0` is
:math:`\sigma(\beta_0)`.

Unlike the paper we leave out the difficulty of each instruction, which is fitted on the judgments
of many models; :math:`d` is whatever length the caller measures (`trl-r1zero judge`: characters);
and the weak penalty on the coefficients is `RIDGE`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from .metrics import grouped, mean, standard_error

# RIDGE / 2 times the squared coefficients is added to the loss summed over all preferences. The fit
# stays finite where length tells wins from losses without fail; otherwise it weighs no more than
# 1/25 of a preference (whose information about the intercept is at most 1/4).
RIDGE = 0.01


class Estimate(NamedTuple):
    """A number and its standard error, NaN where it is not known."""

    value: float
    stderr: float


def win_rate(preferences: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """The mean preference, with its standard error over groups.

    Args:
        preferences: Each in [0, 1].
        groups: What each preference belongs to, such as the number of its instruction: preferences
            of one group are not independent and count as one, their mean. None: each is alone.
    """
    means = [float(np.mean(group)) for group in _grouped(preferences, groups)]
    return Estimate(mean(means), standard_error(means))


def length_controlled_win_rate(
    preferences: Sequence[float],
    length_differences: Sequence[float],
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    r"""The win rate at equal lengths; see the top of this module.

    The standard error is the sandwich's over the G groups, by the delta method:

    .. math:: \sigma'(\beta_0) \sqrt{G / (G - 1) \, [H^{-1} (\sum_g u_g u_g^T) H^{-1}]_{00}}

    with :math:`H` the Hessian and :math:`u_g` the gradient of group :math:`g`. It holds for
    preferences between 0 and 1 too; where all lengths are equal it is that of `win_rate`.

    Args:
        preferences: Each in [0, 1]; the fit takes any share as a soft label.
        length_differences: Of the model's output over the reference's, one for each preference. If
            all are equal the plain win rate comes out (up to the penalty).
        groups: As in `win_rate`.

    Raises:
        ValueError: The columns are not of one length, are empty, or a value is outside its range.
    """
    y, d = np.asarray(preferences, dtype=float), np.asarray(length_differences, dtype=float)
    if y.shape != d.shape or y.ndim != 1 or not len(y):
        raise ValueError(
            f"got {y.size} preferences and {d.size} length differences; give one of each, at least "
            "one"
        )
    if not (np.isfinite(d).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("preferences must be in [0, 1] and length differences finite")
    # (N, 2): intercept, length. Of one preference, or of equal lengths, there is no deviation.
    scale = d.std(ddof=1) if len(d) > 1 and np.ptp(d) > 0 else math.inf
    x = np.stack([np.ones_like(d), np.tanh(d / scale)], axis=1)
    beta = _fit(x, y)
    p = expit(x @ beta)
    value = float(expit(beta[0]))
    sums = np.stack([group.sum(axis=0) for group in _grouped(x * (y - p)[:, None], groups)])
    num_groups = len(sums)
    if num_groups < 2:
        return Estimate(value, math.nan)
    inverse = np.linalg.inv(_hessian(x, p))
    variance = (inverse @ (sums.T @ sums) @ inverse)[0, 0] * num_groups / (num_groups - 1)
    return Estimate(value, value * (1 - value) * math.sqrt(max(variance, 0.0)))


def _fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients of least penalised loss, which is strictly convex."""

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ beta
        value = np.sum(np.logaddexp(0, z) - y * z) + RIDGE / 2 * beta @ beta
        return float(value), x.T @ (expit(z) - y) + RIDGE * beta

    def hessian(beta: np.ndarray) -> np.ndarray:
        return _hessian(x, expit(x @ beta))

    start, options = np.zeros(x.shape[1]), {"gtol": 1e-10}
    return minimize(loss, start, jac=True, hess=hessian, method="trust-exact", options=options).x


def _hessian(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    return (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])


def _grouped(values: Any, groups: Sequence[Hashable] | None) -> list[np.ndarray]:
    keys = range(len(values)) if groups is None else groups
    return [np.array(group) for group in grouped(zip(keys, values, strict=True)).values()]
