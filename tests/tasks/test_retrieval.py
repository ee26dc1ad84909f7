"""Recall and zero-shot accuracy against loops."""

import numpy as np
import pytest

from softmoe.tasks import retrieval

RNG = np.random.default_rng(0)
# Texts of each group; the last one is of two.
TEXTS = [[0, 1, 6], [2], [3, 4], [5, 6]]


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def vectors():
  labels = RNG.integers(0, 4, 40)
  return unit(RNG.normal(size=(40, 3))), labels, unit(RNG.normal(size=(7, 3)))


def belongs():
  return np.array([[t in group for t in range(7)] for group in TEXTS])


def recall(query, items, right, k):
  """Tells whether one of the k nearest items is right, by sorting."""
  nearest = sorted(range(len(items)), key=lambda i: -(query @ items[i]))
  return any(right(i) for i in nearest[:k])


@pytest.mark.parametrize('pairs', [2**24, 50])
def test_recalls(vectors, monkeypatch, pairs):
  monkeypatch.setattr(retrieval, '_PAIRS', pairs)  # all at once, or in parts
  images, labels, texts = vectors
  found = retrieval.recalls(images, labels, texts, belongs())
  of = lambda hits: pytest.approx(np.mean(hits))
  for k in (1, 10):
    assert found[f'image_to_text@{k}'] == of(
      [
        recall(image, texts, lambda t, g=g: t in TEXTS[g], k)
        for image, g in zip(images, labels, strict=True)
      ]
    )
    assert found[f'text_to_image@{k}'] == of(
      [
        recall(text, images, lambda i, t=t: t in TEXTS[labels[i]], k)
        for t, text in enumerate(texts)
      ]
    )
  assert 0 < found['text_to_image@1'] < found['text_to_image@10'] <= 1


@pytest.mark.parametrize('value', [1.0, np.nan])
def test_what_tells_nothing_apart_finds_nothing(vectors, value):
  _, labels, _ = vectors
  images, texts = np.full((40, 3), value), np.full((7, 3), value)
  found = retrieval.recalls(images, labels, texts, belongs())
  assert found['image_to_text@1'] == found['text_to_image@10'] == 0
  assert retrieval.accuracy(images, labels, texts[:4]) == 0


def test_zero_shot_classes_are_means_of_directions(vectors):
  images, labels, texts = vectors
  classes = retrieval.means(texts, TEXTS)
  for found, group in zip(classes, TEXTS, strict=True):
    np.testing.assert_allclose(found, unit(sum(texts[t] for t in group)))
  right = [
    max(range(4), key=lambda g: image @ classes[g]) == label
    for image, label in zip(images, labels, strict=True)
  ]
  assert retrieval.accuracy(images, labels, classes) == np.mean(right)
