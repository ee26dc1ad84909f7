"""Learning curves of runs, as one picture.

python -m softmoe.tables.curves curves.png runs/vit runs/soft

Needs matplotlib: pip install 'softmoe[plots]'.
"""

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.process import arguments, launch
from softmoe.runs import workdir as workdir_lib


def read(workdir: pathlib.Path, metric: str) -> tuple[list[int], list[float]]:
  """Returns the steps at which a run wrote `metric`, and its values.

  Of a run that was killed the last line may be a part of one, which is left.

  Raises:
    UserError: there are no metrics, or a line of them is none.
  """
  path = workdir / 'metrics.jsonl'
  try:
    lines = path.read_bytes().split(b'\n')[:-1]
  except OSError as e:
    raise UserError(str(path), e.strerror, 'the metrics of a run') from e
  steps, values = [], []
  for number, line in enumerate(lines, 1):
    try:
      point = json.loads(line)
      if metric in point:
        steps.append(int(point['step']))
        values.append(float(point[metric]))
    except (ValueError, KeyError, TypeError) as e:
      problem = f'line {number}: {type(e).__name__}: {e}'
      raise UserError(str(path), problem, 'a line of metrics') from e
  return steps, values


def plot(output: str, workdirs: list[str]) -> None:
  """Draws training loss and the evaluated metric over steps, a line a run.

  The metric is that by which the first run's best checkpoint is known.

  Raises:
    UserError: a directory holds no run, the picture cannot be written there,
      or matplotlib is missing.
  """
  check_output('OUTPUT', output)
  configs = [workdir_lib.read_config(pathlib.Path(path)) for path in workdirs]
  panels = panels_shown(configs)
  figure, axes = panels_of(len(panels))
  for workdir, config in zip(workdirs, configs, strict=True):
    for axis, name in zip(axes, panels, strict=True):
      axis.plot(*read(pathlib.Path(workdir), name), label=config.name)
  for axis, title in zip(axes, panels.values(), strict=True):
    axis.set(title=title, xlabel='step')
    axis.grid(alpha=0.3)
  axes[-1].legend(frameon=False)
  save(figure, 'OUTPUT', output)


def panels_shown(configs: Sequence[config_lib.Config]) -> dict[str, str]:
  """Returns the title of each metric: 'eval/accuracy' is 'val accuracy'.

  Runs that are evaluated on different splits have none to name.
  """
  metric = configs[0].checkpoint.best_metric
  splits = {config.data.eval_split for config in configs}
  split = splits.pop() if len(splits) == 1 else 'eval'
  return {'loss': 'training loss', f'eval/{metric}': f'{split} {metric}'}


def check_output(field: str, output: str) -> None:
  """Raises a UserError if a picture cannot be written there.

  Args:
    field: the argument, for the error.
    output: the file.
  """
  path = pathlib.Path(output)
  kinds = sorted(_figure_class()().canvas.get_supported_filetypes())
  if path.suffix[1:].lower() not in kinds:
    raise UserError(field, output, f'a file that ends in one of {kinds}')
  if not os.access(path.parent, os.W_OK) or path.is_dir():
    raise UserError(field, output, 'a file in a folder that can be written to')


def save(figure: Any, field: str, output: str) -> None:
  """Writes a picture.

  Raises:
    UserError: it cannot be written there.
  """
  try:
    figure.savefig(output, dpi=120)
  except OSError as e:
    raise UserError(field, output, f'a file to write to ({e})') from e


def panels_of(count: int) -> tuple[Any, Any]:
  """Returns a figure with so many panels side by side, and the panels.

  Raises:
    UserError: matplotlib is missing.
  """
  figure = _figure_class()(figsize=(4.2 * count, 3), layout='constrained')
  return figure, figure.subplots(1, count)


def _figure_class() -> Any:
  try:
    from matplotlib import figure as figure_lib
  except ImportError as e:
    raise UserError('matplotlib', None, "pip install 'softmoe[plots]'") from e
  return figure_lib.Figure


def main(argv: list[str]) -> None:
  """Draws the picture that the arguments ask for."""
  parser = arguments.Parser('softmoe.tables.curves', 'Curves of runs.')
  parser.add_argument('output', metavar='OUTPUT', help='such as curves.png')
  parser.add_argument('workdirs', metavar='WORKDIR', nargs='+', help='of a run')
  options = parser.parse_args(argv)
  plot(options.output, options.workdirs)


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
