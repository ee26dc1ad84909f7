"""Trained models evaluated at several thresholds: quality against compute.

python -m softmoe.tables thresholds WORKDIR ... --thresholds 0.5 0.9 all

A token of a threshold router wants the fewest experts whose probabilities reach
t (XMoE, https://arxiv.org/abs/2403.18926), and t may be another than that of
the training; `all` is every expert. A model that was trained with every expert
on (`router_options=(('all_experts', True),)`), or was split into experts, is so
made sparse afterwards. Only dropless experts compute less where less is wanted.
"""

import argparse
import pathlib
import shlex

from softmoe.errors import UserError
from softmoe.process import arguments, launch
from softmoe.tables import options as options_lib
from softmoe.tables.thresholds import measure, page, table


def main(argv: list[str]) -> None:
  """Prints the table that the arguments ask for, and draws it."""
  options = _parser().parse_args(argv)
  check(options.thresholds, options.plot)
  launch.prepare()
  rows = measure.measure(
    options.workdirs,
    options.thresholds,
    step=options.step,
    split=options.split,
    rounds=options.rounds,
  )
  print(table.write(rows))
  if options.plot:
    words = ['python', '-m', 'softmoe.tables', 'thresholds', *argv]
    html = page.write(rows, shlex.join(words))
    pathlib.Path(options.plot).write_text(html)


def check(thresholds: list[float], plot: str = '') -> None:
  """Raises a UserError for what no evaluation can be of."""
  for t in thresholds:
    if not 0 < t <= 1 and t != measure.ALL:
      raise UserError('--thresholds', t, "above 0, at most 1, or 'all'")
  path = pathlib.Path(plot)
  if plot and (path.exists() or not path.parent.is_dir()):
    raise UserError('--plot', plot, 'a new file in a folder that is there')


def _parser() -> arguments.Parser:
  parser = options_lib.Parser(
    'thresholds', 'Evaluates runs at several thresholds.'
  )
  parser.add_argument(
    'workdirs',
    metavar='WORKDIR',
    nargs='+',
    help='of runs; one whose router knows no threshold is evaluated as it is',
  )
  parser.add_argument(
    '--thresholds', type=_threshold, nargs='+', required=True, metavar='T'
  )
  parser.add_argument('--step', default='latest')
  parser.add_argument('--split', default='', help="empty: a run's own")
  parser.add_argument(
    '--rounds', type=arguments.positive, default=20, help='of timing'
  )
  parser.add_argument('--plot', default='', metavar='FILE.html')
  return parser


def _threshold(text: str) -> float:
  try:
    return measure.ALL if text == 'all' else float(text)
  except ValueError as e:
    raise argparse.ArgumentTypeError(f"{text!r} is no number, nor 'all'") from e
