"""Text of TensorFlow Datasets: `tfds:NAME`; see `softmoe.data.tfds`.

A document is an example's feature `text`, or its only feature of text.
"""

import dataclasses
from typing import Any

from softmoe.data import tfds as tfds_lib
from softmoe.data.text import documents


@dataclasses.dataclass(frozen=True)
class TfdsDocuments:
  """The text of a split's examples."""

  examples: tfds_lib.Examples
  key: str

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> str:
    name = f'tfds:{self.examples.name}, example {index}'
    return documents.decode(self.examples[index][self.key], name)


def open_splits(argument: str) -> dict[str, documents.Documents]:
  """Returns the documents of each split; reads none.

  Raises:
    UserError: the data set is unknown, not prepared, prepared in a format
      without random access, or has no text.
  """
  builder = tfds_lib.find(argument)
  key = _key(argument, builder.info.features)
  return {
    name: TfdsDocuments(tfds_lib.examples(argument, builder, name), key)
    for name in builder.info.splits
  }


def _key(name: str, features: Any) -> str:
  from tensorflow_datasets import features as tfds_features

  found = [
    key
    for key, feature in features.items()
    if isinstance(feature, tfds_features.Text)
  ]
  if 'text' in found:
    return 'text'
  if len(found) == 1:
    return found[0]
  expected = (
    f"a data set with one feature of text, or 'text', not {sorted(found)}"
  )
  raise tfds_lib.wrong(name, expected)
