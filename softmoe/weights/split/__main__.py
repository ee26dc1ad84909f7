"""Splits the MLPs of a trained dense model into experts: ours, of no paper.

python -m softmoe.weights.split WORKDIR OUT --experts=16

OUT is a run like any other, whose model says what the dense one does. Its
routers are there to switch experts off:

python -m softmoe.tables thresholds OUT --thresholds 0.5 0.8 0.9 all
"""

import sys
from typing import Any

from softmoe.process import arguments, launch


def main(argv: list[str]) -> None:
  """Does what the arguments ask for, and says what was done."""
  parser = arguments.Parser(
    'softmoe.weights.split', 'Splits a trained dense model into experts.'
  )
  parser.add_argument('workdir', metavar='WORKDIR', help='of a dense run')
  parser.add_argument('out', metavar='OUT', help='a new directory')
  parser.add_argument('--experts', type=arguments.positive, required=True)
  parser.add_argument('--step', default='latest')
  parser.add_argument(
    '--tokens',
    type=arguments.positive,
    default=8192,
    help='of the train split, to fit to',
  )
  options = parser.parse_args(argv)
  launch.prepare()
  from softmoe.weights.split import convert

  experiment = convert.convert(
    options.workdir,
    options.out,
    options.experts,
    options.step,
    options.tokens,
  )
  config: Any = experiment.config
  moe = config.model.moe
  print(
    f'{options.out}: {len(moe.blocks)} MLPs, each as {moe.num_experts} experts '
    f'of {moe.expert_dim} units'
  )


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
