"""The result table: one row a run.

python -m softmoe.tables.results runs/vit runs/soft
"""

import pathlib
import sys
from typing import Any

from softmoe.errors import UserError
from softmoe.process import launch
from softmoe.runs import workdir as workdir_lib

HEADER = ('Model', 'Accuracy', 'Parameters', 'GFLOP/image', 'Images/s')


def table(workdirs: list[str]) -> str:
  """Returns a Markdown table of the finished runs in `workdirs`.

  Accuracy is that of the last state on the evaluation split, GFLOP an image
  are those of one forward pass, images/s are those of training.

  Raises:
    UserError: a directory holds no finished run.
  """
  rows = [HEADER, *(row(workdir) for workdir in workdirs)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  rows.insert(1, tuple(rule))
  return '\n'.join(_line(cells, widths) for cells in rows)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
  first, *numbers = map(str.rjust, cells, widths)
  return '| ' + ' | '.join([first.strip().ljust(widths[0]), *numbers]) + ' |'


def row(workdir: str) -> tuple[str, ...]:
  """Returns the cells of one run."""
  result = workdir_lib.read_result(pathlib.Path(workdir))
  if result is None:
    raise UserError('WORKDIR', workdir, 'a directory with a finished run')
  return (
    result['name'],
    f'{result["accuracy"]:.2%}',
    f'{result["params"]:,}',
    _significant(result['gflop_per_image']),
    _rate(result['train']),
  )


def _significant(value: float) -> str:
  return f'{value:#.3g}'.rstrip('.')


def _rate(speed: dict[str, Any]) -> str:
  rate = speed.get('images_per_second')
  return f'{rate:,.0f}' if rate else 'unknown'


def main(argv: list[str]) -> None:
  """Prints the table of the runs that are named."""
  if not argv:
    raise UserError('WORKDIR', '', 'one directory of a run or more')
  print(table(argv))


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
