"""One training step: a pure function of state and batch, jitted once."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.optim import steered
from softmoe.runs import state as state_lib
from softmoe.tasks import task as task_lib

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Means = dict[str, task_lib.Mean]


def make_train_step(experiment: experiment_lib.Experiment) -> Any:
  """Returns the jitted step: (state, batch) -> (state, metrics).

  The state is donated. The batch is one of the task's, split over all devices.
  Metrics are float32 scalars: `loss` (with auxiliary losses), the task's own,
  `learning_rate`, the norms of gradients, parameters and updates without what
  is steered, and those of the MoE blocks as `moe/NAME`.
  """

  def train_step(state, batch):
    key = jax.random.fold_in(_key(experiment), state['step'])
    gradients, metrics = _gradients(experiment, state['params'], batch, key)
    state, norms = _update(experiment, state, gradients)
    return state, metrics | norms

  return jax.jit(train_step, donate_argnums=0)


def _key(experiment: experiment_lib.Experiment) -> jax.Array:
  # NNX draws the parameters from `fold_in(key(seed), n)`, n = 0, 1, ..., so
  # that this is also the key of its second draw. It stays as it is: another
  # would change the numbers of every run.
  return jax.random.fold_in(jax.random.key(experiment.config.seed), 1)


def _gradients(
  experiment: experiment_lib.Experiment,
  params: experiment_lib.Params,
  batch: Batch,
  key: jax.Array,
) -> tuple[experiment_lib.Params, Metrics]:
  """Returns the gradient and the metrics of a batch, in one go or in parts."""
  task, parts = experiment.task, experiment.config.optimizer.accumulate
  prepare_key, key = jax.random.split(key)
  batch = task.prepare(batch, prepare_key)

  @jax.jit  # traced once, however often it is called below
  def means(params, batch, key) -> tuple[Means, Means]:
    model = nnx.merge(experiment.graphdef, experiment.held(params))
    loss = task.loss(model, batch, key)
    return task_lib.losses(loss), task_lib.metrics(loss)

  if parts == 1:
    gradients, (losses, metrics) = _gradient(means)(params, batch, key)
  else:
    batch = jax.tree.map(lambda x: sharding.split_batch(x, parts), batch)
    split = batch, jax.random.split(key, parts)
    gradients, (losses, metrics) = _accumulate(means, params, split)
  loss: Any = sum(mean.value() for mean in losses.values())
  values = {name: mean.value() for name, mean in metrics.items()}
  return gradients, values | {'loss': loss}


def _gradient(
  means: Callable[..., tuple[Means, Means]],
  weights: dict[str, jax.Array] | None = None,
) -> Callable[..., Any]:
  """Returns the gradient of a batch's part of the loss.

  Args:
    means: from parameters, batch and key to losses and metrics.
    weights: of each loss, in the whole batch; None: this is all of it.
  """

  def objective(params, batch, key):
    losses, metrics = means(params, batch, key)
    whole = weights or {name: mean.weight for name, mean in losses.items()}
    shares = (
      mean.total / task_lib.nonzero(whole[name])
      for name, mean in losses.items()
    )
    return sum(shares), (losses, metrics)

  return jax.grad(objective, has_aux=True)


def _accumulate(
  means: Callable[..., tuple[Means, Means]],
  params: experiment_lib.Params,
  split: tuple[Batch, jax.Array],
) -> tuple[experiment_lib.Params, tuple[Means, Means]]:
  """Returns what `_gradient` does, from one part of the batch at a time."""

  def weigh(_, part):
    losses, _ = means(params, *part)
    return None, {name: mean.weight for name, mean in losses.items()}

  # Weights follow from the batch alone: the compiler drops the rest of this.
  _, weights = jax.lax.scan(weigh, None, split)
  over_parts = lambda x: jnp.sum(x, axis=0)
  gradient = _gradient(means, jax.tree.map(over_parts, weights))

  def add(total, part):
    gradients, sums = gradient(params, *part)
    return jax.tree.map(jnp.add, total, gradients), sums

  zeros = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), params)
  total, sums = jax.lax.scan(add, zeros, split)
  return total, jax.tree.map(over_parts, sums)


def norm(tree: experiment_lib.Params) -> Float[Array, '']:
  """Returns the norm of all arrays together, added up in float32."""
  return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


@jax.named_scope('optimizer')
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
  trained = lambda tree: steered.without(tree, experiment.rules)
  metrics: Any = {
    'learning_rate': experiment.schedule(state['step']),
    'gradient_norm': norm(trained(gradients)),
    'parameter_norm': norm(trained(params)),
    'update_norm': norm(trained(updates)),
  }
  return state_lib.TrainState(
    step=state['step'] + 1, params=params, opt_state=opt_state, ema=ema
  ), metrics
