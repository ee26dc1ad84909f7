"""The one door from a config to what runs: mesh, task, model, optimizer."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from flax import nnx

from softmoe import config as config_lib
from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import stack
from softmoe.moe import layer
from softmoe.optim import memory, optimizer, schedules, steered
from softmoe.optim import shares as shares_lib
from softmoe.tasks import registry
from softmoe.tasks import task as task_lib

Params = task_lib.Params
HEADS = ('keep', 'reset')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A config and all that follows from it, without a single parameter yet.

  Attributes:
    config: the checked config.
    task: what is learnt.
    mesh: the devices; in force from `build` on.
    graphdef: the model's structure; `nnx.merge(graphdef, params)` is the model.
    abstract_params: the parameters' shapes, types and places.
    rules: of each parameter the rule that moves it, None where the optimizer
      does; see `optim.steered`.
    frozen: of each parameter whether nothing ever moves it; None: all move.
    group_size: examples whose tokens are routed together, on one device.
    schedule: learning rate at a step.
    optimizer: the gradient transformation.
  """

  config: config_lib.Config
  task: task_lib.Task
  mesh: jax.sharding.Mesh
  graphdef: nnx.GraphDef
  abstract_params: Params
  rules: dict[str, Any]
  frozen: Params | None
  group_size: int
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation

  def num_params(self) -> int:
    """Returns the number of parameters."""
    leaves = jax.tree.leaves(self.abstract_params)
    return sum(math.prod(leaf.shape) for leaf in leaves)

  def init_params(self) -> Params:
    """Returns fresh parameters as nested dicts, each where it belongs."""
    # The compiler, knowing the places of the results, lets every device draw no
    # more than its part of them.
    make: Any = jax.sharding.auto_axes(
      lambda: _draw(self.task, nnx.Rngs(self.config.seed)),
      out_sharding=jax.tree.map(lambda w: w.sharding, self.abstract_params),
    )
    return make()

  def held(self, params: Params) -> Params:
    """Returns the parameters, those that are frozen as constants.

    So no gradient of theirs is computed, nor what leads to them alone.
    """
    if self.frozen is None:
      return params
    hold = lambda frozen, w: jax.lax.stop_gradient(w) if frozen else w
    return jax.tree.map(hold, self.frozen, params)

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, types and places of a batch of `size` examples."""
    place = jax.NamedSharding(self.mesh, jax.P(self.mesh.axis_names))
    return {
      name: array.update(sharding=place)
      for name, array in self.task.abstract_batch(size).items()
    }

  def evaluate(self, params: Params, split: str) -> dict[str, float]:
    """Returns what all evaluators of the task say of a split.

    Raises:
      UserError: the split cannot be read.
    """
    return {
      name: value
      for evaluator in self.evaluators
      for name, value in evaluator(params, split).items()
    }

  @functools.cached_property
  def evaluators(self) -> tuple[task_lib.Evaluator, ...]:
    """Those of the task, kept with all that they compiled.

    Raises:
      UserError: what they read beside the split is not there.
    """
    return self.task.evaluators(self.graphdef, self.mesh)


def parse(config: ml_collections.ConfigDict | dict) -> config_lib.Config:
  """Returns the checked, frozen form of a config: the dataclass of its task.

  Raises:
    UserError: there is no such task, a key is unknown, or a value has the wrong
      type or is out of its range.
  """
  name: Any = config.get('task', config_lib.Config.task)
  if not isinstance(name, str):
    raise UserError('config.task', name, 'a value of type str')
  return config_lib.parse(config, registry.find(name).Config)


def with_fingerprint(config: config_lib.Config) -> config_lib.Config:
  """Returns the config with the fingerprint of the data that is there.

  Raises:
    UserError: the config names another, or the data is missing or corrupt.
  """
  given = config.data.fingerprint
  found = registry.find(config.task)(config).fingerprint()
  if given not in ('', found):
    expected = f'{found!r}, that of the data in {config.data.source!r}'
    raise UserError('config.data.fingerprint', given, expected)
  data = dataclasses.replace(config.data, fingerprint=found)
  return dataclasses.replace(config, data=data)


def build(
  config: config_lib.Config,
  devices: Sequence[jax.Device] | None = None,
  training: bool = True,
) -> Experiment:
  """Returns the experiment and puts its mesh in force.

  No parameter is made: a model of any size builds in seconds and no memory.
  Where the config names no mesh, as many devices share the experts as divide
  them, and the rest split the batch alone.

  Args:
    config: the checked config.
    devices: what the mesh covers; None: all devices.
    training: whether the devices have to divide the batches. If not, that of
      an evaluation is rounded up to what they divide, where its size changes
      no number.

  Raises:
    UserError: a field of the config is wrong by itself or beside another.
  """
  config_lib.check(config)
  task = registry.find(config.task)(config)
  model = abstract_model(task, devices)
  layers = moe_layers(model)
  mesh = _make_mesh(config, layers, devices)
  jax.set_mesh(mesh)
  if not training and task.additive:
    config = _with_eval_batch(config, mesh.size * _group_size(layers))
    task = registry.find(config.task)(config)
  check(config, task, layers, mesh, training)
  params = placed_params(task, model, mesh)
  rules = steered.rules(model)
  shares = _shares(config, task, params)
  schedule = schedules.make_schedule(
    config.optimizer.schedule, config.optimizer.learning_rate, config.steps
  )
  return Experiment(
    config=config,
    task=task,
    mesh=mesh,
    graphdef=nnx.graphdef(model),
    abstract_params=params,
    rules=rules,
    frozen=None if shares is None else _frozen(shares, rules),
    group_size=_group_size(layers),
    schedule=schedule,
    optimizer=steered.steered(
      optimizer.make_optimizer(
        config.optimizer, schedule, task.exchange(params), shares, task.take
      ),
      rules,
    ),
  )


def abstract_model(
  task: task_lib.Task, devices: Sequence[jax.Device] | None = None
) -> Any:
  """Returns the model with shapes and types for parameters, and no places.

  Args:
    task: that makes it.
    devices: of the kind that the model is for; None: of this process.
  """
  with jax.set_mesh(sharding.one_device_mesh(devices)):
    return jax.eval_shape(lambda: task.make_model(nnx.Rngs(0)))


def abstract_params(task: task_lib.Task, mesh: jax.sharding.Mesh) -> Params:
  """Returns shapes, types and places of parameters, `fsdp` left out."""
  return sharding.abstract(lambda: _draw(task, nnx.Rngs(0)), mesh)


def placed_params(
  task: task_lib.Task, model: Any, mesh: jax.sharding.Mesh
) -> Params:
  """Returns shapes, types and places of parameters as a run has them.

  Args:
    task: whose parameters they are.
    model: its `abstract_model`.
    mesh: where they are.
  """
  params = abstract_params(task, mesh)
  return jax.tree.map(sharding.fsdp, params, stack.stacked(model))


def moe_layers(model: Any) -> list[layer.MoE]:
  """Returns the MoE layers of a model; those of a scan are one."""
  modules = (module for _, module in nnx.iter_modules(model))
  return [module for module in modules if isinstance(module, layer.MoE)]


def _draw(task: task_lib.Task, rngs: nnx.Rngs) -> Params:
  return nnx.to_pure_dict(nnx.state(task.make_model(rngs), nnx.Param))


def _make_mesh(
  config: config_lib.Config,
  layers: list[layer.MoE],
  devices: Sequence[jax.Device] | None,
) -> jax.sharding.Mesh:
  devices = jax.devices() if devices is None else devices
  experts = [layer.router.num_experts for layer in layers]
  # Experts stay within a slice of a TPU.
  most = len(devices) // sharding.num_slices(devices) if experts else 1
  spec = config.mesh or f'data:-1,expert:{math.gcd(most, *experts)}'
  mesh = sharding.make_mesh(spec, devices)
  for number in experts:
    if number % mesh.shape['expert']:
      expected = f'an expert axis that divides the {number} experts'
      raise UserError('config.mesh', config.mesh, expected)
  return mesh


def _shares(
  config: config_lib.Config, task: task_lib.Task, params: Params
) -> Params | None:
  """Returns each parameter's share of the learning rate; None: all of it."""
  if not config.optimizer.frozen and config.optimizer.layer_decay == 1:
    return None
  of_params = shares_lib.of_params
  return task.take(of_params(config.optimizer, task.exchange(params)))


def _frozen(shares: Params, rules: dict[str, Any]) -> Params:
  still = lambda rule, share: rule is None and not np.any(share)
  return jax.tree.map(still, rules, shares, is_leaf=lambda v: v is None)


def _group_size(layers: list[layer.MoE]) -> int:
  return math.lcm(*(layer.group_size for layer in layers))


def _with_eval_batch(config: config_lib.Config, of: int) -> config_lib.Config:
  """Returns the config whose batch of evaluation is a multiple of `of`."""
  size = -(-config.data.eval_batch_size // of) * of
  data = dataclasses.replace(config.data, eval_batch_size=size)
  return dataclasses.replace(config, data=data)


def _is_regex(pattern: str) -> bool:
  try:
    re.compile(pattern)
  except re.error:
    return False
  return True


def check(
  config: config_lib.Config,
  task: task_lib.Task,
  layers: list[layer.MoE],
  mesh: jax.sharding.Mesh,
  training: bool = True,
) -> None:
  """Raises a UserError that names the first field that does not fit."""
  accumulate, data = config.optimizer.accumulate, config.data
  ratings = task.ratings()
  devices = mesh.size * _group_size(layers)
  parts = accumulate * devices
  for field, valid, expected in (
    (
      'checkpoint.best_metric',
      not training or not ratings or config.checkpoint.best_metric in ratings,
      f'one of {ratings}',
    ),
    ('init_head', config.init_head in HEADS, f'one of {HEADS}'),
    (
      'init_head',
      config.init != '' or config.init_head == 'keep',
      "'keep', since there is no config.init",
    ),
    (
      'profile',
      len(config.profile) in (0, 2)
      and [*config.profile] == sorted(config.profile),
      'the first and the last step, or nothing',
    ),
    (
      'upcycle.enabled',
      config.init != '' or not config.upcycle.enabled,
      'False, since there is no config.init',
    ),
    ('init_allow', _is_regex(config.init_allow), 'a regular expression'),
    (
      'init_moments',
      not config.init_moments
      or (config.init != '' and config.optimizer.name in memory.NAMES),
      f'False: it needs config.init, and one of {sorted(memory.NAMES)}',
    ),
    (
      'optimizer.accumulate',
      accumulate == 1 or task.additive,
      f'1: the loss of {config.task!r} is no sum over the examples',
    ),
    (
      'data.batch_size',
      not training or data.batch_size % parts == 0,
      f'a multiple of {parts} (devices x micro-batches x group size)',
    ),
    (
      'data.eval_batch_size',
      not training or data.eval_batch_size % devices == 0,
      f'a multiple of {devices} (devices x group size)',
    ),
  ):
    if not valid:
      raise UserError.of_field(config, field, expected)
