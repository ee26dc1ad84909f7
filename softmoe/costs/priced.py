"""MoE layers whose program costs what experts would that keep every token.

What dropless experts do follows the tokens: loops whose length no compiler
knows. Here they get buffers that hold a given share of the tokens instead; the
rest of the layer, and above all the router, stays as it is. So the cost of any
router is counted, also of a user's own, and what it says about itself is read
from what it returns.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from flax import nnx

from softmoe.moe import layer as layer_lib
from softmoe.moe import routing


class Seen(NamedTuple):
  """What a layer did.

  Attributes:
    num_experts: of the layer.
    share: of its experts that run for a token on average.
    num_tokens: of a group.
    is_dropless: whether experts keep every token that wants them.
    is_adaptive: whether tokens differ in how many experts they want.
  """

  num_experts: int
  share: float
  num_tokens: int
  is_dropless: bool
  is_adaptive: bool


class Priced(nnx.Module):
  """A router whose dropless assignments have a capacity."""

  def __init__(self, router: Any, share: float, training: bool, seen: '_List'):
    self.router, self.num_experts = router, router.num_experts
    self.across_examples = getattr(router, 'across_examples', False)
    self.group_size = getattr(router, 'group_size', 1)
    self.segment = getattr(router, 'segment', None)
    self._share, self._training, self._seen = share, training, seen

  def __call__(self, x: jax.Array, *, key: Any = None, **options: Any) -> Any:
    """Routes as the router does at evaluation, with the capacity asked for."""
    del key
    routed, aux = self.router(x, key=None, **options)
    if self._training and isinstance(routed, routing.Assignment):
      key = jax.random.key(0)
      trained: Any = routing.traced(self.router, x, key=key, **options)
      routed = dataclasses.replace(routed, capacity=trained.capacity)
    self._seen.append(self._look(routed, len(x)))
    if isinstance(routed, routing.Assignment) and routed.dropless:
      capacity = max(round(self._share * len(x)), 1)
      routed = dataclasses.replace(routed, capacity=capacity)
    return routed, aux._replace(steer={})  # no rule moves anything here

  def _look(
    self, routed: routing.Slots | routing.Assignment, num_tokens: int
  ) -> Seen:
    sparse = isinstance(routed, routing.Assignment)
    rows = min(routed.rows_per_token(), self.num_experts)
    return Seen(
      num_experts=self.num_experts,
      share=rows / self.num_experts,
      num_tokens=num_tokens,
      is_dropless=sparse and routed.dropless,
      is_adaptive=sparse and routed.dropless and routed.is_adaptive,
    )


class _List(list):
  """A list that is compared by identity, as a module's constants must be."""

  __hash__ = object.__hash__  # pyrefly: ignore
  __eq__ = object.__eq__  # pyrefly: ignore


def put_into(layer: layer_lib.MoE, share: float, training: bool) -> list[Seen]:
  """Replaces the router of a layer; returns a list that the call fills.

  Args:
    layer: of a model that is not used for anything else.
    share: of the tokens, which each dropless expert gets.
    training: whether experts have the capacity of training.
  """
  seen = _List()
  layer.router = Priced(layer.router, share, training, seen)
  return seen
