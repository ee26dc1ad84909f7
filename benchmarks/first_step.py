"""How long from `python train.py` to the first step, cold and warm?

python benchmarks/first_step.py --config=quickstart:soft

Trains two steps of a config in a process of its own, again and again: cold
with an empty folder of compiled programs, warm with the one that the run before
left. What train.py says of its parts (`softmoe/training/startup.py`) is the
table, the median of the rounds.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import timing

from softmoe.tables import markdown

ROOT = pathlib.Path(__file__).parents[1]
# Two steps of any config.
SHORT = (
  *('--config.steps=2', '--config.eval_every=0', '--config.checkpoint.every=0'),
  *('--config.optimizer.schedule.warmup=0', '--config.log_every=1'),
)
WAYS = 'cold', 'warm'


def main() -> None:
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--config', default='quickstart:soft')
  parser.add_argument('--rounds', type=int, default=3)
  options = parser.parse_args()
  rows = {way: [] for way in WAYS}
  for _ in range(options.rounds):
    with tempfile.TemporaryDirectory() as folder:
      for way in WAYS:
        rows[way].append(start(options.config, pathlib.Path(folder), way))
  print(f'{table(rows)}\n\n{options.config}; {timing.where()}')


def start(config: str, folder: pathlib.Path, way: str) -> dict[str, float]:
  """Returns the seconds to the first step, in all and by part.

  Args:
    config: of the run.
    folder: what is compiled is kept there.
    way: names the run's directory.
  """
  environment = os.environ | {'XDG_CACHE_HOME': str(folder)}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  command = [sys.executable, str(ROOT / 'train.py'), f'--config={config}']
  told = subprocess.run(
    [*command, *SHORT, f'--workdir={folder / way}'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  ).stderr
  (line,) = re.findall(r'first step after ([\d.]+) s: (.*)', told)
  parts = dict(part.rsplit(' ', 1) for part in line[1].split(', '))
  return {'all': float(line[0])} | {k: float(v) for k, v in parts.items()}


def table(rows: dict[str, list[dict[str, float]]]) -> str:
  """Returns a row for each way."""
  names = list(rows[WAYS[0]][0])
  middle = lambda way, name: statistics.median(r[name] for r in rows[way])
  cells = [
    (way, *(f'{middle(way, name):.1f}' for name in names)) for way in WAYS
  ]
  titles = ('', 'first step after, s', *names[1:])
  return markdown.table(titles, cells, (0,))


if __name__ == '__main__':
  main()
