"""What a source of text is."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from softmoe.errors import UserError


@runtime_checkable
class Documents(Protocol):
  """Random access to the documents of a split, read when they are asked for."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> str: ...


@dataclasses.dataclass(frozen=True)
class Selection:
  """The documents of `source` at any `indices`, in their order."""

  source: Documents
  indices: Integer[np.ndarray, ' n']

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> str:
    return self.source[int(self.indices[index])]


def decode(content: bytes, name: str) -> str:
  """Returns the text of a document.

  Args:
    content: its UTF-8.
    name: what to call it in an error.

  Raises:
    UserError: it is not valid UTF-8.
  """
  try:
    return content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise wrong(name, f'valid UTF-8 ({error})') from error


def wrong(name: str, expected: str) -> UserError:
  """Returns the error for a source, or a file of one, that cannot be used."""
  return UserError('config.data.source', name, expected)
