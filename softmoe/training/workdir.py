"""The directory of one run: who owns it, and what it holds.

`config.json`, `params.txt`, `metrics.jsonl`, TensorBoard events,
`checkpoints/`, and at the end `result.json`.
"""

import json
import os
import pathlib
from typing import Any

from softmoe import config as config_lib
from softmoe.errors import UserError

# Fields that may change from one start of a run to the next: none of them
# changes a number that the run computes, but for the order of a sum.
_FREE = (
  'mesh',
  'fsdp',
  'log_every',
  'eval_every',
  'checkpoint.',
  'data.threads',
  'data.prefetch',
  'data.eval_batch_size',
)


def claim(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Makes sure that `workdir` is new, empty, or of this very experiment.

  Nothing is written into it.

  Raises:
    UserError: it cannot be written to, holds files of something else, or
      belongs to another experiment.
  """
  _make(workdir)
  if not (workdir / 'config.json').exists():
    if any(workdir.iterdir()):
      raise UserError(
        '--workdir', str(workdir), 'a directory that is new, empty or of a run'
      )
    return
  for field, (old, new) in config_lib.differences(
    read_config(workdir), config
  ).items():
    if not field.startswith(_FREE):
      raise UserError(
        f'config.{field}',
        new,
        f'{old!r}, as the run in {workdir} has it; or take another --workdir',
      )


def read_config(workdir: pathlib.Path) -> config_lib.Config:
  """Returns the config of the run in `workdir`.

  Raises:
    UserError: there is none, or it is not one.
  """
  path = workdir / 'config.json'
  try:
    return config_lib.parse(json.loads(path.read_text()))
  except (OSError, json.JSONDecodeError) as e:
    raise UserError(
      '--workdir', str(workdir), f'a directory with a run ({path}: {e})'
    ) from e


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON file at once: a reader sees all of it or the one before."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(value, indent=2) + '\n')
  temporary.replace(path)


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns what a finished run wrote to `result.json`, None if it did not."""
  path = workdir / 'result.json'
  return json.loads(path.read_text()) if path.exists() else None


def _make(workdir: pathlib.Path) -> None:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    writable = os.access(workdir, os.W_OK | os.X_OK)
  except OSError as e:
    raise UserError(
      '--workdir', str(workdir), f'a directory that can be made ({e.strerror})'
    ) from e
  if not writable:
    raise UserError('--workdir', str(workdir), 'a writable directory')
