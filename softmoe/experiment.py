"""The one door from a config to what runs: model, optimizer, mesh."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

from softmoe import config as config_lib
from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import vit
from softmoe.optim import optimizer, schedules, steered
from softmoe.tasks import losses

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A config and all that follows from it, without a single parameter yet.

  Attributes:
    config: the checked config.
    mesh: the devices; in force from `build` on.
    graphdef: the model's structure; `nnx.merge(graphdef, params)` is the model.
    abstract_params: the parameters' shapes, types and places.
    schedule: learning rate at a step.
    optimizer: the gradient transformation.
  """

  config: config_lib.Config
  mesh: jax.sharding.Mesh
  graphdef: nnx.GraphDef
  abstract_params: Params
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
      lambda: _draw(self.config, nnx.Rngs(self.config.seed)),
      out_sharding=jax.tree.map(lambda w: w.sharding, self.abstract_params),
    )
    return make()


def build(
  config: config_lib.Config, devices: Sequence[jax.Device] | None = None
) -> Experiment:
  """Returns the experiment and puts its mesh in force.

  No parameter is made: a model of any size builds in seconds and no memory.

  Args:
    config: the checked config.
    devices: what the mesh covers; None: all devices.

  Raises:
    UserError: a field of the config is wrong by itself or beside another.
  """
  mesh = sharding.make_mesh(config.mesh, devices)
  jax.set_mesh(mesh)
  check(config, mesh)
  abstract_model = jax.eval_shape(lambda: make_model(config, nnx.Rngs(0)))
  abstract_params = _place(
    config, sharding.abstract(lambda: _draw(config, nnx.Rngs(0)), mesh)
  )
  schedule = schedules.make_schedule(
    config.optimizer.schedule, config.optimizer.learning_rate, config.steps
  )
  return Experiment(
    config=config,
    mesh=mesh,
    graphdef=nnx.graphdef(abstract_model),
    abstract_params=abstract_params,
    schedule=schedule,
    optimizer=optimizer.make_optimizer(
      config.optimizer, schedule, abstract_params, steered.rules(abstract_model)
    ),
  )


def make_model(config: config_lib.Config, rngs: nnx.Rngs) -> vit.ViT:
  """Returns the model with fresh parameters."""
  classes = config.data.num_classes
  bias = vit.sigmoid_head_bias(classes) if config.loss == 'sigmoid' else 0.0
  return vit.ViT(
    config.model,
    image_size=config.data.image_size,
    channels=config.data.channels,
    num_classes=classes,
    head_bias=bias,
    rngs=rngs,
  )


def _draw(config: config_lib.Config, rngs: nnx.Rngs) -> Params:
  return nnx.to_pure_dict(nnx.state(make_model(config, rngs), nnx.Param))


def _place(config: config_lib.Config, params: Params) -> Params:
  """Returns shapes and places with every weight split over `fsdp` too."""
  skip = lambda name: int(config.model.scan and name == 'blocks')
  return {name: sharding.fsdp(w, skip(name)) for name, w in params.items()}


def check(config: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Raises a UserError that names the first field that does not fit."""
  losses.cross_entropy(config.loss)
  data, moe = config.data, config.model.moe
  accumulate = config.optimizer.accumulate
  rate = config.optimizer.learning_rate
  group = moe.group_size if moe.blocks else 1
  devices = mesh.size * max(group, 1)
  parts = max(accumulate, 1) * devices
  divided = not moe.blocks or moe.num_experts % mesh.shape['expert'] == 0
  for field, valid, expected in (
    (
      'mesh',
      divided,
      f'an expert axis that divides the {moe.num_experts} experts',
    ),
    ('steps', config.steps >= 1, 'at least 1'),
    ('log_every', config.log_every >= 1, 'at least 1'),
    ('eval_every', config.eval_every >= 0, '0 or more'),
    ('label_smoothing', 0 <= config.label_smoothing < 1, 'in [0, 1)'),
    ('mixup', config.mixup >= 0, '0 or more'),
    ('ema', 0 <= config.ema < 1, 'in [0, 1)'),
    ('data.num_classes', data.num_classes >= 1, 'at least 1'),
    ('data.prefetch', data.prefetch >= 0, '0 or more'),
    ('optimizer.accumulate', accumulate >= 1, 'at least 1'),
    ('optimizer.learning_rate', rate >= 0, '0 or more'),
    (
      'data.batch_size',
      data.batch_size >= 1 and data.batch_size % parts == 0,
      f'a positive multiple of {parts} (devices x micro-batches x group size)',
    ),
    (
      'data.eval_batch_size',
      data.eval_batch_size >= 1 and data.eval_batch_size % devices == 0,
      f'a positive multiple of {devices} (devices x group size)',
    ),
  ):
    if not valid:
      given = operator.attrgetter(field)(config)
      raise UserError(f'config.{field}', given, expected)
