"""The formats by name, and which one a file is of."""

from collections.abc import Collection

from softmoe.errors import UserError
from softmoe.weights.formats import (
  big_vision,
  gpt2,
  hugging_face,
  own,
  timm,
  vmoe,
)
from softmoe.weights.formats.format import Format

FORMATS = {
  module.FORMAT.name: module.FORMAT
  for module in (timm, hugging_face, big_vision, vmoe, gpt2, own)
}


def find(field: str, name: str) -> Format:
  """Returns the format of this name.

  Raises:
    UserError: there is none; it names `field`.
  """
  if name not in FORMATS:
    raise UserError(field, name, f'one of {list(FORMATS)}')
  return FORMATS[name]


def detect(names: Collection[str]) -> Format:
  """Returns the format that a file with arrays of these names is of.

  Raises:
    UserError: none of them.
  """
  for found in FORMATS.values():
    if found.is_it(names):
      return found
  some = ', '.join(sorted(names)[:3])
  expected = f'arrays named as in one of {list(FORMATS)}'
  raise UserError('weights', f'a file with {some or "nothing"}', expected)
