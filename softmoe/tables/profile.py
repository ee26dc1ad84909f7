"""Where the time of a training step goes, by part of the model.

python train.py --config=... --workdir=WORKDIR --config.profile='(20, 29)'
python -m softmoe.tables profile WORKDIR

Times of instructions come from the trace, and the parts that they are of from
the compiled program beside it. On several devices they are added up.
"""

import collections
import gzip
import json
import pathlib
import re
from collections.abc import Iterator

from softmoe.costs import parts as parts_lib
from softmoe.errors import UserError
from softmoe.tables import markdown
from softmoe.tables import options as options_lib

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?\s([a-z][\w\-]*)\(')
_NAME = re.compile(r'op_name="([^"]*)"')
# They contain others, which have times of their own.
_OUTER = ('while', 'call', 'conditional')

Times = dict[str, tuple[float, float]]


def main(argv: list[str]) -> None:
  """Prints the table of a run's profile."""
  parser = options_lib.Parser('profile', 'Says where the time of a step goes.')
  parser.add_argument('workdir', metavar='WORKDIR', help='of a profiled run')
  options = parser.parse_args(argv)
  print(table(read(pathlib.Path(options.workdir))))


def read(workdir: pathlib.Path) -> Times:
  """Returns for each part milliseconds a step, forward and backward.

  Raises:
    UserError: nothing was profiled there, or the trace cannot be read.
  """
  folder = workdir / 'profile'
  traces = sorted(folder.glob('**/*.trace.json.gz'))
  if not traces or not (folder / 'steps.json').exists():
    expected = "a run that was trained with --config.profile='(FIRST, LAST)'"
    raise UserError('WORKDIR', str(workdir), expected)
  steps = json.loads((folder / 'steps.json').read_text())
  program = (folder / 'train_step.txt').read_text()
  try:
    events = json.loads(gzip.decompress(traces[-1].read_bytes()))['traceEvents']
  except (OSError, EOFError, ValueError, KeyError) as e:
    raise UserError('WORKDIR', str(traces[-1]), f'a trace ({e})') from e
  return parts(program, events, steps)


def parts(program: str, events: list[dict], steps: int) -> Times:
  """Returns for each part milliseconds a step, forward and backward.

  Args:
    program: the compiled step, as text.
    events: of a trace, in its JSON form.
    steps: that it is of.
  """
  names = dict(_names(program))
  total = {True: collections.Counter(), False: collections.Counter()}
  for event in events:
    instruction = event.get('args', {}).get('hlo_op')
    if event.get('ph') == 'X' and instruction in names:
      name = names[instruction]
      part = parts_lib.of(name)
      total['transpose(' in name][part] += event['dur'] / 1e3 / steps
  forward, backward = total[False], total[True]
  return {
    p: (float(forward[p]), float(backward[p])) for p in {*forward, *backward}
  }


def table(times: Times) -> str:
  """Returns the table, the parts that take longest first."""
  whole = sum(map(sum, times.values()))
  rows = [
    (
      part,
      f'{forward:.2f}',
      f'{backward:.2f}',
      _share(forward + backward, whole),
    )
    for part, (forward, backward) in times.items()
  ]
  rows.sort(key=lambda row: -sum(times[row[0]]))
  total = [sum(column) for column in zip(*times.values(), strict=True)]
  rows = [
    *rows,
    ('all', *(f'{t:.2f}' for t in total), _share(whole, whole)),
  ]
  return markdown.table(('part', 'forward, ms', 'backward, ms', 'share'), rows)


def _share(value: float, whole: float) -> str:
  return f'{100 * value / whole:.1f} %' if whole else '0 %'


def _names(program: str) -> Iterator[tuple[str, str]]:
  """Yields each instruction that takes time itself, with where it is from."""
  for line in program.splitlines():
    match = _INSTRUCTION.match(line)
    if match and match[2] not in _OUTER:
      name = _NAME.search(line)
      yield match[1], name[1] if name else ''
