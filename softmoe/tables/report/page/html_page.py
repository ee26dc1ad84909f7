"""The report as one self-contained page: no request leaves it."""

from collections.abc import Iterable
from html import escape

from softmoe.tables.report.figures.sections import Section
from softmoe.tables.report.markdown import INTERVALS
from softmoe.tables.report.numbers.runs import Run
from softmoe.tables.report.page import parts
from softmoe.tables.report.sentences import Headline
from softmoe.tables.report.summary import Summary


def write(summary: Summary) -> str:
  """Returns the whole page."""
  return parts.document(summary.title, _body(summary))


def _body(summary: Summary) -> Iterable[str]:
  yield parts.header(summary.title, summary.status) + '<main>'
  if summary.headlines:
    said = ''.join(map(_headline, summary.headlines))
    yield f'<section id="headline"><ul>{said}</ul></section>'
  if summary.notes:
    yield '<section id="notes" class="notes"><h2>Missing or left out</h2>'
    yield f'{_items(summary.notes)}</section>'
  yield f'<section id="results"><h2>Results</h2>{_main_table(summary)}'
  yield f'<p class="small">{escape(INTERVALS)}</p></section>'
  yield _contents(summary)
  for section in summary.sections:
    yield parts.section(section, _table(section))
  yield _runs(summary)
  yield parts.provenance(summary.provenance, summary.commands)
  yield '</main>'


def _table(section: Section) -> str:
  if section.table is None:
    return ''
  rows = []
  for i, (head, *cells) in enumerate(section.table.rows):
    rest = ''.join(f'<td>{escape(cell)}</td>' for cell in cells)
    rows.append(parts.row(f'{section.key}-{i}', escape(head), rest))
  return parts.table(section.table.titles, rows)


def _headline(line: Headline) -> str:
  gap = f'<strong>{escape(line.gap)}</strong>'
  return f'<li>{escape(line.lead)} {gap} {escape(line.rest)}</li>'


def _items(lines: Iterable[str]) -> str:
  return f'<ul>{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def _contents(summary: Summary) -> str:
  places = {s.key: s.title for s in summary.sections}
  places |= {'runs': 'Runs', 'provenance': 'Commands'}
  return parts.contents(places)


def _main_table(summary: Summary) -> str:
  table = summary.table
  rows = []
  for group, (model, *cells) in zip(table.groups, table.rows, strict=True):
    link = f'<a href="#run-{escape(group.runs[0].name)}">{escape(model)}</a>'
    rest = ''.join(f'<td>{escape(cell)}</td>' for cell in cells)
    rows.append(parts.row(f'group-{group.name}', link, rest))
  return parts.table(table.titles, rows)


def _runs(summary: Summary) -> str:
  titles = ['Run', summary.metric.title, 'seed', 'steps', 'commit', 'command']
  rows = [_run(run, summary) for run in summary.runs]
  heading = '<h2>Runs</h2>'
  return f'<section id="runs">{heading}{parts.table(titles, rows)}</section>'


def _run(run: Run, summary: Summary) -> str:
  value = run.metrics.get(summary.metric.name)
  cells = [
    '–' if value is None else summary.metric.text(value),
    str(run.seed),
    '–' if run.steps is None else f'{run.steps:,}',
    _commit(str(run.facts.get('commit', ''))),
  ]
  rest = ''.join(f'<td>{escape(cell)}</td>' for cell in cells)
  command = f'<td class="code"><code>{escape(run.facts["command"])}</code></td>'
  link = f'<a href="#group-{escape(run.group)}">{escape(run.name)}</a>'
  return parts.row(f'run-{run.name}', link, rest + command)


def _commit(name: str) -> str:
  """Returns the first letters, and whether the code was changed since."""
  digits, _, changed = name.partition('-')
  return '-'.join(filter(None, [digits[:10], changed]))
