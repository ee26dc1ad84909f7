"""The one door from a config to what runs: model, optimizer, mesh."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

from softmoe import config as config_lib
from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import vit
from softmoe.training import losses, optimizer, schedules

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
  abstract_params = jax.eval_shape(lambda: init_params(config, nnx.Rngs(0)))
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
      config.optimizer, schedule, abstract_params
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


def unrolled(config: config_lib.Config) -> config_lib.Config:
  """Returns the config of the same model without `scan` and `remat`."""
  model = dataclasses.replace(config.model, scan=False, remat=False)
  return dataclasses.replace(config, model=model)


def init_params(config: config_lib.Config, rngs: nnx.Rngs) -> Params:
  """Returns fresh parameters as nested dicts, each where it belongs."""
  params = nnx.to_pure_dict(nnx.state(make_model(config, rngs), nnx.Param))
  return sharding.fsdp(params) if config.fsdp else params


def check(config: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Raises a UserError that names the first field that does not fit."""
  losses.cross_entropy(config.loss)
  moe, experts = config.model.moe, mesh.shape['expert']
  if moe.blocks and moe.num_experts % experts:
    raise UserError(
      'config.mesh',
      config.mesh,
      f'an expert axis that divides the {moe.num_experts} experts',
    )
  parts = config.optimizer.accumulate * mesh.size
  for field, size, multiple in (
    ('batch_size', config.data.batch_size, parts),
    ('eval_batch_size', config.data.eval_batch_size, mesh.size),
  ):
    if size < 1 or multiple < 1 or size % multiple:
      raise UserError(
        f'config.data.{field}',
        size,
        f'a positive multiple of {multiple} (devices x micro-batches)',
      )
  for field in ('steps', 'log_every'):
    if getattr(config, field) < 1:
      raise UserError(f'config.{field}', getattr(config, field), 'at least 1')
