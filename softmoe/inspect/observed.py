"""What the routers of a run make of one batch, as arrays of NumPy.

Axes: `b` examples, `m` tokens, `d` width, `e` experts, `k` slots, or experts
where there are none.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.errors import UserError, naming
from softmoe.inspect import watched
from softmoe.moe import layer, routing
from softmoe.runs import load
from softmoe.tasks import task as task_lib

_MOST_EXAMPLES = 512
_MOST_TOKENS = 1 << 15  # of text


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one MoE layer does with the batch.

  Attributes:
    name: path of its block.
    router: name of the class.
    num_experts: e.
    take: weight of a token in a slot, or for an expert that it reaches.
    give: weight of a slot's or expert's output in a token's.
    wanted: which experts a token wants; None: it has a share of every slot.
    granted: those of them that keep it.
    real: False where a token is padding.
    slots: parameters that say what a slot or expert looks for; None: the
      router has none.
  """

  name: str
  router: str
  num_experts: int
  take: Float[np.ndarray, 'b m k']
  give: Float[np.ndarray, 'b m k']
  wanted: Bool[np.ndarray, 'b m e'] | None
  granted: Bool[np.ndarray, 'b m e'] | None
  real: Bool[np.ndarray, 'b m']
  slots: Float[np.ndarray, 'd k'] | None


class Observed(NamedTuple):
  """A run, a batch, and what came of it.

  Attributes:
    experiment: of the run, its blocks one by one and its mesh in force.
    step: number of the checkpoint.
    split: that the batch is from.
    batch: as `eval_batches` says, of real examples alone.
    layers: the MoE layers in order.
    without: metrics of the batch with some experts dropped, given for each
      layer which stay.
  """

  experiment: experiment_lib.Experiment
  step: int
  split: str
  batch: dict[str, np.ndarray]
  layers: list[Layer]
  without: Callable[[list[np.ndarray]], dict[str, float]]


def observe(workdir: Any, step: str, split: str) -> Observed:
  """Returns what the routers do with the first examples of a split.

  Args:
    workdir: directory of a run.
    step: 'latest', 'best' or a number.
    split: any of the run's source; '': its `eval_split`.

  Raises:
    UserError: there is no such run, checkpoint or split, its data is gone or
      another, or it has no MoE layer.
  """
  # Examples split over all devices, experts whole on each of them.
  with naming({'--workdir': 'WORKDIR'}):
    run = load.restore(workdir, step, f'data:{jax.device_count()}')
  if not experiment_lib.moe_layers(nnx.merge(run.experiment.graphdef, run[2])):
    raise UserError('WORKDIR', str(workdir), 'a run with MoE layers')
  experiment_lib.with_fingerprint(run.experiment.config)
  experiment = _block_by_block(run.experiment)
  params = jax.jit(run.experiment.task.exchange)(run.params)
  split = split or experiment.config.data.eval_split
  with naming({'split': '--split'}):
    batch = _first_batch(experiment, split)
  shown = jax.jit(lambda *args: _routings(experiment, *args))(params, batch)
  model = nnx.merge(experiment.graphdef, params)
  local = {name: np.asarray(value) for name, value in batch.items()}
  real = local['mask'] > 0
  local = {name: value[real] for name, value in local.items()}
  layers = []
  for path, *_, moe in watched.places(model):
    routed, tokens = shown[path]
    layers.append(_layer(path, moe, routed, tokens, real))
  without = _without(experiment, params, batch)
  return Observed(experiment, run.step, split, local, layers, without)


def _block_by_block(
  experiment: experiment_lib.Experiment,
) -> experiment_lib.Experiment:
  """Returns the experiment whose layers can be watched, on a batch to see."""
  config: Any = experiment.config
  model = dataclasses.replace(config.model, scan=False, remat=False)
  unit = experiment.mesh.size * _group_size(experiment)
  most = _MOST_TOKENS // experiment.task.units_per_example
  most = min(most, _MOST_EXAMPLES, config.data.eval_batch_size)
  size = unit * max(1, most // unit)
  data = dataclasses.replace(config.data, eval_batch_size=size)
  config = dataclasses.replace(config, model=model, data=data)
  return experiment_lib.build(config, training=False)


def _group_size(experiment: experiment_lib.Experiment) -> int:
  """Returns how many examples fill the groups of every router."""
  model = experiment_lib.abstract_model(experiment.task)
  routers = [moe.router for moe in experiment_lib.moe_layers(model)]
  across = (r.group_size for r in routers if hasattr(r, 'across_examples'))
  return math.lcm(experiment.group_size, *across)


def _first_batch(
  experiment: experiment_lib.Experiment, split: str
) -> dict[str, jax.Array]:
  size = experiment.config.data.eval_batch_size
  rows = prefetch.local_rows(experiment.mesh, size)
  batches = experiment.task.eval_batches(split, rows)
  return next(prefetch.to_devices(batches, experiment.mesh, 0))


def _routings(
  experiment: experiment_lib.Experiment, params: Any, batch: Any
) -> dict[str, Any]:
  """Returns the routing of each layer, and its real tokens, by path."""
  model, notes = nnx.merge(experiment.graphdef, params), {}
  watched.watch(model, notes)
  experiment.task.loss(model, experiment.task.prepare(batch, None))
  return notes


def _layer(
  path: str,
  moe: layer.MoE,
  routed: routing.Slots | routing.Assignment,
  real: jax.Array,
  examples: Bool[np.ndarray, ' b'],
) -> Layer:
  """Returns what a layer did with those of the examples that are real."""
  wanted = granted = None
  if isinstance(routed, routing.Slots):
    flat = lambda w: np.asarray(w).reshape(*w.shape[:2], -1)[examples]
    take, give = flat(routed.dispatch), flat(routed.combine)
  else:
    wanted = (np.asarray(routed.priority) > -np.inf)[examples]
    granted = np.asarray(routed.granted)[examples]
    take = give = np.where(granted, np.asarray(routed.gates)[examples], 0)
  router = moe.router
  return Layer(
    name=path,
    router=type(router).__name__,
    num_experts=router.num_experts,
    take=take,
    give=give,
    wanted=wanted,
    granted=granted,
    real=np.asarray(real)[examples],
    slots=_slots(router, take.shape[-1]),
  )


def _slots(router: Any, count: int) -> Float[np.ndarray, 'd k'] | None:
  """Returns the parameters that slots or experts are chosen by, if any.

  They are the matrix from the width to as many numbers; null experts, which
  come last in some routers, are left out.
  """
  for w in jax.tree.leaves(nnx.state(router, nnx.Param)):
    if w.ndim > 1 and math.prod(w.shape[1:]) >= count:
      return np.asarray(w, np.float32).reshape(len(w), -1)[:, :count]
  return None


def _without(
  experiment: experiment_lib.Experiment, params: Any, batch: Any
) -> Callable[[list[np.ndarray]], dict[str, float]]:
  task = experiment.task

  @jax.jit
  def metrics(params, batch, keep):
    model = nnx.merge(experiment.graphdef, params)
    watched.drop_experts(model, keep)
    loss = task.loss(model, task.prepare(batch, None))
    own = task_lib.metrics(loss._replace(aux={}))
    own |= {'loss': task_lib.Mean(loss.sum, loss.weight)}
    return {name: mean.value() for name, mean in own.items()}

  def without(keep: list[np.ndarray]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics(params, batch, keep).items()}

  return without
