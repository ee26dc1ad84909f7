"""Learning curves of runs, as one picture.

python -m softmoe.tables.curves curves.png runs/vit runs/soft

Needs matplotlib: pip install 'softmoe[plots]'.
"""

import json
import pathlib
import sys
from typing import Any

from softmoe.errors import UserError
from softmoe.process import launch
from softmoe.runs import workdir as workdir_lib


def read(workdir: pathlib.Path, metric: str) -> tuple[list[int], list[float]]:
  """Returns the steps at which a run wrote `metric`, and its values."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  points = [p for p in map(json.loads, lines) if metric in p]
  return [p['step'] for p in points], [float(p[metric]) for p in points]


def plot(output: str, workdirs: list[str]) -> None:
  """Draws training loss and the evaluated metric over steps, a line a run.

  The metric is that by which the first run's best checkpoint is known.

  Raises:
    UserError: a directory holds no run, or matplotlib is missing.
  """
  configs = [workdir_lib.read_config(pathlib.Path(path)) for path in workdirs]
  metric = configs[0].checkpoint.best_metric
  panels = {'loss': 'training loss', f'eval/{metric}': f'test {metric}'}
  figure, axes = panels_of(len(panels))
  for workdir, config in zip(workdirs, configs, strict=True):
    for axis, name in zip(axes, panels, strict=True):
      axis.plot(*read(pathlib.Path(workdir), name), label=config.name)
  for axis, title in zip(axes, panels.values(), strict=True):
    axis.set(title=title, xlabel='step')
    axis.grid(alpha=0.3)
  axes[-1].legend(frameon=False)
  figure.savefig(output, dpi=120)


def panels_of(count: int) -> tuple[Any, Any]:
  """Returns a figure with so many panels side by side, and the panels.

  Raises:
    UserError: matplotlib is missing.
  """
  try:
    from matplotlib import figure as figure_lib
  except ImportError as e:
    raise UserError('matplotlib', None, "pip install 'softmoe[plots]'") from e
  figure = figure_lib.Figure(figsize=(4.2 * count, 3), layout='constrained')
  return figure, figure.subplots(1, count)


def main(argv: list[str]) -> None:
  """Draws the picture that the arguments ask for."""
  if len(argv) < 2:
    raise UserError('arguments', argv, 'OUTPUT.png WORKDIR [WORKDIR ...]')
  plot(argv[0], argv[1:])


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
