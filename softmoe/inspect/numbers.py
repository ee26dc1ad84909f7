"""From routings to numbers: load, drops, weights, experts a token, similarity.

Several are those of the paper's model inspection: Puigcerver et al., 2023,
https://arxiv.org/abs/2308.00951.

Axes: `b` examples, `m` tokens, `e` experts, `k` slots, or experts where there
are none.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from softmoe.inspect.observed import Layer, Observed

QUANTILES = np.linspace(0, 1, 21)
PARTS = (0.5, 0.9)  # of a slot
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)  # of the experts that are dropped
_DRAWS = 3  # of which experts they are


def of_layer(
  layer: Layer, labels: Int[np.ndarray, ' b'] | None
) -> dict[str, Any]:
  """Returns all numbers of a layer, as JSON takes them."""
  experts = experts_a_token(layer)
  found = {
    'name': layer.name,
    'router': layer.router,
    'experts': layer.num_experts,
    'load': load(layer),
    'dropped': dropped(layer),
    'left_out': float((experts[layer.real] == 0).mean()),
    'experts_a_token': float(experts[layer.real].mean()),
    'by_position': _mean(experts, layer.real, axis=0),
    'by_class': {} if labels is None else by_class(layer, experts, labels),
    'cumulative': cumulative(layer),
    'quantiles': np.quantile(layer.give[layer.real], QUANTILES),
    'contribution': np.quantile(contribution(layer), QUANTILES),
    'tokens_a_slot': tokens_a_slot(layer),
    'similarity': similarity(layer),
  }
  return {name: plain(value) for name, value in found.items()}


def load(layer: Layer) -> Float[np.ndarray, ' e']:
  """Returns how much each expert has of a token, on average.

  Of slots it is the weight of their outputs, which adds up to 1; of a sparse
  router the part of the tokens that the expert keeps.
  """
  if layer.granted is not None:
    return layer.granted[layer.real].mean(axis=0)
  weights = layer.give[layer.real].mean(axis=0)
  return weights.reshape(layer.num_experts, -1).sum(axis=1)


def dropped(layer: Layer) -> Float[np.ndarray, ' e'] | None:
  """Returns which part of the tokens that want an expert it does not keep.

  There is none where it is the experts that choose, among all tokens.
  """
  if layer.wanted is None or layer.granted is None:
    return None
  if layer.wanted[layer.real].all():
    return None
  wanted = layer.wanted[layer.real].sum(axis=0)
  return 1 - layer.granted[layer.real].sum(axis=0) / np.maximum(wanted, 1)


def experts_a_token(layer: Layer) -> Float[np.ndarray, 'b m']:
  """Returns how many experts work for each token.

  Of slots, where all of them do, it is the number of equal shares that has the
  entropy of the experts' weights: exp(entropy).
  """
  if layer.granted is not None:
    return layer.granted.sum(axis=-1).astype(np.float64)
  weights = layer.give.reshape(*layer.real.shape, layer.num_experts, -1)
  weights = weights.sum(axis=-1, dtype=np.float64)
  total = weights.sum(axis=-1, keepdims=True)
  shares = weights / np.where(total > 0, total, 1)
  logs = np.log(np.where(shares > 0, shares, 1))
  # A token that gets nothing, as in a first segment, has no expert.
  return np.where(total[..., 0] > 0, np.exp(-(shares * logs).sum(axis=-1)), 0)


def by_class(
  layer: Layer,
  experts: Float[np.ndarray, 'b m'],
  labels: Int[np.ndarray, ' b'],
) -> dict[int, dict[str, float]]:
  """Returns experts a token and the number of examples, by class."""
  found = {}
  for label in np.unique(labels):
    those = labels == label
    mean = float(experts[those][layer.real[those]].mean())
    found[int(label)] = {'experts': mean, 'examples': int(those.sum())}
  return found


def cumulative(layer: Layer) -> Float[np.ndarray, ' k']:
  """Returns which part of a token's weight its 1, 2, ... k largest have.

  It is a mean over the tokens that have any.
  """
  weights = -np.sort(-layer.give[layer.real].astype(np.float64), axis=-1)
  total = weights.sum(axis=-1)
  weights = weights[total > 0] / total[total > 0][:, None]
  return weights.cumsum(axis=-1).sum(axis=0) / max(len(weights), 1)


def contribution(layer: Layer) -> Float[np.ndarray, ' n']:
  """Returns what each real token gives in all: its weights in slots, summed.

  Were all tokens alike, it would be slots / tokens. Of a sparse router it is
  what the gates of a token's experts sum to.
  """
  return layer.take[layer.real].sum(axis=-1)


def tokens_a_slot(layer: Layer) -> dict[str, np.ndarray] | None:
  """Returns of how many tokens a part of each slot is made, the largest first.

  It counts in each example, or piece of one, and is a mean over those whose
  slot is not empty. A sparse router has none, nor has one whose slots hold
  tokens of several examples.
  """
  if layer.granted is not None or layer.piece is None:
    return None
  so_far = -np.sort(-_pieces(layer.take, layer.piece), axis=1).cumsum(axis=1)
  whole = so_far[:, -1:]
  count = lambda part: (so_far < part * whole).sum(axis=1) + 1
  held = whole[:, 0] > 0
  return {str(part): _mean(count(part), held, axis=0) for part in PARTS}


def _pieces(
  take: Float[np.ndarray, 'b m k'], size: int
) -> Float[np.ndarray, 'p t k']:
  """Returns pieces of `size` tokens; what fills up the last is in no slot."""
  b, m, k = take.shape
  filled = np.pad(take, ((0, 0), (0, -m % size), (0, 0)))
  return filled.reshape(-1, size, k)


def similarity(layer: Layer) -> dict[str, Any] | None:
  """Returns the correlation of each two slots' parameters, and its means.

  `within` is over pairs of slots of one expert, `between` over the others.
  """
  if layer.slots is None or layer.slots.shape[1] < 2:
    return None
  centred = layer.slots - layer.slots.mean(axis=0)
  norms = np.linalg.norm(centred, axis=0)
  centred = centred / np.where(norms > 0, norms, 1)
  matrix = centred.T @ centred
  owner = np.arange(len(matrix)) * layer.num_experts // len(matrix)
  same = owner[:, None] == owner
  pairs = ~np.eye(len(matrix), dtype=bool)
  means = {
    name: matrix[those].mean() if those.any() else None
    for name, those in (('within', same & pairs), ('between', ~same))
  }
  return {'matrix': matrix} | means


def dropping(observed: Observed) -> list[dict[str, Any]]:
  """Returns the metrics with a share of each layer's experts dropped.

  Which ones is drawn for each layer anew; there are three draws a share.
  """
  rng, found = np.random.default_rng(0), []
  for share in SHARES:
    draws = [
      observed.without(
        [_keep(layer.num_experts, share, rng) for layer in observed.layers]
      )
      for _ in range(_DRAWS if share else 1)
    ]
    means = {name: np.mean([d[name] for d in draws]) for name in draws[0]}
    found.append(plain({'share': share, 'draws': draws} | means))
  return found


def _keep(
  num_experts: int, share: float, rng: np.random.Generator
) -> Float[np.ndarray, ' e']:
  keep = np.ones(num_experts, np.float32)
  count = round(share * num_experts)
  keep[rng.choice(num_experts, count, replace=False)] = 0
  return keep


def _mean(values: np.ndarray, real: np.ndarray, axis: int) -> np.ndarray:
  count = np.maximum(real.sum(axis=axis), 1)
  return np.where(real, values, 0).sum(axis=axis) / count


def plain(value: Any) -> Any:
  """Returns arrays as lists, of numbers with five digits."""
  if isinstance(value, dict):
    return {key: plain(one) for key, one in value.items()}
  if isinstance(value, np.ndarray | list | tuple):
    return [plain(one) for one in value]
  if isinstance(value, float | np.floating):
    return float(f'{value:.5g}') if np.isfinite(value) else None
  return value.item() if isinstance(value, np.generic) else value
