"""Softmax regression: classification into several classes by a linear model."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from asyncsim.problems.classification import Classification


class Softmax(Classification):
    """f(x) = (1/n) Σᵢ [log Σ_c exp(w_cᵀ aᵢ) − w_{bᵢ}ᵀ aᵢ] + (l2/2) ‖x‖², the multiclass logistic loss.

    aᵢ holds the features of sample i and a last entry 1 for the bias, bᵢ is its class. x holds w₁, w₂, … one after
    another, so d = classes · (features + 1). `dataset` is "digits" or "breast_cancer" (both come with scikit-learn)
    or a file: LIBSVM lines (.svm, .svmlight, .libsvm, .txt), .npz with X and y, or .csv whose column `target` (the
    last if left out) names the class. Every feature is divided by its largest absolute value, unless `scale` is
    false. `batch` samples, drawn with replacement at the address of the gradient, make a stochastic gradient; all
    samples do where it is left out. `l2` regularises the whole of x, the bias included, so f is l2-strongly convex.

    The Hessian of log Σ exp is at most ½ I (D. Böhning, "Multinomial logistic regression algorithm", Annals of the
    Institute of Statistical Mathematics 44, 1992), so L = ½ λ_max((1/n) Σ aᵢ aᵢᵀ) + l2. x* and f* are known where
    l2 > 0, computed when first asked for.

    >>> problem = Softmax(dataset="digits", batch=32)
    >>> problem.dimension
    650
    >>> bool(np.isclose(problem.value(np.zeros(650)), np.log(10)))
    True
    """

    kind: Literal["softmax"] = "softmax"

    loss_curvature: ClassVar[float] = 0.5

    @property
    def outputs(self) -> int:
        """One score per class."""
        return self.class_count

    @property
    def class_targets(self) -> np.ndarray:
        """Unit vectors."""
        return np.eye(self.class_count)[self.classes]

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return log Σ_c exp(z_c) − z_b of every sample."""
        largest = scores.max(axis=-2)
        total = np.exp(scores - largest[..., None, :]).sum(axis=-2)
        return largest + np.log(total) - (scores * targets).sum(axis=-2)

    def slopes(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, less the unit vector of the right one."""
        return _probabilities(scores) - targets

    def bends(self, scores: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Return (diag p − p pᵀ) times the change."""
        share = _probabilities(scores)
        moved = share * change
        return moved - share * moved.sum(axis=-2, keepdims=True)

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return the class with the largest score."""
        return scores.argmax(axis=-2)


def _probabilities(scores: np.ndarray) -> np.ndarray:
    share = np.exp(scores - scores.max(axis=-2, keepdims=True))
    share /= share.sum(axis=-2, keepdims=True)
    return share
