"""A trained model evaluated at several thresholds: quality against compute.

python -m softmoe.tables thresholds WORKDIR --thresholds 0.3 0.5 0.7 0.9

A token of a threshold router wants the fewest experts whose probabilities reach
t (XMoE, https://arxiv.org/abs/2403.18926), and t may be another than that of
the training. A model that was trained with every expert on (`router_options=
(('all_experts', True),)`) is so made sparse afterwards. Only dropless experts
compute less where less is wanted.
"""

import pathlib
import time
from typing import Any

from jax import numpy as jnp

from softmoe.costs import flops
from softmoe.errors import UserError, naming
from softmoe.process import arguments, launch
from softmoe.runs import load
from softmoe.tables import curves, markdown
from softmoe.tasks import means

_COLUMNS = ('wanted', 'granted', 'executed')
_BETTER = 'loss'


def main(argv: list[str]) -> None:
  """Prints the table that the arguments ask for, and draws it."""
  parser = arguments.Parser(
    'softmoe.tables thresholds', 'Evaluates a run at several thresholds.'
  )
  parser.add_argument('workdir', help='of a run with a threshold router')
  parser.add_argument('--thresholds', type=float, nargs='+', required=True)
  parser.add_argument('--step', default='latest')
  parser.add_argument('--split', default='', help="empty: the run's own")
  parser.add_argument('--plot', default='', help='a new picture; needs plots')
  options = parser.parse_args(argv)
  check(options.thresholds, options.plot)
  launch.use_huge_pages()
  launch.use_cores()
  rows = evaluate(
    options.workdir, options.thresholds, options.step, options.split
  )
  print(table(rows))
  if options.plot:
    draw(options.plot, rows)


def check(thresholds: list[float], plot: str = '') -> None:
  """Raises a UserError for what no evaluation can be of."""
  for t in thresholds:
    if not 0 < t <= 1:
      raise UserError('--thresholds', t, 'above 0, at most 1')
  if plot and pathlib.Path(plot).exists():
    raise UserError('--plot', plot, 'a new file')
  if plot:
    curves.check_output('--plot', plot)


def evaluate(
  workdir: str, thresholds: list[float], step: str = 'latest', split: str = ''
) -> list[dict[str, float]]:
  """Returns what the run's evaluation says at each threshold.

  Returns:
    A dict for each: `threshold`, the metrics, `gflop` of a unit, and `seconds`
    of the pass over the split, taken from the second of two.

  Raises:
    UserError: there is no such run, or its router knows no threshold.
  """
  experiment, _, params = load.restore(workdir, step)
  config: Any = experiment.config
  router = config.model.moe.router
  if router != 'threshold':
    raise UserError('config.model.moe.router', router, "'threshold'")
  split = split or config.data.eval_split
  over_split = means.over_split(
    experiment.task, experiment.graphdef, experiment.mesh
  )
  cost = flops.forward(experiment.config)

  def at(t: float) -> dict[str, Any]:
    options = {'threshold': jnp.float32(t)}
    with naming({'split': '--split'}):
      over_split(params, split, options)
    start = time.perf_counter()
    found = over_split(params, split, options)
    seconds = time.perf_counter() - start
    wanted = None if cost.is_fixed else found['moe/wanted']
    gflop = cost.flops(wanted) / 1e9
    return {'threshold': t, 'seconds': seconds, 'gflop': gflop} | found

  return [at(t) for t in thresholds]


def table(rows: list[dict[str, float]]) -> str:
  """Returns a Markdown table of what `evaluate` found."""
  own = [name for name in rows[0] if name in ('bits_per_byte', 'accuracy')]
  names = ['loss', *own, *(f'moe/{name}' for name in _COLUMNS)]
  titles = ['Threshold', *names, 'GFLOP of a unit', 'Seconds of a pass']
  return markdown.table(
    titles,
    [
      [f'{row["threshold"]:g}', *(f'{row[name]:.4f}' for name in names)]
      + [f'{row["gflop"]:.4g}', f'{row["seconds"]:.1f}']
      for row in rows
    ],
  )


def draw(output: str, rows: list[dict[str, float]]) -> None:
  """Draws the loss against what ran and against time.

  Raises:
    UserError: matplotlib is missing.
  """
  figure, axes = curves.panels_of(2)
  panels = {'moe/flops': 'FLOP a token in experts', 'seconds': 'seconds a pass'}
  for axis, (name, title) in zip(axes, panels.items(), strict=True):
    axis.plot([r[name] for r in rows], [r[_BETTER] for r in rows], 'o-')
    for row in rows:
      at = row[name], row[_BETTER]
      axis.annotate(f't = {row["threshold"]:g}', at, fontsize=8)
    axis.set(xlabel=title, ylabel=_BETTER)
    axis.grid(alpha=0.3)
  curves.save(figure, '--plot', output)
