"""The cost of a model of any depth, from one block of each kind."""

import dataclasses
import functools
from typing import Any

from softmoe.costs import flops


def forward(config: Any) -> flops.Cost:
  """Returns what `flops.forward` does, in seconds for a model of any size.

  No block depends on how many there are, so that their costs add up. All that
  is traced is the model with one dense block, with two, and with one MoE block.
  What was traced is kept: models that share a kind of block share its cost.
  It agrees to 1e-4: a dense block is traced with one example, whose elementwise
  work XLA counts a little differently from that of each of several.

  Args:
    config: of an experiment whose `model` is one stack of blocks.
  """
  moe = config.model.moe
  one, two = (_shallow(config, n, ()) for n in (1, 2))
  dense = two.fewest - one.fewest
  start, num_moe = one.fewest - dense, len(moe.blocks)
  rest = start + (config.model.depth - num_moe) * dense
  if not num_moe:
    return dataclasses.replace(one, fewest=rest, most=rest)
  mixed = _shallow(config, 1, (0,))
  return dataclasses.replace(
    mixed,
    fewest=rest + num_moe * (mixed.fewest - start),
    most=rest + num_moe * (mixed.most - start),
    active=mixed.active * num_moe,
  )


def _shallow(config: Any, depth: int, blocks: tuple[int, ...]) -> flops.Cost:
  moe = config.model.moe
  moe = dataclasses.replace(moe, blocks=blocks) if blocks else type(moe)()
  model = dataclasses.replace(config.model, depth=depth, moe=moe)
  return _traced(dataclasses.replace(config, model=model))


_traced = functools.cache(flops.forward)
