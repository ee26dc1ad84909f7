"""Quality under a capacity, as an evaluator of suites.

XMoE's authors give experts a capacity, at evaluation too (Yang et al. 2024,
https://arxiv.org/abs/2403.18926). Which tokens an expert has room for then
depends on later ones: a language model that is measured so has seen them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from softmoe import experiment as experiment_lib
from softmoe.runs import load

BRANCH = 'under a capacity, later tokens seen'


def evaluate(
  workdir: pathlib.Path,
  *,
  factors: Mapping[str, float],
  split: str,
  metrics: Sequence[str],
) -> dict[str, float]:
  """Returns metrics of a run whose experts drop what they have no room for.

  Args:
    workdir: of a finished run; one whose router is not in `factors` has none of
      these metrics.
    factors: `capacity_factor` by router.
    split: to evaluate on.
    metrics: names of those that are wanted.

  Raises:
    UserError: the data is no longer what the run read.
  """
  experiment, _, params = load.restore(workdir)
  config: Any = experiment_lib.with_fingerprint(experiment.config)
  moe = config.model.moe
  if not moe.blocks or moe.router not in factors:
    return {}
  config = limited(config, factors[moe.router])
  found = experiment_lib.build(config, training=False).evaluate(params, split)
  return {f'{BRANCH}/{name}': found[name] for name in metrics}


def limited(config: Any, factor: float) -> Any:
  """Returns the config of the same parameters under a capacity."""
  # The one of training too: the threshold router takes both or none.
  moe = dataclasses.replace(
    config.model.moe, capacity_factor=factor, eval_capacity_factor=factor
  )
  model = dataclasses.replace(config.model, moe=moe, allow_noncausal=True)
  return dataclasses.replace(config, model=model)
