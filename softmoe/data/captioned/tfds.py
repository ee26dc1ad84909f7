"""Images with texts of TensorFlow Datasets: see `softmoe.data.tfds`.

A data set has a feature `image`, and one of `captions`, `caption` and `text`:
a text, a sequence of texts, or a sequence with a `text` in each item, as
`coco_captions` has it.
"""

from typing import Any

import numpy as np

from softmoe.data import splits
from softmoe.data import tfds as tfds_lib
from softmoe.data.captioned import own

_IMAGE, _TEXTS = 'image', ('captions', 'caption', 'text')


def open_split(
  argument: str, split: str, max_pixels: int
) -> tuple[own.Images, own.Texts]:
  """Returns images and texts of a whole split; reads none.

  Raises:
    UserError: the data set is unknown, not prepared, prepared in a format
      without random access, or has no images with texts; the split is unknown.
  """
  from tensorflow_datasets import decode as tfds_decode

  builder = tfds_lib.find(argument)
  if split not in builder.info.splits:
    raise splits.unknown(split, builder.info.splits)
  key = _key(argument, builder.info.features)
  # No image is decoded for its texts.
  decoders = {_IMAGE: tfds_decode.SkipDecoding()}
  examples = tfds_lib.examples(argument, builder, split, decoders)
  about = f'tfds:{argument}', len(examples)
  image = lambda index: examples[index][_IMAGE]
  texts = lambda index: _texts(examples[index][key])
  return own.Images(*about, image, max_pixels), own.Texts(*about, texts)


def _texts(found: Any) -> list[bytes]:
  found = found['text'] if isinstance(found, dict) else found
  return [found] if isinstance(found, bytes) else list(map(bytes, found))


def _key(name: str, features: Any) -> str:
  """Returns the name of the feature that holds the texts."""
  known = [key for key in _TEXTS if key in features]
  pixels = _IMAGE in features and features[_IMAGE].np_dtype == np.uint8
  if not pixels or not known:
    expected = f"a data set with 'image' and one of {list(_TEXTS)}"
    raise tfds_lib.wrong(name, expected)
  return known[0]
