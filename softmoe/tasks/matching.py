"""Zero-shot classification and retrieval, as an evaluator.

Radford et al., 2021, https://arxiv.org/abs/2103.00020, section 3.1: an image is
of the class whose texts, put into templates, have on average the nearest
direction. Nothing is learnt of the classes.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from softmoe.data import prefetch
from softmoe.data.captioned import batches, sources
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.errors import UserError, naming
from softmoe.tasks import means, retrieval
from softmoe.tasks import task as task_lib

ZEROSHOT = 'zeroshot'


@dataclasses.dataclass(frozen=True)
class ZeroshotConfig:
  """Classes that are told apart by their texts."""

  # Labelled images; empty: the run's own, of the split that is evaluated.
  source: str = ''
  split: str = 'test'  # of `source`
  captions: str = ''  # of the classes of `source`, as in `data`
  # What a text of a class stands in, in place of {}; all are averaged.
  templates: tuple[str, ...] = ('{}',)

  def data(self, own: CaptionedDataConfig) -> CaptionedDataConfig:
    """Returns where the classes are from, given where the run's data is."""
    if not self.source:
      return own
    change = dict(source=self.source, captions=self.captions)
    return dataclasses.replace(own, **change)


def check(config: Any) -> None:
  """Raises a UserError that names a wrong field of `config.zeroshot`."""
  zeroshot = config.zeroshot
  if not zeroshot.templates or any('{}' not in t for t in zeroshot.templates):
    expected = "texts with {} in them, such as ('a photo of a {}',)"
    raise UserError.of_field(config, 'zeroshot.templates', expected)
  if bool(zeroshot.source) != bool(zeroshot.captions):
    expected = 'one where there is a source, and none else'
    raise UserError.of_field(config, 'zeroshot.captions', expected)


class Matching:
  """Embeds images and texts of a task, and compares them."""

  def __init__(
    self, task: Any, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ):
    """Takes the task, whose `embed_images` and `embed_texts` it uses.

    Args:
      task: a `contrastive.Contrastive`.
      graphdef: `nnx.merge(graphdef, params)` is the model.
      mesh: where the parameters are.
    """
    self._task, self._mesh, self._config = task, mesh, task.config
    self._images = jax.jit(functools.partial(_images, task, graphdef))
    self._texts = jax.jit(functools.partial(_texts, task, graphdef))
    if self._config.zeroshot.source:
      with _naming():
        self._open_classes()

  def __call__(self, params: task_lib.Params, split: str) -> dict[str, float]:
    """Returns recalls of a split and, where there are classes, `zeroshot`.

    Raises:
      UserError: the images or texts cannot be read.
    """
    data, zeroshot = self._config.data, self._config.zeroshot
    images, labels = self.images(params, data, split)
    texts = sources.open_split(data, split).texts
    metrics = self._recalls(params, images, labels, texts)
    if zeroshot.source:
      with _naming():
        texts = self._open_classes().texts
        classes = zeroshot.data(data)
        images, labels = self.images(params, classes, zeroshot.split)
    elif not data.captions:
      return metrics
    vectors = self._class_vectors(params, texts)
    return metrics | {ZEROSHOT: retrieval.accuracy(images, labels, vectors)}

  def images(
    self, params: task_lib.Params, data: CaptionedDataConfig, split: str
  ) -> tuple[Float[np.ndarray, 'n z'], Int[np.ndarray, ' n']]:
    """Returns the directions and the groups of a split's images."""
    read = functools.partial(
      batches.eval_batches, data, self._task.tokenizer, split
    )
    found = list(self._see(functools.partial(self._images, params), read))
    vectors, labels, real = map(np.concatenate, zip(*found, strict=True))
    return vectors[real > 0], labels[real > 0]

  def texts(
    self, params: task_lib.Params, texts: list[str]
  ) -> Float[np.ndarray, 't z']:
    """Returns the direction of each text."""
    read = functools.partial(
      batches.text_batches, self._config.data, self._task.tokenizer, texts
    )
    found = self._see(functools.partial(self._texts, params), read)
    return np.concatenate(list(found))[: len(texts)]

  def _open_classes(self) -> sources.Captioned:
    zeroshot = self._config.zeroshot
    return sources.open_split(zeroshot.data(self._config.data), zeroshot.split)

  def _recalls(
    self, params: task_lib.Params, images: Any, labels: Any, texts: Any
  ) -> dict[str, float]:
    groups, labels = np.unique(labels, return_inverse=True)
    of_group = [texts[int(group)] for group in groups]
    places = _places(of_group)
    belongs = np.zeros((len(groups), len(places)), bool)
    for group, each in enumerate(of_group):
      belongs[group, [places[text] for text in each]] = True
    vectors = self.texts(params, list(places))
    return retrieval.recalls(images, labels, vectors, belongs)

  def _class_vectors(
    self, params: task_lib.Params, texts: sources.Texts
  ) -> Float[np.ndarray, 'g z']:
    templates = self._config.zeroshot.templates
    prompts = [
      [t.replace('{}', text) for text in texts[label] for t in templates]
      for label in range(len(texts))
    ]
    places = _places(prompts)
    vectors = self.texts(params, list(places))
    return retrieval.means(vectors, [[places[p] for p in c] for c in prompts])

  def _see(self, embed: Any, read: Any) -> Iterator[Any]:
    """Yields what `embed` makes of each batch, on the host."""
    data = self._config.data
    rows = prefetch.local_rows(self._mesh, data.eval_batch_size)
    placed = prefetch.to_devices(read(rows=rows), self._mesh, data.prefetch)
    return map(jax.device_get, means.one_late(map(embed, placed)))


def _images(
  task: Any, graphdef: nnx.GraphDef, params: task_lib.Params, batch: Any
) -> tuple[jax.Array, ...]:
  model = nnx.merge(graphdef, params)
  found = task.embed_images(model, batch), batch['label'], batch['mask']
  # On every device whole, so that every process has all of them.
  return jax.tree.map(lambda x: jax.reshard(x, jax.P()), found)


def _texts(
  task: Any, graphdef: nnx.GraphDef, params: task_lib.Params, batch: Any
) -> jax.Array:
  model = nnx.merge(graphdef, params)
  return jax.reshard(task.embed_texts(model, batch), jax.P())


def _places(texts: Iterable[Iterable[str]]) -> dict[str, int]:
  """Returns the distinct texts, and a place for each."""
  distinct = dict.fromkeys(itertools.chain.from_iterable(texts))
  return {text: i for i, text in enumerate(distinct)}


def _naming() -> contextlib.AbstractContextManager[None]:
  """Lets errors of the classes name the fields of `config.zeroshot`."""
  split = 'config.zeroshot.split'
  fields = ('split', 'config.data.train_split', 'config.data.eval_split')
  return naming(
    dict.fromkeys(fields, split) | {'config.data.': 'config.zeroshot.'}
  )
