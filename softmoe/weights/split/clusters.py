"""Hidden units that are active together, in clusters of one size.

Axes: `f` hidden units, `n` tokens, `e` clusters, `u` units of a cluster.
"""

import numpy as np
from jaxtyping import Float, Int
from sklearn import cluster

_ROUNDS = 20  # in which units move to the nearest centre that has room


def balanced(
  activity: Float[np.ndarray, 'n f'], num_clusters: int, seed: int
) -> Int[np.ndarray, 'e u']:
  """Returns the units of each cluster, in ascending order.

  K-means of the units, whose distance falls with the correlation of their
  activities over tokens, and in which clusters have room for as many each.

  Args:
    activity: how much each unit says of each token.
    num_clusters: a divisor of the units.
    seed: of where the centres start.
  """
  profiles = _standard(activity)
  centres, _ = cluster.kmeans_plusplus(
    profiles, num_clusters, random_state=seed
  )
  best, least = None, np.inf
  for _ in range(_ROUNDS):
    distance = _squared(profiles, centres)
    units = _with_room(distance)
    total = sum(distance[u, e].sum() for e, u in enumerate(units))
    if total < least:
      best, least = units, total
    centres = profiles[units].mean(axis=1)
  assert best is not None
  return best


def _standard(activity: Float[np.ndarray, 'n f']) -> Float[np.ndarray, 'f n']:
  """Returns each unit's activity with mean 0 and length 1."""
  profiles = (activity - activity.mean(axis=0)).T
  length = np.linalg.norm(profiles, axis=1, keepdims=True)
  return profiles / np.maximum(length, 1e-12)  # 0 for a unit that never varies


def _squared(
  profiles: Float[np.ndarray, 'f n'], centres: Float[np.ndarray, 'e n']
) -> Float[np.ndarray, 'f e']:
  norms = [np.sum(v**2, axis=1) for v in (profiles, centres)]
  return norms[0][:, None] + norms[1] - 2 * profiles @ centres.T


def _with_room(distance: Float[np.ndarray, 'f e']) -> Int[np.ndarray, 'e u']:
  """Returns the units of each cluster; who would lose most chooses first."""
  num_units, num_clusters = distance.shape
  room = np.full(num_clusters, num_units // num_clusters)
  units: list[list[int]] = [[] for _ in range(num_clusters)]
  ranked = np.sort(distance, axis=1)
  loss = ranked[:, -1] - ranked[:, 0]
  for unit in np.argsort(-loss, kind='stable'):
    nearest = np.argmin(np.where(room > 0, distance[unit], np.inf))
    units[nearest].append(unit)
    room[nearest] -= 1
  return np.sort(units, axis=1)
