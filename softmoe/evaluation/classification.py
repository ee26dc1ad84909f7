"""Loss and accuracy of a classifier over one pass of a split."""

import collections
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.data.images import batches
from softmoe.tasks import losses


def make_evaluator(
  experiment: experiment_lib.Experiment, split: str
) -> Callable[[experiment_lib.Params], dict[str, float]]:
  """Returns a function from parameters to metrics over the whole of `split`.

  The metrics are `loss` and `accuracy`, means over the examples, those of the
  MoE blocks as `moe/NAME`, and `examples`, their number. Padding counts for
  nothing, but in `moe/executed` and `moe/flops`: slots and buffers run for it.

  Raises:
    UserError: the split cannot be read; raised by the returned function.
  """
  step = jax.jit(lambda params, batch: _sums(experiment, params, batch))
  data = experiment.config.data

  def evaluate(params: experiment_lib.Params) -> dict[str, float]:
    rows = prefetch.local_rows(experiment.mesh, data.eval_batch_size)
    local = batches.eval_batches(data, split, rows=rows)
    placed = prefetch.to_devices(local, experiment.mesh, data.prefetch)
    total = collections.Counter()
    for sums in (step(params, batch) for batch in placed):
      for name, value in sums.items():
        total[name] += float(value)
    count = total.pop('examples')
    means = {name: value / count for name, value in total.items()}
    return means | {'examples': int(count)}

  return evaluate


def _sums(
  experiment: experiment_lib.Experiment,
  params: experiment_lib.Params,
  batch: dict[str, jax.Array],
) -> dict[str, Any]:
  config, mask = experiment.config, batch['mask']
  model = nnx.merge(experiment.graphdef, params)
  logits, aux = model(batch['image'], mask=mask > 0)
  labels = losses.soft_labels(batch['label'], config.data.num_classes)
  loss = losses.cross_entropy(config.loss)(logits, labels)
  correct = jnp.argmax(logits, axis=-1) == batch['label']
  count = jnp.sum(mask)
  return {
    'loss': jnp.sum(loss * mask),
    'accuracy': jnp.sum(correct * mask),
    'examples': count,
  } | {f'moe/{name}': v * count for name, v in aux['metrics'].items()}
