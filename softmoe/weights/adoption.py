"""How the tree that another model left becomes this model's.

It is the tree of its parameters, or of what its optimizer remembers of each.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import traverse_util

from softmoe import experiment as experiment_lib
from softmoe.config import UpcycleConfig
from softmoe.errors import UserError
from softmoe.weights import source as source_lib
from softmoe.weights import upcycle

Tree = source_lib.Tree


class Adoption(NamedTuple):
  """The way of a tree, in steps; all but `read` are for `jax.jit`.

  Attributes:
    experiment: that starts.
    source: where the tree comes from.
    fresh: returns this model's tree at creation.
    upcycling: how MLPs become experts; None: as plain copies and parts.
  """

  experiment: experiment_lib.Experiment
  source: source_lib.Source
  fresh: Callable[[], Tree]
  upcycling: UpcycleConfig | None

  def exchange(self, saved: Tree) -> Tree:
    """Returns it without `scan`, with experts where MLPs are to become some.

    Raises:
      UserError: there are none, or the sizes do not fit.
    """
    found, config = self.source.exchange(saved), self.experiment.config
    if not config.upcycle.enabled:
      return found
    fresh = self._fresh()
    if not upcycle.layers(found, fresh):
      expected = (
        'False: no block is an MLP in config.init and an MoE layer here'
      )
      raise UserError('config.upcycle.enabled', True, expected)
    key = jax.random.key(config.seed)
    return upcycle.upcycle(found, fresh, self.upcycling, key)

  def adopt(self, saved: Tree) -> Tree:
    """Returns all of this model's tree: what there is, fitted, or fresh."""
    fresh, task = self._fresh(), self.experiment.task
    found = _filled(self.exchange(saved), fresh)
    return task.adopt(found, self.source.task, fresh)

  def read(self, saved: Tree, wanted: Tree) -> Tree:
    """Returns the tree as it is wanted, each part where it belongs.

    Args:
      saved: as it was read; it is donated.
      wanted: shapes, types and places.
    """
    take = self.experiment.task.take
    place = lambda x, like: jax.reshard(x.astype(like.dtype), like.sharding)
    finish = lambda saved: jax.tree.map(place, take(self.adopt(saved)), wanted)
    with warnings.catch_warnings():
      # What changes its shape on the way cannot be donated.
      warnings.filterwarnings('ignore', 'Some donated buffers')
      return jax.jit(finish, donate_argnums=0)(saved)

  def _fresh(self) -> Tree:
    return self.experiment.task.exchange(self.fresh())


def _filled(found: Tree, fresh: Tree) -> Tree:
  """Returns the model's tree: what was found, else what is fresh."""
  found, fresh = map(source_lib.flat, (found, fresh))
  return traverse_util.unflatten_dict(
    {path: found.get(path, leaf) for path, leaf in fresh.items()}
  )
