"""One MLP as a mixture of experts that computes the same.

Axes: `n` tokens, `d` width, `f` hidden units, `e` experts, `u` units of one.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Params = dict[str, Any]


class Outputs(NamedTuple):
  """What experts say of tokens, as far as a router needs it.

  Attributes:
    mean: of each expert over the tokens.
    share: of each expert in the squared deviations from these means.
  """

  mean: Float[np.ndarray, 'e d']
  share: Float[np.ndarray, 'n e']


def outputs(
  hidden: Float[np.ndarray, 'n f'],
  down: Float[np.ndarray, 'f d'],
  units: Int[np.ndarray, 'e u'],
) -> Outputs:
  """Returns what the experts that are made of these units say.

  Args:
    hidden: what each unit says of each token.
    down: the kernel behind them.
    units: of each expert.
  """
  means, squares = [], []
  for own in units:
    y = hidden[:, own] @ down[own]
    means.append(y.mean(axis=0))
    squares.append(np.sum((y - means[-1]) ** 2, axis=1))
  total = np.maximum(np.sum(squares, axis=0), 1e-30)
  return Outputs(np.stack(means), np.stack(squares, axis=1) / total[:, None])


def layer(
  mlp: Params,
  units: Int[np.ndarray, 'e u'],
  mean: Float[np.ndarray, 'e d'],
  kernel: Float[np.ndarray, 'd e'],
) -> Params:
  """Returns the parameters of an MoE layer that says what an MLP does.

  An expert returns its deviation from its mean, and what is shared is the sum
  of all means and the MLP's bias, as an MLP of one unit that is always 0. So an
  expert that does not run is replaced by its mean.

  Args:
    mlp: parameters of the MLP.
    units: of each expert.
    mean: of each expert's output.
    kernel: of the router.
  """
  up = {name: _columns(mlp[name], units) for name in mlp if name != 'down'}
  down = {'kernel': mlp['down']['kernel'][units], 'bias': -mean}
  nothing = {name: _nothing(mlp[name]) for name in up}
  constant = {
    'kernel': np.zeros_like(mlp['down']['kernel'][:1]),
    'bias': mlp['down']['bias'] + np.sum(mean, axis=0),
  }
  return {
    'router': {'kernel': kernel},
    'experts': {'stacked': up | {'down': down}},
    'shared': nothing | {'down': constant},
  }


def _columns(linear: Params, units: Int[np.ndarray, 'e u']) -> Params:
  """Returns the part of each expert, along a leading axis."""
  kernel = np.moveaxis(linear['kernel'][:, units], 0, 1)
  return {'kernel': kernel, 'bias': linear['bias'][units]}


def _nothing(linear: Params) -> Params:
  """Returns a linear map to one unit that is always 0."""
  return {name: np.zeros_like(w[..., :1]) for name, w in linear.items()}
