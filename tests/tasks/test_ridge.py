"""Closed-form ridge regression against plain least squares."""

import numpy as np
import pytest
from sklearn import linear_model

from softmoe.tasks import ridge

CLASSES = 3


def draw(size, width, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(size) % CLASSES)
  centers = np.random.default_rng(7).normal(size=(CLASSES, width))
  features = 5 + 3 * (centers[labels] + rng.normal(size=(size, width)))
  return features.astype(np.float32), labels


def least_squares(train, labels, test, l2):
  """Returns scores by `lstsq`: rows of sqrt(l2) are its regularisation."""
  train, test = train.astype(np.float64), test.astype(np.float64)
  mean, std = train.mean(0), train.std(0) + 1e-5
  x, z = (
    np.hstack([(a - mean) / std, np.full((len(a), 1), 100.0)])
    for a in (train, test)
  )
  y = np.where(np.eye(CLASSES)[labels] > 0, 1.0, -1.0)
  size = x.shape[1]
  rows = np.vstack([x, np.sqrt(l2) * np.eye(size)])
  weights = np.linalg.lstsq(rows, np.vstack([y, np.zeros((size, CLASSES))]))[0]
  sklearn = linear_model.Ridge(l2, fit_intercept=False).fit(x, y)
  np.testing.assert_allclose(sklearn.coef_.T, weights, atol=1e-7)
  return z @ weights


@pytest.mark.parametrize(('size', 'width'), [(40, 6), (12, 30), (3, 5)])
@pytest.mark.parametrize('l2', [2.0**-10, 1.0, 2.0**19])
def test_scores_are_those_of_least_squares(size, width, l2):
  """With more examples than features, and with fewer."""
  train, labels = draw(size, width)
  test, _ = draw(50, width, seed=1)
  fitted = ridge.fit(train, labels, CLASSES)
  expected = least_squares(train, labels, test, l2)
  shares = fitted.targets / (fitted.eigenvalues + l2)[:, None]
  scores = fitted._directions(test) @ shares
  np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)
  np.testing.assert_array_equal(
    fitted.classify(test, l2), np.argmax(expected, axis=1)
  )


def test_accuracies_are_of_every_strength(monkeypatch):
  monkeypatch.setattr(ridge, '_ROWS', 7)  # parts, the last one shorter
  train, labels = draw(12, 30)
  test, truth = draw(50, 30, seed=1)
  fitted = ridge.fit(train, labels, CLASSES)
  right = [
    np.mean(least_squares(train, labels, test, l2).argmax(1) == truth)
    for l2 in ridge.L2
  ]
  np.testing.assert_array_equal(fitted.accuracies(test, truth), right)
  assert (ridge.L2[0], ridge.L2[-1], len(right)) == (2.0**-10, 2.0**19, 30)
  assert len(set(right)) > 1


def test_a_feature_that_never_varies_changes_nothing():
  train, labels = draw(12, 5)
  test, _ = draw(50, 5, seed=1)
  constant = lambda x: np.concatenate([x, np.full_like(x[:, :1], 3)], axis=1)
  without = ridge.fit(train, labels, CLASSES)
  fitted = ridge.fit(constant(train), labels, CLASSES)
  for l2 in ridge.L2:
    np.testing.assert_array_equal(
      fitted.classify(constant(test), l2), without.classify(test, l2)
    )
