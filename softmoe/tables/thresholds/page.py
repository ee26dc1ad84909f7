"""The page of runs at several thresholds: quality against compute and time."""

from collections.abc import Callable, Sequence
from html import escape

from softmoe.process import origin
from softmoe.tables.report import sentences
from softmoe.tables.report.figures.marks import Figure
from softmoe.tables.report.numbers import costs, statistics
from softmoe.tables.report.numbers.costs import Cost
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.page import parts
from softmoe.tables.report.plots import scatter
from softmoe.tables.report.plots.svg import Style
from softmoe.tables.thresholds import table
from softmoe.tables.thresholds.measure import Row

_TITLE = 'Trained models at several thresholds'


def write(rows: Sequence[Row], command: str) -> str:
  """Returns the whole page, given the command that makes it."""
  unit = rows[0].unit
  flops = f'FLOPs a {unit}, executed'
  seconds = f'time of a batch of {rows[0].batch_size}'
  plots = [
    _figure(rows, costs.INFERENCE_FLOPS, flops, lambda row: row.flops),
    _figure(rows, costs.INFERENCE_SECONDS, seconds, lambda row: row.seconds),
  ]
  body = [
    parts.header(_TITLE, TEXT),
    f'<main><section id="plots">{parts.figures(plots)}</section>',
    f'<section id="results"><h2>Results</h2>{_table(rows)}</section>',
    parts.provenance(_facts(), [command]),
    '</main>',
  ]
  return parts.document(_TITLE, body)


def _figure(
  rows: Sequence[Row],
  cost: Cost,
  title: str,
  of: Callable[[Row], float],
) -> Figure:
  """Returns a plot of quality against a cost, a line a model."""
  metric = table.quality(rows)
  factor, unit = cost.scale([of(row) for row in rows])
  models = list(dict.fromkeys(row.model for row in rows))
  styles = {model: Style.of(i) for i, model in enumerate(models)}
  series = [
    scatter.Series(
      model,
      style,
      _line(
        [r for r in rows if r.model == model], metric, lambda r: of(r) / factor
      ),
    )
    for model, style in styles.items()
  ]
  label = f'{metric.label} against {title}'
  axis = f'{title} ({unit})'
  chart = scatter.Chart(
    label, axis, metric.title, series, frontier=metric.direction
  )
  legend = [(style, model) for model, style in styles.items()]
  return Figure(label, scatter.draw(chart), legend)


def _line(
  rows: list[Row], metric: Metric, x: Callable[[Row], float]
) -> list[scatter.Point]:
  """Returns a point for each threshold, from the cheapest on."""
  alike: dict[float | None, list[Row]] = {}
  for row in rows:
    alike.setdefault(row.threshold, []).append(row)
  points = [_point(those, metric, x) for those in alike.values()]
  return sorted(points, key=lambda point: point.x)


def _point(
  rows: list[Row], metric: Metric, x: Callable[[Row], float]
) -> scatter.Point:
  """Returns the mean of one model at one threshold over its seeds."""
  values = [row.metrics[metric.name] for row in rows]
  estimate = statistics.estimate(values)
  assert estimate is not None
  half = None if estimate.half is None else estimate.half * metric.factor
  first = rows[0]
  name = f'{first.model}, t = {table.threshold(first)}'
  mean = f'{metric.title} {sentences.spread(estimate, metric)}, n={len(rows)}'
  seeds = [
    f'{row.run}: {metric.text(row.metrics[metric.name])}' for row in rows
  ]
  return scatter.Point(
    x=sum(map(x, rows)) / len(rows),
    y=estimate.mean * metric.factor,
    half=half,
    seeds=[
      (v * metric.factor, f'{row.run}\n{metric.title} {metric.text(v)}')
      for row, v in zip(rows, values, strict=True)
    ],
    tip='\n'.join([name, mean, *seeds]),
    link=_key(first),
  )


def _table(rows: Sequence[Row]) -> str:
  made = []
  for row, (run, *rest) in zip(rows, table.cells(rows), strict=True):
    cells = ''.join(f'<td>{escape(cell)}</td>' for cell in rest)
    made.append(parts.row(_key(row), escape(run), cells))
  return parts.table(table.titles(rows), made)


def _key(row: Row) -> str:
  return f'row-{row.run}-{table.threshold(row)}'


def _facts() -> dict[str, str]:
  versions = (f'{k} {v}' for k, v in origin.versions().items())
  return {
    'commit': origin.commit(),
    'machine': origin.machine(),
    'versions': ', '.join(versions),
  }


TEXT = (
  'The points of a line are one trained model at several thresholds. Bars are '
  '95 % intervals over seeds, small dots are seeds, the dashed steps are the '
  'Pareto frontier. FLOPs are of the whole model, with the rows that fill up '
  'chunks. Times are of its forward pass, each in turn with all others.'
)
