"""Labelled images of TensorFlow Datasets: see `softmoe.data.tfds`."""

import dataclasses
import io
from typing import Any

import numpy as np

from softmoe.data import splits
from softmoe.data import tfds as tfds_lib
from softmoe.data.images import decode
from softmoe.data.images import source as source_lib


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """A split, whose images are decoded when they are read."""

  name: str
  examples: tfds_lib.Examples
  image_key: str
  label_key: str
  num_classes: int | None
  max_pixels: int
  labels: None = None

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> source_lib.Example:
    example = self.examples[index]
    content = io.BytesIO(example[self.image_key])
    name = f'tfds:{self.name}, example {index}'
    image = decode.decode(content, name, self.max_pixels)
    return {'image': image, 'label': int(example[self.label_key])}


def open_split(argument: str, split: str, max_pixels: int) -> source_lib.Source:
  """Returns a whole split of the data set `argument`; reads no image.

  Raises:
    UserError: the data set is unknown, not prepared, prepared in a format
      without random access, or has no labelled images; the split is unknown.
  """
  builder = tfds_lib.find(argument)
  if split not in builder.info.splits:
    raise splits.unknown(split, builder.info.splits)
  image_key, label_key = _keys(argument, builder.info)
  examples = _examples(argument, builder, split, image_key)
  label = builder.info.features[label_key]
  classes = getattr(label, 'num_classes', None)
  keys = image_key, label_key
  return TfdsSource(argument, examples, *keys, classes, max_pixels)


def class_names(argument: str, split: str) -> list[str]:
  """Returns the names of the classes, in the order of their labels.

  Raises:
    UserError: the data set has none.
  """
  del split  # all have the same
  info = tfds_lib.find(argument).info
  names = getattr(info.features[_keys(argument, info)[1]], 'names', None)
  if not names:
    raise tfds_lib.wrong(argument, 'a data set whose classes have names')
  return list(names)


def _examples(
  name: str, builder: Any, split: str, image_key: str
) -> tfds_lib.Examples:
  """Returns the examples of a split, their images still encoded."""
  from tensorflow_datasets import decode as tfds_decode

  # The library would decode with whichever of OpenCV and Pillow is installed,
  # to other pixels, and crash on a damaged image.
  decoders = {image_key: tfds_decode.SkipDecoding()}
  return tfds_lib.examples(name, builder, split, decoders)


def _keys(name: str, info: Any) -> tuple[str, str]:
  """Returns the names of the features that are the image and the label."""
  image, label = info.supervised_keys or ('image', 'label')
  features = info.features
  if image in features and label in features:
    pixels, classes = features[image], features[label]
    is_image = pixels.np_dtype == np.uint8 and len(pixels.shape) == 3
    is_label = np.issubdtype(classes.np_dtype, np.integer) and not classes.shape
    if is_image and is_label:
      return image, label
  raise tfds_lib.wrong(name, 'a data set of uint8 images with an integer label')
