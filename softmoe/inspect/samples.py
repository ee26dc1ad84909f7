"""Some of the examples: which tokens go where, as pictures or as text."""

from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from softmoe.inspect.numbers import plain
from softmoe.inspect.observed import Layer, Observed
from softmoe.models import patches
from softmoe.tables.report.figures.marks import Figure
from softmoe.tables.report.plots import pixels

_IMAGES, _TEXTS = 4, 2
_LAYERS = 3
_MAPS = 15  # of slots over one picture
_TOKENS = 256  # of a text that are shown


def numbers(observed: Observed) -> list[dict[str, Any]]:
  """Returns what is shown of each example, as JSON takes it."""
  images, texts = _images(observed), _texts(observed)
  return [
    {'example': i}
    | (_of_image(observed, i) if i < images else {})
    | (_of_text(observed, i) if i < texts else {})
    for i in range(max(images, texts))
  ]


def figures(observed: Observed) -> list[Figure]:
  """Returns heat maps over the first images; none for other tasks."""
  return [
    _heat_maps(observed, layer, i)
    for i in range(_images(observed))
    for layer in _some(of_patches(observed))
  ]


def texts(observed: Observed) -> str:
  """Returns the first texts as HTML, each token with its expert's colour."""
  return ''.join(
    f'<h3>Text {i + 1}, {escape(layer.name)}</h3>'
    + _coloured(observed, layer, i)
    for i in range(_texts(observed))
    for layer in _some(of_words(observed))
  )


def of_patches(observed: Observed) -> list[Layer]:
  """Returns the layers whose tokens are parts of an image."""
  if 'image' not in observed.batch:
    return []
  return [k for k in observed.layers if k.token_ids is None]


def of_words(observed: Observed) -> list[Layer]:
  """Returns the layers whose tokens are places in a vocabulary."""
  return [k for k in observed.layers if k.token_ids is not None]


def grid(observed: Observed) -> tuple[int, int]:
  """Returns the rows and columns of patches."""
  config: Any = observed.experiment.config
  return patches.grid(config.data.image_size, config.model.patch_size)


def as_grid(values: Float[np.ndarray, ' m'], shape: tuple[int, int]) -> Any:
  """Returns numbers of tokens where the patches are; a class token has none."""
  return values[-shape[0] * shape[1] :].reshape(shape)


def _some(layers: list[Layer]) -> list[Layer]:
  """Returns the first layer, the last, and one between."""
  places = np.linspace(0, len(layers) - 1, _LAYERS).round().astype(int)
  return [layers[i] for i in dict.fromkeys(places.tolist())]


def _images(observed: Observed) -> int:
  return (
    min(_IMAGES, len(observed.batch['mask'])) if of_patches(observed) else 0
  )


def _of_image(observed: Observed, i: int) -> dict[str, Any]:
  return {
    'label': int(observed.batch['label'][i]),
    'take': {k.name: plain(k.take[i]) for k in _some(of_patches(observed))},
  }


def _heat_maps(observed: Observed, layer: Layer, i: int) -> Figure:
  shape = grid(observed)
  config: Any = observed.experiment.config
  covered = tuple(
    n * p for n, p in zip(shape, config.model.patch_size, strict=True)
  )
  take = layer.take[i]
  chosen = np.sort(np.argsort(-take.max(axis=0), kind='stable')[:_MAPS])
  kind = 'slot' if layer.granted is None else 'expert'
  maps = [
    (
      f'{kind} {j}: {take[:, j].max():.2f}',
      as_grid(take[:, j] / (take[:, j].max() or 1), shape),
    )
    for j in chosen.tolist()
  ]
  title = f'Image {i + 1}, {layer.name}: what each {kind} takes'
  image = observed.batch['image'][i]
  return Figure(title, pixels.over_picture(title, image, covered, maps), [])


def _texts(observed: Observed) -> int:
  if not hasattr(observed.experiment.task, 'tokenizer'):
    return 0
  return min(_TEXTS, len(observed.batch['mask'])) if of_words(observed) else 0


def _of_text(observed: Observed, i: int) -> dict[str, Any]:
  layers = of_words(observed)
  return {
    'tokens': {k.name: _words(observed, k, i) for k in layers},
    'experts': {k.name: plain(_first(k, i)) for k in layers},
  }


def _words(observed: Observed, layer: Layer, i: int) -> list[str]:
  """Returns the tokens of an example that a layer sees, as text."""
  task: Any = observed.experiment.task
  assert layer.token_ids is not None
  tokens = layer.token_ids[i][layer.real[i]]
  return [task.tokenizer.decode(tokens[j : j + 1]) for j in range(len(tokens))]


def _first(layer: Layer, i: int) -> Int[np.ndarray, ' _m']:
  """Returns the expert of the largest weight for each token; -1: none."""
  give = layer.give[i][layer.real[i]]
  weights = give.reshape(len(give), layer.num_experts, -1).sum(axis=-1)
  return np.where(weights.max(axis=-1) > 0, weights.argmax(axis=-1), -1)


def _coloured(observed: Observed, layer: Layer, i: int) -> str:
  words = _words(observed, layer, i)[:_TOKENS]
  spans = ''.join(_spans(words, _first(layer, i), layer.num_experts))
  return f'<p class="tokens">{spans}</p>'


def _spans(
  words: list[str], experts: Int[np.ndarray, ' _m'], count: int
) -> Iterable[str]:
  for word, expert in zip(words, experts.tolist(), strict=False):
    said = escape(word).replace('\n', '↵\n') or '◦'  # a special token
    if expert < 0:
      yield f'<span>{said}</span>'
    else:
      hue = round(360 * expert / count)
      yield f'<span style="--h:{hue}">{said}<sub>{expert}</sub></span>'
