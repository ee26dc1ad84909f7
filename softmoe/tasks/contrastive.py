"""Images and texts that belong together, told from those that do not.

Contrastive training of two towers as in CLIP, LiT and SigLIP, of which the
Soft MoE paper has its Table 3 (Puigcerver et al. 2023,
https://arxiv.org/abs/2308.00951, section 4): with `optimizer.frozen` and `init`
the tower of images is locked, as it was trained (LiT, Zhai et al. 2022,
https://arxiv.org/abs/2111.07991). Losses of the MoE layers of both towers are
added; the paper's code leaves them out.

Axes: `b` pairs, `z` width of the representation.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import config as config_lib
from softmoe.data.captioned import batches, sources
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.data.images import value_range
from softmoe.errors import UserError
from softmoe.models import stack, two_tower
from softmoe.models.config import TextConfig, ViTConfig
from softmoe.tasks import (
  auxiliary,
  contrast,
  matching,
  means,
  pictures,
  retrieval,
  vocabularies,
)
from softmoe.tasks import task as task_lib

LOSSES = ('sigmoid', 'softmax')


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Config):
  """An experiment in contrastive learning of images and texts."""

  task: str = 'contrastive'
  loss: str = 'sigmoid'  # or 'softmax'
  model: ViTConfig = ViTConfig()  # the tower of images
  text: TextConfig = TextConfig()  # the tower of texts
  data: CaptionedDataConfig = CaptionedDataConfig()
  checkpoint: config_lib.CheckpointConfig = config_lib.CheckpointConfig(
    best_metric='loss'
  )
  zeroshot: matching.ZeroshotConfig = matching.ZeroshotConfig()


class Contrastive(vocabularies.OfTokens):
  """Images and texts to directions, by two towers."""

  Config = Config
  unit = 'pair'
  shown = ('loss', matching.ZEROSHOT, 'learning_rate')
  part = 'image', 'classification'
  additive = False
  reader = 'text'

  def __init__(self, config: Config):
    """Checks what is special to the task; opens the tokenizer if it has to.

    Raises:
      UserError: as `vocabularies.OfTokens`, or a field is wrong.
    """
    if config.loss not in LOSSES:
      raise UserError.of_field(config, 'loss', f'one of {LOSSES}')
    pictures.check(config)
    matching.check(config)
    super().__init__(config)

  def make_model(self, rngs: nnx.Rngs) -> two_tower.TwoTower:
    """Returns two towers, plain or with MoE blocks."""
    config, data = self.config, self.config.data
    return two_tower.TwoTower(
      config.model,
      config.text,
      image_size=data.image_size,
      channels=data.channels,
      length=data.length,
      with_bias=config.loss == 'sigmoid',
      rngs=rngs,
    )

  def train_batches(
    self, rows: task_lib.Rows, start_step: int = 0
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns images, shuffled and augmented, each with one of its texts."""
    return batches.train_batches(
      self.config.data,
      self.tokenizer,
      seed=self.config.seed,
      start_step=start_step,
      rows=rows,
    )

  def eval_batches(
    self, split: str, rows: task_lib.Rows
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns images of a split, in order, each with one of its texts."""
    data = self.config.data
    return batches.eval_batches(data, self.tokenizer, split, rows=rows)

  def fingerprint(self) -> str:
    """Returns that of the images, the captions and the tokenizer."""
    found = sources.fingerprint(self.config.data)
    both = f'{found} {self.tokenizer.fingerprint}'
    return hashlib.sha256(both.encode()).hexdigest() if found else ''

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `data.captioned.batches` says."""
    data = self.config.data
    array = jax.ShapeDtypeStruct
    return {
      'image': array((size, *data.image_size, data.channels), jnp.uint8),
      'tokens': array((size, data.length), jnp.int32),
      'text_mask': array((size, data.length), jnp.bool_),
      'label': array((size,), jnp.int32),
    }

  def loss(
    self,
    model: two_tower.TwoTower,
    batch: task_lib.Batch,
    key: Any = None,
    *,
    router_options: dict[str, Any] | None = None,
  ) -> task_lib.Loss:
    """Returns the loss, and what cosines are multiplied by.

    Args:
      model: of `make_model`.
      batch: of `train_batches` or `eval_batches`.
      key: for dropout and routing noise; None at evaluation.
      router_options: further arguments of the routers' calls, by name.
    """
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    mask = batch.get('mask')
    images, first = model.embed_images(
      self._floats(batch['image']),
      keys[0],
      None if mask is None else mask > 0,
      router_options,
    )
    texts, second = model.embed_texts(
      batch['tokens'], batch['text_mask'], keys[1], router_options
    )
    real = jnp.ones_like(images[:, 0]) if mask is None else mask
    losses = self._losses(model, images, texts, real)
    count = jnp.sum(real)
    return task_lib.Loss(
      sum=jnp.sum(losses * real),
      weight=count,
      metrics={'scale': jnp.exp(model.log_scale[...]) * count},
      aux=auxiliary.merge(first, second, 'text'),
    )

  def infer(
    self, model: two_tower.TwoTower, batch: task_lib.Batch
  ) -> tuple[Float[Array, 'b z'], Float[Array, 'b z']]:
    """Returns the directions of images and of texts."""
    return self.embed_images(model, batch), self.embed_texts(model, batch)

  def embed_images(
    self, model: two_tower.TwoTower, batch: task_lib.Batch
  ) -> Float[Array, 'b z']:
    """Returns the directions of a batch's images."""
    mask = batch['mask'] > 0 if 'mask' in batch else None
    return model.embed_images(self._floats(batch['image']), mask=mask)[0]

  def embed_texts(
    self, model: two_tower.TwoTower, batch: task_lib.Batch
  ) -> Float[Array, 'b z']:
    """Returns the directions of a batch's texts."""
    return model.embed_texts(batch['tokens'], batch['text_mask'])[0]

  def features(
    self, model: two_tower.TwoTower, batch: task_lib.Batch
  ) -> Float[Array, 'b z']:
    """Returns the representation of a batch's images."""
    images = self._floats(batch['image'])
    return model.image.represent(images, mask=batch['mask'] > 0)[0]

  def exchange(self, params: task_lib.Params) -> task_lib.Params:
    """Returns parameters as they are without `scan`."""
    return self._change_blocks(params, stack.unstack)

  def take(self, params: task_lib.Params) -> task_lib.Params:
    """Returns the inverse of `exchange`."""
    return self._change_blocks(params, stack.stack)

  def of_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> 'Contrastive':
    """Returns the task with the images that these shapes are of."""
    path = f'{self.part[0]}/patches/position'
    size = pictures.size_of(self.config, shapes, path)
    data = dataclasses.replace(self.config.data, image_size=size)
    return Contrastive(dataclasses.replace(self.config, data=data))

  def adopt(
    self, params: task_lib.Params, source: Any, fresh: task_lib.Params
  ) -> task_lib.Params:
    """Returns them with the positions of this resolution.

    The source may be of classification: its model is the tower of images.
    """
    params = super().adopt(params, source, fresh)
    image = pictures.resized(params['image'], source.config, self.config)
    return params | {'image': image}

  def ratings(self) -> tuple[str, ...]:
    """Returns the loss, the recalls and the accuracy."""
    classes = self.config.zeroshot.source or self.config.data.captions
    return ('loss', *retrieval.NAMES, *([matching.ZEROSHOT] if classes else ()))

  def evaluators(
    self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ) -> tuple[task_lib.Evaluator, ...]:
    """Returns the loss over batches of a split; zero-shot and retrieval."""
    return (
      means.over_split(self, graphdef, mesh),
      matching.Matching(self, graphdef, mesh),
    )

  def _losses(self, model, images, texts, real) -> Float[Array, ' b']:
    scale = model.log_scale[...]
    if model.bias is None:
      return contrast.softmax(images, texts, real, scale)
    return contrast.sigmoid(images, texts, real, scale, model.bias[...])

  def _change_blocks(self, params, change) -> task_lib.Params:
    towers = {'image': self.config.model, 'text': self.config.text}
    return params | {
      name: params[name] | {'blocks': change(params[name]['blocks'], config)}
      for name, config in towers.items()
    }

  def _floats(self, images: jax.Array) -> jax.Array:
    return value_range.to_floats(images, self.config.data.value_range)
