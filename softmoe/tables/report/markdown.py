"""The report as Markdown: sentences, the main table, where it comes from."""

from collections.abc import Iterable

from softmoe.tables.report.summary import Summary


def write(summary: Summary) -> str:
  """Returns the whole document."""
  return '\n\n'.join(_blocks(summary)) + '\n'


def _blocks(summary: Summary) -> Iterable[str]:
  yield f'# {summary.title}'
  yield summary.status
  if summary.headlines:
    yield _bullets(map(str, summary.headlines))
  yield _table(summary.table.titles, summary.table.rows)
  yield INTERVALS
  if summary.equal:
    yield f'## At equal cost\n\n{_bullets(summary.equal)}'
  if summary.notes:
    yield f'## What is missing\n\n{_bullets(summary.notes)}'
  told = [f'{name}: {value}' for name, value in summary.provenance.items()]
  yield f'## Where the numbers come from\n\n{_bullets(told)}'
  yield '```\n' + '\n'.join(summary.commands) + '\n```'
  yield 'All plots and every run: [report.html](report.html).'


def _bullets(lines: Iterable[str]) -> str:
  return '\n'.join(f'- {line}' for line in lines)


def _table(titles: list[str], rows: list[list[str]]) -> str:
  cells = [[c.replace('|', '\\|') for c in row] for row in [titles, *rows]]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  lines = [_line(row, widths) for row in cells]
  return '\n'.join([lines[0], f'| {" | ".join(rule)} |', *lines[1:]])


def _line(row: list[str], widths: list[int]) -> str:
  first, *rest = row
  padded = [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
  return f'| {" | ".join([first.ljust(widths[0]), *padded])} |'


INTERVALS = (
  '± is half a 95 % interval over seeds (Student t). Differences are of runs '
  'of the same seed. Costs are of one model; training counts '
  'as three forward passes.'
)
