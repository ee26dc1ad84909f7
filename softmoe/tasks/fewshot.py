"""Few-shot accuracy: a linear classifier on what the model sees in images.

Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951, "10-shot": a ridge
regression, in closed form, on the frozen representation before the head, from
a few images of each class. One strength of the regularisation serves all seeds
of a number of shots.

We depart from the authors' code in how that strength is chosen. Theirs takes
the one that is best on the test images; here it is chosen on other images (a
split for it, or images of each class that no seed trains on), and the test
images are looked at once, so that the accuracy is not that of a maximum.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Float

from softmoe.data import prefetch
from softmoe.data.images import batches
from softmoe.data.images import source as source_lib
from softmoe.data.images.config import PictureDataConfig
from softmoe.tasks import means, ridge, shots
from softmoe.tasks import task as task_lib


class Result(NamedTuple):
  """The outcome of one number of shots.

  Attributes:
    accuracies: on the test images, of each seed.
    l2: the strength of the regularisation.
  """

  accuracies: list[float]
  l2: float


def make(
  task: task_lib.Task,
  graphdef: nnx.GraphDef,
  mesh: jax.sharding.Mesh,
  config: shots.FewshotConfig,
) -> Any:
  """Returns a function from parameters to a `Result` for each number of shots.

  Args:
    task: with `features`, whose config has a `PictureDataConfig` as its `data`.
    graphdef: `nnx.merge(graphdef, params)` is the model.
    mesh: where the parameters are; the batch is split over all of it.
    config: of the evaluation.

  Raises:
    UserError: a field is wrong, or the images cannot be read or are too few.
  """
  data: Any = dataclasses.replace(task.config.data, source=config.source)
  drawn = shots.draw(config, data.max_pixels)
  features = jax.jit(functools.partial(_features, task, graphdef))
  # On every device whole, so that every process has all of them.
  see = lambda params, images: _see(features, params, images, data, mesh)

  def evaluate(params: task_lib.Params) -> dict[int, Result]:
    pool, test = see(params, drawn.pool), see(params, drawn.test)
    if drawn.val is None:
      val = pool[drawn.held_out], drawn.pool.labels[drawn.held_out]
    else:
      val = see(params, drawn.val), drawn.val.labels
    return {
      n: _probe(pool, drawn, n, val, (test, drawn.test.labels))
      for n in config.shots
    }

  return evaluate


def evaluator(
  task: task_lib.Task,
  graphdef: nnx.GraphDef,
  mesh: jax.sharding.Mesh,
  config: shots.FewshotConfig,
) -> task_lib.Evaluator:
  """Returns an evaluator that says `fewshot/10shot`, the mean over the seeds.

  It reads its own splits, whichever it is called with.

  Raises:
    UserError: as `make`.
  """
  evaluate = make(task, graphdef, mesh, config)
  return lambda params, split: {
    f'fewshot/{n}shot': float(np.mean(result.accuracies))
    for n, result in evaluate(params).items()
  }


def _features(
  task: task_lib.Task,
  graphdef: nnx.GraphDef,
  params: task_lib.Params,
  batch: task_lib.Batch,
) -> jax.Array:
  model = nnx.merge(graphdef, params)
  features = task.features(model, batch)
  return jax.reshard(features.astype(jnp.float32), jax.P())


def _see(
  features: Any,
  params: task_lib.Params,
  images: shots.Images,
  data: PictureDataConfig,
  mesh: jax.sharding.Mesh,
) -> Float[np.ndarray, 'n d']:
  """Returns the features of images, in their order."""
  source = source_lib.Selection(images.source, images.indices)
  rows = prefetch.local_rows(mesh, data.eval_batch_size)
  local = batches.of_source(data, source, rows=rows)
  placed = prefetch.to_devices(local, mesh, data.prefetch)
  seen = means.one_late(features(params, batch) for batch in placed)
  return np.concatenate([jax.device_get(x) for x in seen])[: len(source)]


def _probe(
  pool: np.ndarray,
  drawn: shots.Draw,
  count: int,
  val: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
) -> Result:
  """Returns the accuracies of one number of shots, at the l2 `val` asks for."""
  fitted = []
  for ranked in drawn.ranked:
    chosen = ranked[:, :count].ravel()
    labels = drawn.pool.labels[chosen]
    fitted.append(ridge.fit(pool[chosen], labels, len(ranked)))
  mean = np.mean([each.accuracies(*val) for each in fitted], axis=0)
  # Of equals the strongest.
  l2 = float(ridge.L2[mean == mean.max()].max())
  features, labels = test
  right = [each.classify(features, l2) == labels for each in fitted]
  return Result([float(np.mean(r)) for r in right], l2)
