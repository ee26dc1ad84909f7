"""A task of one's own: regression on sequences of ragged length, in one file.

It is named by `tests.tasks.ragged:Regression`. A target is the sum of the
tokens so far, padding aside; the loss is a mean over all real tokens, so that
examples, micro-batches and devices hold unequal shares of it.
"""

import dataclasses

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe.data import stream
from softmoe.models import mixtures
from softmoe.models.config import MoEConfig, TransformerConfig
from softmoe.tasks import means
from softmoe.tasks import task as task_lib

LENGTH, WIDTH, EXAMPLES = 8, 16, 64


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Config):
  task: str = 'tests.tasks.ragged:Regression'
  steps: int = 8
  log_every: int = 2
  model: TransformerConfig = TransformerConfig(
    width=WIDTH,
    mlp_dim=32,
    moe=MoEConfig(
      router='tokens_choice',
      blocks=(0,),
      num_experts=8,
      k=2,
      losses=(('switch', 0.1), ('z', 0.01)),
    ),
  )
  data: config_lib.DataConfig = config_lib.DataConfig(
    source='ragged', batch_size=16, eval_batch_size=16, threads=0
  )
  optimizer: config_lib.OptimizerConfig = config_lib.OptimizerConfig(
    learning_rate=3e-3
  )
  checkpoint: config_lib.CheckpointConfig = config_lib.CheckpointConfig(
    every=2, best_metric='loss'
  )


class Model(nnx.Module):
  def __init__(self, config, rngs):
    self.norm = nnx.LayerNorm(config.width, rngs=rngs)
    self.moe = mixtures.make_moe(config, rngs)
    self.head = nnx.Linear(config.width, 1, rngs=rngs)

  def __call__(self, x, mask, key=None):
    y, aux = self.moe(self.norm(x), mask, key=key)
    return self.head(x + y)[..., 0], aux


class Regression(task_lib.Task):
  Config = Config
  unit = 'token'
  units_per_example = LENGTH

  def make_model(self, rngs):
    return Model(self.config.model, rngs)

  def train_batches(self, rows, start_step=0):
    return stream.train_batches(
      self.config.data,
      EXAMPLES,
      lambda index, rng: example(index),
      seed=self.config.seed,
      start_step=start_step,
      rows=rows,
    )

  def eval_batches(self, split, rows):
    size = EXAMPLES - 3  # does not fill the last batch
    return stream.eval_batches(self.config.data, size, example, rows=rows)

  def abstract_batch(self, size):
    shape = (size, LENGTH)
    return {
      'x': jax.ShapeDtypeStruct((*shape, WIDTH), jnp.float32),
      'y': jax.ShapeDtypeStruct(shape, jnp.float32),
      'real': jax.ShapeDtypeStruct(shape, jnp.bool),
    }

  def loss(self, model, batch, key=None):
    out, aux = model(batch['x'], batch['real'], key)
    error = jnp.sum(jnp.square(out - batch['y']) * batch['real'])
    weight = jnp.sum(batch['real'], dtype=jnp.float32)
    return task_lib.Loss(error, weight, {'error': error}, aux)

  def infer(self, model, batch):
    return model(batch['x'], batch['real'])[0]

  def evaluators(self, graphdef, mesh):
    return (means.over_split(self, graphdef, mesh),)


def example(index):
  """Returns a sequence of 1 to LENGTH tokens, filled up with zeros."""
  rng = np.random.default_rng(index)
  length = 1 + index % LENGTH
  real = np.arange(LENGTH) < length
  x = rng.normal(size=(LENGTH, WIDTH)).astype(np.float32) * real[:, None]
  y = (np.cumsum(x[:, 0]) * real).astype(np.float32)
  return {'x': x, 'y': y, 'real': real}
