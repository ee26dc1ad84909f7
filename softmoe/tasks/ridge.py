"""Linear classifiers in closed form: ridge regression on fixed features.

Axes: `n` examples, `d` features, `k` eigenvalues, `c` classes, `r` strengths
of the regularisation.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

L2 = 2.0 ** np.arange(-10, 20)  # strengths that are tried
_BIAS = 100.0  # a feature so large that what it adds is hardly regularised
_ROWS = 4096  # examples that are classified at once, which bounds the memory


class Ridge(NamedTuple):
  """The classifiers of all strengths, as the eigenvectors that they share.

  That of strength l2 has the weights `basis / (eigenvalues + l2) @ targets`.

  Attributes:
    mean: of each feature over the examples that were fitted.
    std: deviation of the same, plus 1e-5.
    basis: from features, and the constant one, to directions.
    eigenvalues: of each direction.
    targets: what the examples say along each direction.
  """

  mean: Float[np.ndarray, ' d']
  std: Float[np.ndarray, ' d']
  basis: Float[np.ndarray, 'd+1 k']
  eigenvalues: Float[np.ndarray, ' k']
  targets: Float[np.ndarray, 'k c']

  def classify(
    self, features: Float[np.ndarray, 'n d'], l2: float
  ) -> Int[np.ndarray, ' n']:
    """Returns the class of each example, at one strength."""
    shares = self.targets / (self.eigenvalues + l2)[:, None]
    return np.concatenate(
      [
        np.argmax(self._directions(features[i : i + _ROWS]) @ shares, axis=1)
        for i in range(0, len(features), _ROWS)
      ]
    )

  def accuracies(
    self, features: Float[np.ndarray, 'n d'], labels: Int[np.ndarray, ' n']
  ) -> Float[np.ndarray, ' r']:
    """Returns the share of right classes at each strength of `L2`."""
    return np.stack(
      [np.mean(self.classify(features, l2) == labels) for l2 in L2]
    )

  def _directions(self, features: np.ndarray) -> np.ndarray:
    return _with_bias((features - self.mean) / self.std) @ self.basis


def fit(
  features: Float[np.ndarray, 'n d'],
  labels: Int[np.ndarray, ' n'],
  num_classes: int,
) -> Ridge:
  """Fits one target per class, 1 for its examples and -1 for the others.

  Features are whitened by their mean and deviation. It minimises
  |X W - Y|^2 + l2 |W|^2 for every l2 at once, by the eigenvalues of X^T X or of
  X X^T, whichever is smaller, in float64: the constant feature makes one of
  them so large that float32 would lose the small ones.
  """
  features = features.astype(np.float64)
  mean, std = features.mean(axis=0), features.std(axis=0) + 1e-5
  x = _with_bias((features - mean) / std)
  y = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1
  if x.shape[0] >= x.shape[1]:
    eigenvalues, basis = np.linalg.eigh(x.T @ x)
    targets = basis.T @ (x.T @ y)
  else:
    eigenvalues, vectors = np.linalg.eigh(x @ x.T)
    basis, targets = x.T @ vectors, vectors.T @ y
  # Rounding may leave those that are 0 just below it.
  return Ridge(mean, std, basis, np.maximum(eigenvalues, 0), targets)


def _with_bias(x: np.ndarray) -> np.ndarray:
  return np.concatenate([x, np.full((len(x), 1), _BIAS)], axis=1)
