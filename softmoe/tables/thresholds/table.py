"""The table of runs at several thresholds, as Markdown."""

from collections.abc import Sequence

from softmoe.tables import markdown
from softmoe.tables.report.numbers import costs
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.thresholds import measure
from softmoe.tables.thresholds.measure import Row

_NONE = '–'
# Of a task's own metrics, the one that says how good a model is.
_QUALITIES = ('bits_per_byte', 'accuracy', 'loss')
_PAIRS = ('wanted', 'granted', 'executed')


def write(rows: Sequence[Row]) -> str:
  """Returns the table."""
  return markdown.table(titles(rows), cells(rows))


def quality(rows: Sequence[Row]) -> Metric:
  """Returns the metric by which the runs are compared."""
  shared = set.intersection(*(set(row.metrics) for row in rows))
  return Metric(next(name for name in _QUALITIES if name in shared))


def titles(rows: Sequence[Row]) -> list[str]:
  """Returns the words above the columns."""
  metric = quality(rows)
  names = dict.fromkeys(['loss', metric.title])
  factor, unit = costs.INFERENCE_FLOPS.scale([row.flops for row in rows])
  return ['Run', 'Threshold', *names, *_PAIRS, f'{unit}/{rows[0].unit}', 'ms']


def cells(rows: Sequence[Row]) -> list[list[str]]:
  """Returns the words of each row."""
  metric = quality(rows)
  factor, _ = costs.INFERENCE_FLOPS.scale([row.flops for row in rows])
  names = dict.fromkeys(['loss', metric.name])
  return [
    [
      row.run,
      threshold(row),
      *(f'{Metric(n).factor * row.metrics[n]:.4f}' for n in names),
      *(_pairs(row, name) for name in _PAIRS),
      f'{row.flops / factor:.3f}',
      f'{1e3 * row.seconds:.2f}',
    ]
    for row in rows
  ]


def threshold(row: Row) -> str:
  """Returns a threshold as the command line takes it."""
  if row.threshold is None:
    return _NONE
  return 'all' if row.threshold == measure.ALL else f'{row.threshold:g}'


def _pairs(row: Row, name: str) -> str:
  value = row.metrics.get(f'moe/{name}')
  return _NONE if value is None else f'{value:.3f}'
