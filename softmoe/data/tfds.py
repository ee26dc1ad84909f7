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
    UserError: the data set is not prepared, or not as the library does it.
  """
  # The import costs seconds.
  from google.protobuf import json_format
  from tensorflow_datasets.core import read_only_builder

  folder = os.path.expanduser(os.environ.get('TFDS_DATA_DIR', ''))
  try:
    # Not `tfds.builder`, which would run the code that made the data: some of
    # it needs TensorFlow, and does not even know its own name without.
    return read_only_builder.builder_from_files(name, data_dir=folder)
  except (ImportError, OSError, ValueError, json_format.ParseError) as error:
    raise wrong(name, _preparation(name, error)) from error


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


def _preparation(name: str, error: Exception) -> str:
  command = f'tfds build {name or "NAME"} --file_format=array_record'
  # Behind an empty line come examples.
  reason = ' '.join(str(error).partition('\n\n')[0].split())
  return f'data prepared by `{command}` (needs `{_TOOLS}`): {reason}'


def _conversion(builder: Any) -> str:
  command = (
    f'tfds convert_format --dataset_version_dir={builder.data_dir}'
    ' --out_file_format=array_record'
  )
  given = builder.info.file_format.value
  expected = f'data in array_record, not {given}: run `{command}` once'
  return f'{expected} (needs `{_TOOLS}`)'
