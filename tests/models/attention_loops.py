"""Attention by NumPy, one query after another, in float64."""

import numpy as np


def turn(x, position):
  """Returns one head's vector, each pair (i, i + k/2) turned as one number."""
  half = len(x) // 2
  pairs = x[:half] + 1j * x[half:]
  pairs = pairs * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
  return np.concatenate([pairs.real, pairs.imag])


def attend(query, key, value, sees):
  """Returns (q, k) of one head; `sees(i, j)` tells what query i may read."""
  result = np.zeros((len(query), value.shape[1]))
  for i, q in enumerate(query):
    read = [j for j in range(len(key)) if sees(i, j)]
    if read:
      logits = np.array([q @ key[j] for j in read]) / np.sqrt(len(q))
      weights = np.exp(logits - logits.max())
      result[i] = weights @ value[read] / weights.sum()
  return result


def layer(params, x, heads, sees, positions=None):
  """Returns what an example's tokens (n, d) read from each other."""
  linear = lambda p, x: x @ p['kernel'] + p['bias']
  split = lambda name: np.split(linear(params[name], x), heads, axis=-1)
  outputs = []
  for q, k, v in zip(*map(split, ('query', 'key', 'value')), strict=True):
    if positions is not None:
      q = np.stack([turn(*pair) for pair in zip(q, positions, strict=True)])
      k = np.stack([turn(*pair) for pair in zip(k, positions, strict=True)])
    outputs.append(attend(q, k, v, sees))
  return linear(params['out'], np.concatenate(outputs, axis=-1))
