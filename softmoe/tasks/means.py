"""Metrics that are means over a split."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe.data import prefetch
from softmoe.tasks import task as task_lib

Sums = dict[str, task_lib.Mean]


def over_split(
  task: task_lib.Task, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
) -> Callable[..., dict[str, float]]:
  """Returns an evaluator: the task's loss and metrics over one pass.

  Metrics are `loss`, those of the task, those of the MoE blocks as `moe/NAME`,
  and `examples`, their number. Padding counts for nothing, but in
  `moe/executed` and `moe/flops`: slots and buffers run for it. It also takes
  `router_options`, arrays by name that are handed to every router's call.
  """
  step = jax.jit(functools.partial(_sums, task, graphdef))
  data = task.config.data

  def evaluate(
    params: task_lib.Params,
    split: str,
    router_options: dict[str, jax.Array] | None = None,
  ) -> dict[str, float]:
    rows = prefetch.local_rows(mesh, data.eval_batch_size)
    local = task.eval_batches(split, rows)
    placed = prefetch.to_devices(local, mesh, data.prefetch)
    total = collections.defaultdict(float)
    weight = collections.defaultdict(float)
    for sums in one_late(
      step(params, batch, router_options) for batch in placed
    ):
      for name, mean in jax.device_get(sums).items():
        total[name] += float(mean.total)
        weight[name] += float(mean.weight)
    count = total.pop('examples')
    means = {name: total[name] / (weight[name] or 1) for name in total}
    return means | {'examples': int(count)}

  return evaluate


def one_late(items: Any) -> Any:
  """Yields each item when the next one is there: on its way on the devices."""
  last = None
  for item in items:
    if last is not None:
      yield last
    last = item
  if last is not None:
    yield last


def _sums(
  task: task_lib.Task,
  graphdef: nnx.GraphDef,
  params: task_lib.Params,
  batch: task_lib.Batch,
  router_options: dict[str, jax.Array] | None,
) -> Sums:
  model = nnx.merge(graphdef, params)
  options: dict[str, Any] = {}
  if router_options:
    options['router_options'] = router_options
  loss = task.loss(model, task.prepare(batch, None), **options)
  count = task_lib.Mean(jnp.sum(batch['mask']), jnp.zeros(()))
  own = {'loss': task_lib.Mean(loss.sum, loss.weight), 'examples': count}
  return own | task_lib.metrics(loss)
