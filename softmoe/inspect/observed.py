"""What the routers of a run make of some examples, as arrays of NumPy.

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
from jaxtyping import Bool, Float, Int

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.errors import UserError, naming
from softmoe.inspect import watched
from softmoe.moe import layer, routing
from softmoe.runs import load
from softmoe.tasks import examples
from softmoe.tasks import task as task_lib

_MOST_TOKENS = 1 << 15  # of text

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one MoE layer does with the examples.

  Attributes:
    name: path of its block.
    router: name of the class.
    num_experts: e.
    take: weight of a token in a slot, or for an expert that it reaches.
    give: weight of a slot's or expert's output in a token's.
    wanted: which experts a token wants; None: it has a share of every slot.
    granted: those of them that keep it.
    real: False where a token is padding.
    token_ids: places in the vocabulary; None: tokens are patches.
    piece: neighbouring tokens of an example that share their slots; None: a
      slot holds tokens of several examples.
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
  token_ids: Int[np.ndarray, 'b m'] | None
  piece: int | None
  slots: Float[np.ndarray, 'd k'] | None


class Observed(NamedTuple):
  """A run, some examples, and what came of them.

  Attributes:
    experiment: of the run, its blocks one by one and its mesh in force.
    step: number of the checkpoint.
    split: that the examples are from.
    batch: the examples, as `eval_batches` says, without padding.
    layers: the MoE layers in order.
    without: metrics of the examples with some experts dropped, given for each
      layer which stay.
  """

  experiment: experiment_lib.Experiment
  step: int
  split: str
  batch: dict[str, np.ndarray]
  layers: list[Layer]
  without: Callable[[list[np.ndarray]], dict[str, float]]


def observe(workdir: Any, step: str, split: str, count: int) -> Observed:
  """Returns what the routers do with examples from all over a split.

  Args:
    workdir: directory of a run.
    step: 'latest', 'best' or a number.
    split: any of the run's source; '': its `eval_split`.
    count: examples, at most; of long texts there are fewer.

  Raises:
    UserError: there is no such run, checkpoint or split, its data is gone or
      another, or it has no MoE layer.
  """
  # Examples split over all devices, experts whole on each of them.
  with naming({'--workdir': 'WORKDIR'}):
    run = load.restore(workdir, step, f'data:{jax.device_count()}')
  model = nnx.merge(run.experiment.graphdef, run.params)
  if not experiment_lib.moe_layers(model):
    raise UserError('WORKDIR', str(workdir), 'a run with MoE layers')
  experiment_lib.with_fingerprint(run.experiment.config)
  most = _MOST_TOKENS // run.experiment.task.units_per_example
  count = max(1, min(count, most))
  experiment = _block_by_block(run.experiment, count)
  params = jax.jit(run.experiment.task.exchange)(run.params)
  split = split or experiment.config.data.eval_split
  with naming({'split': '--split'}):
    batches = _batches(experiment, split, count)
  layers = _layers(experiment, params, batches)
  without = _without(experiment, params, batches)
  real = _joined([_local(batch) for batch in batches])
  return Observed(experiment, run.step, split, real, layers, without)


def _block_by_block(
  experiment: experiment_lib.Experiment, count: int
) -> experiment_lib.Experiment:
  """Returns the experiment whose layers can be watched, in small batches."""
  config: Any = _unrolled(experiment.config)
  unit = experiment.mesh.size * _group_size(experiment)
  most = min(count, config.data.eval_batch_size)
  size = unit * max(1, most // unit)
  data = dataclasses.replace(config.data, eval_batch_size=size)
  config = dataclasses.replace(config, data=data)
  return experiment_lib.build(config, training=False)


def _unrolled(config: Any) -> Any:
  """Returns the config, without `scan` or `remat` in any of its parts."""
  changes: dict[str, Any] = {
    field.name: _unrolled(getattr(config, field.name))
    for field in dataclasses.fields(config)
    if dataclasses.is_dataclass(getattr(config, field.name))
  }
  names = (name for name in ('scan', 'remat') if hasattr(config, name))
  return dataclasses.replace(config, **changes, **dict.fromkeys(names, False))


def _group_size(experiment: experiment_lib.Experiment) -> int:
  """Returns how many examples fill the groups of every router."""
  model = experiment_lib.abstract_model(experiment.task)
  routers = [moe.router for moe in experiment_lib.moe_layers(model)]
  across = (r.group_size for r in routers if hasattr(r, 'across_examples'))
  return math.lcm(experiment.group_size, *across)


def _batches(
  experiment: experiment_lib.Experiment, split: str, count: int
) -> list[Batch]:
  """Returns some examples of a split, in batches on the devices."""
  size = experiment.config.data.eval_batch_size
  count = size * max(1, count // size)
  together = _group_size(experiment)
  found = examples.read(experiment.task, split, count, together)
  cut = examples.cut(found, size)
  return list(prefetch.to_devices(cut, experiment.mesh, 0))


def _local(batch: Batch) -> dict[str, np.ndarray]:
  """Returns the real examples of a batch."""
  arrays = {name: np.asarray(value) for name, value in batch.items()}
  return {name: v[arrays['mask'] > 0] for name, v in arrays.items()}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns arrays with the examples of all parts."""
  join = lambda name: np.concatenate([part[name] for part in parts])
  return {name: join(name) for name in parts[0]}


def _layers(
  experiment: experiment_lib.Experiment, params: Any, batches: list[Batch]
) -> list[Layer]:
  """Returns what each layer does with the real examples."""

  @jax.jit
  def routings(params, batch):
    model, notes = nnx.merge(experiment.graphdef, params), {}
    watched.watch(model, notes)
    experiment.task.loss(model, experiment.task.prepare(batch, None))
    return notes

  parts: dict[str, list] = {}
  for batch in batches:
    real = np.asarray(batch['mask']) > 0
    for path, noted in routings(params, batch).items():
      arrays = {name: v[real] for name, v in _arrays(*noted).items()}
      parts.setdefault(path, []).append(arrays)
  places = watched.places(nnx.merge(experiment.graphdef, params))
  return [_layer(path, moe, _joined(parts[path])) for path, *_, moe in places]


def _arrays(
  routed: routing.Slots | routing.Assignment,
  real: jax.Array,
  token_ids: jax.Array | None,
) -> dict[str, np.ndarray]:
  """Returns what a layer did with a batch, as fields of `Layer`."""
  tokens = {'real': np.asarray(real)}
  if token_ids is not None:
    tokens['token_ids'] = np.asarray(token_ids)
  if isinstance(routed, routing.Slots):
    flat = lambda w: np.asarray(w).reshape(*w.shape[:2], -1)
    return tokens | dict(take=flat(routed.dispatch), give=flat(routed.combine))
  granted = np.asarray(routed.granted)
  gates = np.where(granted, np.asarray(routed.gates), 0)
  wanted = np.asarray(routed.priority) > -np.inf
  return tokens | dict(take=gates, give=gates, wanted=wanted, granted=granted)


def _layer(path: str, moe: layer.MoE, arrays: dict[str, np.ndarray]) -> Layer:
  router = moe.router
  missing: Any = dict.fromkeys(('wanted', 'granted', 'token_ids'))
  return Layer(
    name=path,
    router=type(router).__name__,
    num_experts=router.num_experts,
    piece=piece(moe, arrays['take'].shape[1]),
    slots=slots(router, arrays['take'].shape[-1]),
    **missing | arrays,
  )


def piece(moe: layer.MoE, num_tokens: int) -> int | None:
  """Returns what `Layer.piece` is for examples of so many tokens."""
  if moe.group_size > 1 or getattr(moe.router, 'across_examples', False):
    return None
  return getattr(moe.router, 'segment', num_tokens)


def slots(router: Any, count: int) -> Float[np.ndarray, 'd k'] | None:
  """Returns the parameters that slots or experts are chosen by, if any.

  They are the matrix from the width to as many numbers; null experts, which
  come last in some routers, are left out.

  Args:
    router: any.
    count: of its slots, or experts.
  """
  learned = nnx.All(nnx.Param, nnx.Not(routing.Steered))
  for w in jax.tree.leaves(nnx.state(router, learned)):
    if w.ndim > 1 and math.prod(w.shape[1:]) >= count:
      return np.asarray(w, np.float32).reshape(len(w), -1)[:, :count]
  return None


def _without(
  experiment: experiment_lib.Experiment, params: Any, batches: list[Batch]
) -> Callable[[list[np.ndarray]], dict[str, float]]:
  task = experiment.task

  @jax.jit
  def sums(params, batch, keep):
    model = nnx.merge(experiment.graphdef, params)
    watched.drop_experts(model, keep)
    loss = task.loss(model, task.prepare(batch, None))
    own = task_lib.metrics(loss._replace(aux={}))
    return own | {'loss': task_lib.Mean(loss.sum, loss.weight)}

  def without(keep: list[np.ndarray]) -> dict[str, float]:
    each = [sums(params, batch, keep) for batch in batches]
    total = jax.tree.map(lambda *values: sum(values), *each)
    return {name: float(mean.value()) for name, mean in total.items()}

  return without
