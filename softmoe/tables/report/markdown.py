"""The report as Markdown: sentences, the main table, where it comes from."""

from collections.abc import Iterable

from softmoe.tables import markdown
from softmoe.tables.report.summary import Summary


def write(summary: Summary) -> str:
  """Returns the whole document."""
  return '\n\n'.join(_blocks(summary)) + '\n'


def _blocks(summary: Summary) -> Iterable[str]:
  yield f'# {summary.title}'
  yield summary.status
  if summary.headlines:
    yield _bullets(map(str, summary.headlines))
  yield markdown.table(summary.table.titles, summary.table.rows)
  yield INTERVALS
  if summary.equal:
    yield f'## At equal cost\n\n{_bullets(summary.equal)}'
  for section in summary.sections:
    if section.table:
      table = markdown.table(section.table.titles, section.table.rows)
      yield f'## {section.title}\n\n{table}'
  if summary.notes:
    yield f'## What is missing\n\n{_bullets(summary.notes)}'
  told = [f'{name}: {value}' for name, value in summary.provenance.items()]
  yield f'## Where the numbers come from\n\n{_bullets(told)}'
  yield '```\n' + '\n'.join(summary.commands) + '\n```'
  yield 'All plots and every run: [report.html](report.html).'


def _bullets(lines: Iterable[str]) -> str:
  return '\n'.join(f'- {line}' for line in lines)


INTERVALS = (
  '± is half a 95 % interval over seeds (Student t). Differences are of runs '
  'of the same seed. Costs are of one model; training counts '
  'as three forward passes.'
)
