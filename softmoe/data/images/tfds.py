"""TensorFlow Datasets, prepared as array_record, read without TensorFlow.

They are looked for in `TFDS_DATA_DIR`, or else where the library keeps them.
Preparing or converting them is a step before, with the library's own command,
for which an environment of its own with `_TOOLS` is best.
"""

import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from softmoe.data import splits
from softmoe.data.images import decode
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_TOOLS = (
  'pip install tensorflow-datasets tensorflow apache-beam mlcroissant'
  ' importlib-resources'
)


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """A split, whose images are decoded when they are read."""

  name: str
  examples: Sequence[Any]
  image_key: str
  label_key: str
  num_classes: int | None
  labels: None = None

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> source_lib.Example:
    try:
      example = self.examples[index]
    except RuntimeError as error:  # a file is missing or damaged
      raise _wrong(self.name, f'files that can be read ({error})') from error
    content = io.BytesIO(example[self.image_key])
    image = decode.decode(content, f'tfds:{self.name}, example {index}')
    return {'image': image, 'label': int(example[self.label_key])}


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split of the data set `argument`; reads no image.

  Raises:
    UserError: the data set is unknown, not prepared, prepared in a format
      without random access, or has no labelled images; the split is unknown.
  """
  builder = _builder(argument)
  if not builder.info.splits:
    command = f'tfds build {argument} --file_format=array_record'
    expected = f'prepared data in {builder.data_dir}: run `{command}`'
    raise _wrong(argument, f'{expected} (needs `{_TOOLS}`)')
  if split not in builder.info.splits:
    raise splits.unknown(split, builder.info.splits)
  image_key, label_key = _keys(argument, builder.info)
  examples = _examples(argument, builder, split, image_key)
  label = builder.info.features[label_key]
  classes = getattr(label, 'num_classes', None)
  return TfdsSource(argument, examples, image_key, label_key, classes)


def _builder(name: str) -> Any:
  import tensorflow_datasets as tfds  # costs seconds to import

  try:
    return tfds.builder(name, data_dir=os.environ.get('TFDS_DATA_DIR'))
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
    expected = 'a name that tensorflow_datasets knows, or that is in its folder'
    raise _wrong(name, expected) from error


def _examples(
  name: str, builder: Any, split: str, image_key: str
) -> Sequence[Any]:
  """Returns the examples of a split, their images still encoded."""
  from tensorflow_datasets import decode as tfds_decode

  # The library would decode with whichever of OpenCV and Pillow is installed,
  # to other pixels, and crash on a damaged image.
  decoders = {image_key: tfds_decode.SkipDecoding()}
  try:
    return builder.as_data_source(split, decoders=decoders)
  except NotImplementedError as error:
    raise _wrong(name, _conversion(builder)) from error


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
  raise _wrong(name, 'a data set of uint8 images with an integer label')


def _conversion(builder: Any) -> str:
  command = (
    f'tfds convert_format --dataset_version_dir={builder.data_dir}'
    ' --out_file_format=array_record'
  )
  given = builder.info.file_format.value
  expected = f'data in array_record, not {given}: run `{command}` once'
  return f'{expected} (needs `{_TOOLS}`)'


def _wrong(name: str, expected: str) -> UserError:
  return UserError('config.data.source', f'tfds:{name}', expected)
