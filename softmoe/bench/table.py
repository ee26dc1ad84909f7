"""What was measured, as Markdown."""

from collections.abc import Sequence
from typing import Any

from softmoe.bench.measure import Row
from softmoe.tables import markdown

_TITLES = (
  'pass',
  'experts',
  'ms',
  'spread',
  'of its floor',
  'to dense, tokens',
  'to dense, FLOPs',
  'temporaries, MB',
  'compiled in, s',
)


def write(size: str, rows: Sequence[Row]) -> str:
  """Returns the table of a size, named `size`."""
  return markdown.table((size, *_TITLES), [_cells(row) for row in rows], (0, 1))


def where(report: dict[str, Any]) -> str:
  """Returns the machine, its rates, the versions and the commit."""
  rates, versions = report['rates'], report['versions']
  told = ', '.join(f'{name} {value}' for name, value in versions.items())
  threads = f'{report["threads"]} threads, ' if report['threads'] else ''
  commit = report['commit'] or 'unknown'
  return (
    f'{report["machine"]}, {report["device"]}, {threads}{report["dtype"]}:'
    f' {rates.flops / 1e9:,.0f} GFLOP/s, {rates.memory / 1e9:,.1f} GB/s;'
    f' {report["rounds"]} rounds; {told}; commit {commit}'
  )


def _cells(row: Row) -> list[str]:
  return [
    row.layer,
    row.kind,
    '' if row.executed is None else f'{row.executed:.2f}',
    f'{1e3 * row.seconds:.2f}',
    f'{100 * row.spread:.0f} %',
    f'{row.seconds / row.floor:.2f}',
    f'{row.of_tokens:.2f}',
    '' if row.of_flops is None else f'{row.of_flops:.2f}',
    f'{row.temporaries / 1e6:.0f}',
    f'{row.compiling:.1f}',
  ]
