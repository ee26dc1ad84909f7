"""Image classification.

Axes: `b` images, `c` classes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softmoe import config as config_lib
from softmoe.data.images import batches, sources, value_range
from softmoe.data.images.config import ImageDataConfig
from softmoe.errors import UserError
from softmoe.models import stack, vit
from softmoe.ranges import SHARE, Range
from softmoe.tasks import fewshot, losses, means, pictures, shots
from softmoe.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Config):
  """An experiment in image classification."""

  loss: str = 'softmax'  # or 'sigmoid'
  label_smoothing: Annotated[float, SHARE] = 0.0
  # Alpha of the beta distribution; 0: off.
  mixup: Annotated[float, Range(0.001, 1000, off=True)] = 0.0
  model: vit.ViTConfig = vit.ViTConfig()
  data: ImageDataConfig = ImageDataConfig()
  fewshot: shots.FewshotConfig = shots.FewshotConfig()


class Classification(task_lib.Task):
  """Images to classes, by a vision transformer."""

  Config = Config
  unit = 'image'
  shown = ('loss', 'accuracy', 'learning_rate')
  head = 'head'

  def __init__(self, config: Config):
    """Checks what is special to the task."""
    super().__init__(config)
    self._cross_entropy = losses.cross_entropy(config.loss)
    pictures.check(config)

  def make_model(self, rngs: nnx.Rngs) -> vit.ViT:
    """Returns a ViT, plain or with MoE blocks."""
    data = self.config.data
    sigmoid = self.config.loss == 'sigmoid'
    bias = vit.sigmoid_head_bias(data.num_classes) if sigmoid else 0.0
    return vit.ViT(
      self.config.model,
      image_size=data.image_size,
      channels=data.channels,
      num_classes=data.num_classes,
      head_bias=bias,
      rngs=rngs,
    )

  def train_batches(
    self, rows: task_lib.Rows, start_step: int = 0
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns images and labels, shuffled and augmented."""
    return batches.train_batches(
      self.config.data,
      seed=self.config.seed,
      start_step=start_step,
      rows=rows,
    )

  def eval_batches(
    self, split: str, rows: task_lib.Rows
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns images and labels of a split, in order."""
    return batches.eval_batches(self.config.data, split, rows=rows)

  def fingerprint(self) -> str:
    """Returns that of the images."""
    return sources.fingerprint(self.config.data.source)

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns `image` (b, height, width, channels) and `label` (b,)."""
    data = self.config.data
    shape = (size, *data.image_size, data.channels)
    return {
      'image': jax.ShapeDtypeStruct(shape, jnp.uint8),
      'label': jax.ShapeDtypeStruct((size,), jnp.int32),
    }

  def prepare(
    self, batch: task_lib.Batch, key: PRNGKeyArray | None
  ) -> task_lib.Batch:
    """Returns float images and, for labels, the share of each class."""
    config = self.config
    smoothing = 0.0 if key is None else config.label_smoothing
    images = self._floats(batch['image'])
    labels = losses.soft_labels(
      batch['label'], config.data.num_classes, smoothing
    )
    if key is not None and config.mixup:
      images, labels = losses.mixup(key, images, labels, config.mixup)
    return batch | {'image': images, 'label': labels}

  def loss(
    self,
    model: vit.ViT,
    batch: task_lib.Batch,
    key: PRNGKeyArray | None = None,
    *,
    router_options: dict[str, Any] | None = None,
  ) -> task_lib.Loss:
    """Returns the cross-entropy and the accuracy."""
    mask, labels = batch.get('mask'), batch['label']
    real = None if mask is None else mask > 0
    logits, aux = model(batch['image'], key, real, router_options)
    correct = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)
    total = functools.partial(_total, mask=mask)
    return task_lib.Loss(
      sum=total(self._cross_entropy(logits, labels)),
      weight=total(jnp.ones_like(labels[:, 0])),
      metrics={'accuracy': total(correct.astype(jnp.float32))},
      aux=aux,
    )

  def infer(self, model: vit.ViT, batch: task_lib.Batch) -> jax.Array:
    """Returns the logits of the images."""
    return model(self._floats(batch['image']))[0]

  def features(
    self, model: vit.ViT, batch: task_lib.Batch
  ) -> Float[Array, 'b d']:
    """Returns the pooled representation that the head sees."""
    images = self._floats(batch['image'])
    return model.represent(images, mask=batch['mask'] > 0)[0]

  def exchange(self, params: task_lib.Params) -> task_lib.Params:
    """Returns parameters as they are without `scan`."""
    blocks = stack.unstack(params['blocks'], self.config.model)
    return params | {'blocks': blocks}

  def take(self, params: task_lib.Params) -> task_lib.Params:
    """Returns the inverse of `exchange`."""
    blocks = stack.stack(params['blocks'], self.config.model)
    return params | {'blocks': blocks}

  def of_shapes(
    self, shapes: Mapping[str, tuple[int, ...]]
  ) -> 'Classification':
    """Returns the task of so many classes, and of that grid of patches.

    The grid is this task's, if it has as many patches, or else a square.
    """
    data = self.config.data
    sizes: dict[str, Any] = {
      'image_size': pictures.size_of(self.config, shapes, 'patches/position')
    }
    if 'head/bias' in shapes:
      sizes['num_classes'] = shapes['head/bias'][-1]
    data = dataclasses.replace(data, **sizes)
    return Classification(dataclasses.replace(self.config, data=data))

  def adopt(
    self,
    params: task_lib.Params,
    source: 'Classification',
    fresh: task_lib.Params,
  ) -> task_lib.Params:
    """Returns them with the positions of this resolution, and its head.

    The head is kept, or that of a run without `init`: a kernel of zeros.
    """
    here, there = self.config.data, source.config.data
    head = params['head']
    if self.config.init_head == 'reset':
      head = fresh['head']
    elif there.num_classes != here.num_classes:
      expected = (
        f"'reset', since {self.config.init!r} has {there.num_classes} classes, "
        f'and config.data.num_classes is {here.num_classes}'
      )
      raise UserError('config.init_head', 'keep', expected)
    return pictures.resized(params, source.config, self.config) | {'head': head}

  def ratings(self) -> tuple[str, ...]:
    """Returns the loss and the accuracies."""
    few = self.config.fewshot
    shots = few.shots if few.source else ()
    return ('loss', 'accuracy', *(f'fewshot/{n}shot' for n in shots))

  def evaluators(
    self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ) -> tuple[task_lib.Evaluator, ...]:
    """Returns loss and accuracy over a split, and few-shot accuracies."""
    found = [means.over_split(self, graphdef, mesh)]
    if self.config.fewshot.source:
      found.append(fewshot.evaluator(self, graphdef, mesh, self.config.fewshot))
    return tuple(found)

  def _floats(self, images: jax.Array) -> jax.Array:
    return value_range.to_floats(images, self.config.data.value_range)


def _total(values: jax.Array, mask: jax.Array | None) -> jax.Array:
  return jnp.sum(values if mask is None else values * mask)
