"""The inspection as one self-contained page: no request leaves it."""

from collections.abc import Iterable
from html import escape
from typing import Any

from softmoe.inspect import samples, sections
from softmoe.inspect.observed import Observed
from softmoe.tables.report.page import parts

_CLASSES = 8  # of the fewest experts, and of the most


def write(observed: Observed, found: dict[str, Any], command: str) -> str:
  """Returns the whole page."""
  title = f'Inspection of {observed.experiment.config.name}'
  return parts.document(title, _body(title, observed, found, command))


def _body(
  title: str, observed: Observed, found: dict[str, Any], command: str
) -> Iterable[str]:
  status = (
    f'Step {found["step"]}, the first {found["examples"]} examples of '
    f'{found["split"]!r}, {len(found["layers"])} MoE layers'
  )
  yield f'{parts.header(title, status)}<main>'
  built = sections.build(observed, found)
  more = {'samples': samples.texts(observed), 'positions': _classes(found)}
  yield parts.contents({s.key: s.title for s in built})
  yield from (parts.section(s, more.get(s.key, '')) for s in built)
  facts = {'Run': found['workdir'], 'Numbers': 'inspect.json'}
  yield f'{parts.provenance(facts, [command])}</main>'


def _classes(found: dict[str, Any]) -> str:
  """Returns the classes of the fewest and the most experts, layer by layer."""
  rows = [row for layer in found['layers'] for row in _rows(layer)]
  titles = ['Layer', 'Class', 'Experts a token', 'Examples']
  return parts.table(titles, rows) if rows else ''


def _rows(layer: dict[str, Any]) -> Iterable[str]:
  ranked = sorted(layer['by_class'].items(), key=lambda c: c[1]['experts'])
  ends = dict([*ranked[:_CLASSES], *ranked[-_CLASSES:]])
  for label, of in ends.items():
    values = str(label), f'{of["experts"]:.4g}', str(of['examples'])
    cells = ''.join(f'<td>{value}</td>' for value in values)
    key = f'{layer["name"]}-{label}'.replace(' ', '-')
    yield parts.row(key, escape(layer['name']), cells)
