"""A file against the parameters that are wanted: what is where, what is not."""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from softmoe.errors import UserError
from softmoe.weights.arrays import File
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Row

SHOWN = 5  # names that a message has room for


class Fit(NamedTuple):
  """Which of the parameters a file has.

  Attributes:
    rows: of each parameter that it has, by path.
    shapes: of each of these, as the file has it.
    missing: paths of the others.
    left_over: names of the arrays that are none of the parameters.
  """

  rows: dict[str, Row]
  shapes: dict[str, tuple[int, ...]]
  missing: list[str]
  left_over: list[str]


def fit(file: File, form: Format, model: Any, wanted: Collection[str]) -> Fit:
  """Returns what of a file goes where; shapes may still differ.

  Args:
    file: the file.
    form: its format.
    model: config of the model.
    wanted: paths of the parameters, without `scan`.

  Raises:
    UserError: an array has no shape that a parameter can have.
  """
  names = file.arrays.keys()
  table = form.rows(model, names)
  rows = {
    row.path: row for row in table if row.path in wanted and row.name in names
  }
  shapes = {path: _shape(file, row) for path, row in rows.items()}
  used = {name for row in rows.values() for name in row.names()}
  return Fit(
    rows,
    shapes,
    [path for path in wanted if path not in rows],
    [n for n in names if n not in used and not re.fullmatch(form.ignored, n)],
  )


def _shape(file: File, row: Row) -> tuple[int, ...]:
  array = file.arrays[row.name]
  view = row.view(array)
  if view is None:
    expected = f'a file whose {row.name} has the shape of {row.path}'
    if row.heads[1]:
      expected += f' in {row.heads[1]} heads'
    given = f'{file.path}: {row.name} of shape {array.shape}'
    raise UserError('weights', given, expected)
  for scale in row.names() - {row.name}:
    if file.arrays[scale].shape != view.shape[-1:]:
      expected = f'one number for each of the {view.shape[-1]} outputs'
      raise UserError('weights', f'{file.path}: {scale}', expected)
  return view.shape


def check(
  field: str,
  file: File,
  form: Format,
  missing: Collection[str],
  left_over: Collection[str],
  allow: str | None = None,
) -> None:
  """Raises a UserError if anything is unmatched that `allow` does not match.

  Args:
    field: of the config, or an argument, for the error.
    file: the file.
    form: its format.
    missing: paths of parameters that it has not.
    left_over: names of its arrays that are no parameters.
    allow: a regex of whole paths and names, as `config.init_allow` has it;
      None: there is no such field, and nothing is allowed.
  """
  allowed = re.compile(allow or '')
  unknown = [name for name in left_over if not allowed.fullmatch(name)]
  lacking = [path for path in missing if not allowed.fullmatch(path)]
  for name in unknown:
    for word, meaning in form.foreign.items():
      if word in name:
        expected = f'a model without {meaning} ({name}): this one has none'
        raise UserError(field, str(file.path), expected)
  if unknown or lacking:
    problems = ', and '.join(
      f'{what} {some(names)}'
      for what, names in (
        ('the file lacks', lacking),
        ('this model has no place for', unknown),
      )
      if names
    )
    expected = f'a {form.name} file of this model, but {problems}'
    if allow is not None:
      expected += '; --config.init_allow=REGEX lets names go unmatched'
    raise UserError(field, str(file.path), expected)


def some(names: Collection[str]) -> str:
  """Returns the first names, and how many more there are."""
  shown = ', '.join(list(names)[:SHOWN])
  more = len(names) - SHOWN
  return f'{shown} and {more} more' if more > 0 else shown
