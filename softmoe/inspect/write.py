"""Writes the page and the numbers of an inspection."""

import contextlib
import json
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from softmoe.errors import UserError
from softmoe.inspect import numbers, observed, page, samples


class Run(NamedTuple):
  """What is inspected; see `observed.observe`."""

  workdir: pathlib.Path
  step: str
  split: str
  examples: int


def write(run: Run, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `inspect.html` and `inspect.json`, and returns their paths.

  Raises:
    UserError: the run cannot be inspected, or the folder not be written to.
  """
  seen = observed.observe(*run)
  with _writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  found = _numbers(run, seen)
  files = {
    'inspect.html': page.write(seen, found, _command(run)),
    'inspect.json': json.dumps(found, allow_nan=False) + '\n',
  }
  with _writing(folder):
    for name, content in files.items():
      (folder / name).write_text(content, encoding='utf-8')
  return [folder / name for name in files]


def _numbers(run: Run, seen: observed.Observed) -> dict[str, Any]:
  labels = seen.batch.get('label')
  return {
    'workdir': str(run.workdir),
    'step': seen.step,
    'split': seen.split,
    'examples': len(seen.batch['mask']),
    'layers': [numbers.of_layer(layer, labels) for layer in seen.layers],
    'dropping': numbers.dropping(seen),
    'samples': samples.numbers(seen),
  }


def _command(run: Run) -> str:
  given = [f'--step={run.step}'] * (run.step != 'latest')
  given += [f'--split={run.split}'] * bool(run.split)
  given += [f'--examples={run.examples}']
  words = ['python', '-m', 'softmoe.inspect', str(run.workdir), *given]
  return shlex.join(words)


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    expected = f'a folder that can be written to ({e.strerror})'
    raise UserError('--out', str(folder), expected) from e
