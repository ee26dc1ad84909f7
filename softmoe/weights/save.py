"""Parameters into a folder that other libraries read."""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from softmoe.errors import UserError
from softmoe.weights import fit, row
from softmoe.weights.formats.format import Format

Arrays = dict[str, Shaped[np.ndarray, '...']]


def arrays(
  form: Format, model: Any, params: Mapping[str, Shaped[np.ndarray, '...']]
) -> Arrays:
  """Returns parameters under the names, and in the shapes, of a format.

  Args:
    form: the format.
    model: config of the model.
    params: by path, without `scan`.

  Raises:
    UserError: it has no name for one of them.
  """
  params = form.fold(params)
  groups: dict[str, list[row.Row]] = {}
  for each in form.rows(model, params.keys()):
    if each.path in params:
      groups.setdefault(each.name, []).append(each)
  named = {each.path for rows in groups.values() for each in rows}
  if nameless := sorted(params.keys() - named):
    expected = f'a format with names for {fit.some(nameless)}'
    raise UserError('--to', form.name, expected)
  return {name: row.write(rows, params) for name, rows in groups.items()}


def check_new(out: pathlib.Path) -> None:
  """Raises a UserError unless a folder can be made there."""
  taken = out.exists() and not (out.is_dir() and not any(out.iterdir()))
  if taken:
    raise UserError('OUT', str(out), 'a new or empty folder')


def write_folder(
  out: pathlib.Path,
  form: Format,
  named: Arrays,
  config: dict[str, Any],
  card: str,
) -> None:
  """Writes weights, `config.json` and `README.md`, all of it or nothing.

  Args:
    out: a new or empty folder.
    form: the format.
    named: what `arrays` returns.
    config: content of the `config.json`.
    card: text of the model card.

  Raises:
    UserError: the folder cannot be made or written to.
  """
  partial = out.with_name(f'.{out.name}.partial')
  try:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(partial / form.file, named)
    text = json.dumps(config, indent=2)
    (partial / 'config.json').write_text(text + '\n')
    (partial / 'README.md').write_text(card)
    os.replace(partial, out)
  except OSError as e:
    expected = f'a folder that can be written ({e.strerror})'
    raise UserError('OUT', str(out), expected) from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write(path: pathlib.Path, named: Arrays) -> None:
  if path.suffix == '.npz':
    with path.open('wb') as file:
      np.savez(file, allow_pickle=False, **named)
    return
  from safetensors.numpy import save_file

  # Hugging Face's reader asks which library the layout is of.
  save_file(named, path, metadata={'format': 'pt'})
