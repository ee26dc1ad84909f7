"""TensorFlow Datasets, prepared as array_record, read without TensorFlow.

They are looked for in `TFDS_DATA_DIR`, or else where the library keeps them.
Preparing or converting them is a step before, with the library's own command,
for which an environment of its own with `_TOOLS` is best.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from softmoe.errors import UserError

_TOOLS = (
  'pip install tensorflow-datasets tensorflow apache-beam mlcroissant'
  ' importlib-resources'
)


@dataclasses.dataclass(frozen=True)
class Examples:
  """The examples of a split, as the library gives them."""

  name: str
  source: Sequence[Any]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Any:
    try:
      return self.source[index]
    except RuntimeError as error:  # a file is missing or damaged
      raise wrong(self.name, f'files that can be read ({error})') from error


def find(name: str) -> Any:
  """Returns the library's builder of a prepared data set; reads no example.

  Raises:
    UserError: the data set is unknown or not prepared.
  """
  builder = _builder(name)
  if not builder.info.splits:
    command = f'tfds build {name} --file_format=array_record'
    expected = f'prepared data in {builder.data_dir}: run `{command}`'
    raise wrong(name, f'{expected} (needs `{_TOOLS}`)')
  return builder


def examples(
  name: str, builder: Any, split: str, decoders: Mapping[str, Any] | None = None
) -> Examples:
  """Returns the examples of a whole split that the data set has.

  Raises:
    UserError: it is prepared in a format without random access.
  """
  try:
    return Examples(name, builder.as_data_source(split, decoders=decoders))
  except NotImplementedError as error:
    raise wrong(name, _conversion(builder)) from error


def wrong(name: str, expected: str) -> UserError:
  """Returns the error for a data set that cannot be used."""
  return UserError('config.data.source', f'tfds:{name}', expected)


def _builder(name: str) -> Any:
  import tensorflow_datasets as tfds  # costs seconds to import

  try:
    return tfds.builder(name, data_dir=os.environ.get('TFDS_DATA_DIR'))
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
    expected = 'a name that tensorflow_datasets knows, or that is in its folder'
    raise wrong(name, expected) from error


def _conversion(builder: Any) -> str:
  command = (
    f'tfds convert_format --dataset_version_dir={builder.data_dir}'
    ' --out_file_format=array_record'
  )
  given = builder.info.file_format.value
  expected = f'data in array_record, not {given}: run `{command}` once'
  return f'{expected} (needs `{_TOOLS}`)'
