"""One training step: a pure function of state and batch, jitted once."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.runs import state as state_lib
from softmoe.tasks import losses

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[
  [state_lib.TrainState, Batch], tuple[state_lib.TrainState, Metrics]
]


def make_train_step(experiment: experiment_lib.Experiment) -> TrainStep:
  """Returns the jitted step: (state, batch) -> (state, metrics).

  The state is donated. The batch holds `image` (b, height, width, channels) and
  `label` (b,), split over all devices. Metrics are float32 scalars: `loss`
  (with auxiliary losses), `accuracy`, `learning_rate`, the norms of gradients,
  parameters and updates, and those of the MoE blocks as `moe/NAME`.
  """

  def train_step(state, batch):
    key = jax.random.fold_in(_key(experiment), state['step'])
    gradients, metrics = _gradients(experiment, state['params'], batch, key)
    state, norms = _update(experiment, state, gradients)
    return state, metrics | norms

  return jax.jit(train_step, donate_argnums=0)


def _key(experiment: experiment_lib.Experiment) -> jax.Array:
  # A stream of its own, apart from that of the parameters.
  return jax.random.fold_in(jax.random.key(experiment.config.seed), 1)


def _gradients(
  experiment: experiment_lib.Experiment,
  params: experiment_lib.Params,
  batch: Batch,
  key: jax.Array,
) -> tuple[experiment_lib.Params, Metrics]:
  """Returns the mean gradient and metrics over the micro-batches."""
  config, parts = experiment.config, experiment.config.optimizer.accumulate
  mixup_key, key = jax.random.split(key)
  images = batch['image']
  labels = losses.soft_labels(
    batch['label'], config.data.num_classes, config.label_smoothing
  )
  if config.mixup:
    images, labels = losses.mixup(mixup_key, images, labels, config.mixup)

  def gradient(images, labels, key):
    grad = jax.grad(_loss, argnums=1, has_aux=True)
    return grad(experiment, params, images, labels, key)

  if parts == 1:
    return gradient(images, labels, key)
  images = sharding.split_batch(images, parts)
  labels = sharding.split_batch(labels, parts)
  return _mean(gradient, (images, labels, jax.random.split(key, parts)))


def _mean(function: Callable[..., Any], parts: tuple[jax.Array, ...]) -> Any:
  """Returns the mean of `function` over the first axis, one part at a time."""
  first = function(*(x[0] for x in parts))

  def add(total, part):
    return jax.tree.map(jnp.add, total, function(*part)), ()

  total, _ = jax.lax.scan(add, first, tuple(x[1:] for x in parts))
  return jax.tree.map(lambda x: x / len(parts[0]), total)


def _loss(
  experiment: experiment_lib.Experiment,
  params: experiment_lib.Params,
  images: jax.Array,
  labels: jax.Array,
  key: jax.Array,
) -> tuple[jax.Array, Metrics]:
  model = nnx.merge(experiment.graphdef, params)
  logits, aux = model(images, key)
  loss = jnp.mean(losses.cross_entropy(experiment.config.loss)(logits, labels))
  loss = loss + sum(aux['losses'].values())
  correct = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)
  metrics = {'loss': loss, 'accuracy': jnp.mean(correct, dtype=jnp.float32)}
  return loss, metrics | {
    f'moe/{name}': value for name, value in aux['metrics'].items()
  }


def _update(
  experiment: experiment_lib.Experiment,
  state: state_lib.TrainState,
  gradients: experiment_lib.Params,
) -> tuple[state_lib.TrainState, Metrics]:
  params, opt_state = state['params'], state['opt_state']
  # Optimizers reshape and multiply as they like: the compiler places what is
  # between, and the results are put where their inputs were.
  places = jax.tree.map(lambda x: jax.typeof(x).sharding, (params, opt_state))
  update: Any = jax.sharding.auto_axes(
    experiment.optimizer.update, out_sharding=places
  )
  updates, opt_state = update(gradients, opt_state, params)
  params: Any = optax.apply_updates(params, updates)
  decay = experiment.config.ema
  ema = jax.tree.map(
    lambda average, new: decay * average + (1 - decay) * new,
    state['ema'],
    params if decay else {},
  )
  metrics: Any = {
    'learning_rate': experiment.schedule(state['step']),
    'gradient_norm': optax.tree.norm(gradients),
    'parameter_norm': optax.tree.norm(params),
    'update_norm': optax.tree.norm(updates),
  }
  return state_lib.TrainState(
    step=state['step'] + 1, params=params, opt_state=opt_state, ema=ema
  ), metrics
