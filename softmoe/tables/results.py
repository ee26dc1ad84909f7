"""The result table: one row a run.

python -m softmoe.tables.results runs/vit runs/soft
"""

import pathlib
import sys
from typing import Any

from softmoe.errors import UserError
from softmoe.process import arguments, launch
from softmoe.runs import workdir as workdir_lib
from softmoe.tables import markdown


def table(workdirs: list[str]) -> str:
  """Returns a Markdown table of the finished runs in `workdirs`.

  The first figure is the metric by which a run's best checkpoint is known, of
  the last state on the evaluation split; GFLOP are those of one forward pass
  of what the task counts in, and speed is that of training. Below it, what
  one percent of accuracy stands for.

  Raises:
    UserError: a directory holds no finished run, or one of another task.
  """
  results = [_read(workdir) for workdir in workdirs]
  first = _measure(results[0])
  for workdir, result in zip(workdirs, results, strict=True):
    if _measure(result) != first:
      expected = f'a run of {first[0]} and {first[1]}s, as the first one'
      raise UserError('WORKDIR', workdir, expected)
  rows = [_complete(*each) for each in zip(workdirs, results, strict=True)]
  rows = markdown.table(_header(*first), rows)
  return '\n'.join([rows, *_percent(results)])


def _read(workdir: str) -> dict[str, Any]:
  result = workdir_lib.read_result(pathlib.Path(workdir))
  if result is None:
    raise UserError('WORKDIR', workdir, 'a directory with a finished run')
  return result


def _measure(result: dict[str, Any]) -> tuple[str, str]:
  """Returns the metric and the unit of a run; older runs are of images."""
  return result.get('metric', 'accuracy'), result.get('unit', 'image')


def _header(metric: str, unit: str) -> tuple[str, ...]:
  quality, rate = metric.capitalize(), f'{unit.capitalize()}s/s'
  return ('Model', quality, 'Parameters', f'GFLOP/{unit}', rate)


def _complete(workdir: str, result: dict[str, Any]) -> tuple[str, ...]:
  """Returns the row of a run, whose file may be another's."""
  try:
    return _row(result)
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    path = str(pathlib.Path(workdir) / 'result.json')
    problem = f'{type(e).__name__}: {e}'
    raise UserError(path, problem, 'what a finished run writes') from e


def _row(result: dict[str, Any]) -> tuple[str, ...]:
  metric, unit = _measure(result)
  value, rate = result[metric], result['train'].get(f'{unit}s_per_second')
  return (
    result['name'],
    f'{value:.2%}' if metric == 'accuracy' else f'{value:.4g}',
    f'{result["params"]:,}',
    f'{result[f"gflop_per_{unit}"]:#.3g}'.rstrip('.'),
    f'{rate:,.0f}' if rate else 'unknown',
  )


def _percent(results: list[dict[str, Any]]) -> list[str]:
  """Returns a line for each split: how many examples one percent is."""
  shown = {
    f'1 % is {r["examples"] / 100:.3g} of the {r["examples"]:,} '
    f"{_measure(r)[1]}s of '{r['split']}'."
    for r in results
    if _measure(r)[0] == 'accuracy' and 'examples' in r
  }
  return ['', *sorted(shown)] if shown else []


def main(argv: list[str]) -> None:
  """Prints the table of the runs that are named."""
  parser = arguments.Parser('softmoe.tables.results', 'A row for each run.')
  parser.add_argument('workdirs', metavar='WORKDIR', nargs='+', help='of a run')
  print(table(parser.parse_args(argv).workdirs))


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
