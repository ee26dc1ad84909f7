"""What the checksums of a checkpoint cost, of the time of a save.

python benchmarks/checksums.py

Saves a state of random weights several times, and prints the medians of what a
save took: in seconds that passed, and in seconds of the processor. `sync` is
the wait for the disk.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import timing

from softmoe.config import CheckpointConfig
from softmoe.runs import checkpoint, checksums, disk
from softmoe.tables import markdown


class Clock:
  """Sums what calls of a function take, in the clocks that are given."""

  def __init__(self, module, name, clocks):
    self.sums, self._function, self._clocks = [], getattr(module, name), clocks
    setattr(module, name, self._timed)

  def _timed(self, *args):
    start = [clock() for clock in self._clocks]
    result = self._function(*args)
    taken = [clock() - s for clock, s in zip(self._clocks, start, strict=True)]
    self.sums = [a + b for a, b in zip(self.sums, taken, strict=True)]
    return result


def make_state(gigabytes):
  """Returns weights in arrays of 64 MB."""
  draw = np.random.default_rng(0).standard_normal
  count = max(round(gigabytes * 1e9 / 2**26), 1)
  arrays = {f'w{i}': draw((4096, 4096), 'float32') for i in range(count)}
  return {'params': jax.device_put(arrays)}


def main():
  """Saves, and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--gigabytes', type=float, default=1.0)
  parser.add_argument('--rounds', type=int, default=9)
  options = parser.parse_args()
  state = make_state(options.gigabytes)
  clocks = time.perf_counter, time.process_time
  parts = {
    'checksums': Clock(checksums, 'of', clocks),
    'sync': Clock(disk, 'sync', clocks),
  }
  rows = []
  with tempfile.TemporaryDirectory() as directory:
    config = CheckpointConfig(keep_last=1)
    for step in range(options.rounds + 1):
      for part in parts.values():
        part.sums = [0.0, 0.0]
      start = [clock() for clock in clocks]
      with checkpoint.Checkpoints(directory, config) as checkpoints:
        checkpoints.save(step, state, force=True)
      total = [c() - s for c, s in zip(clocks, start, strict=True)]
      if step:  # the first one compiles
        rows.append((total, {name: p.sums for name, p in parts.items()}))
    path = pathlib.Path(directory) / str(options.rounds)
    size = sum(f.stat().st_size for f in path.rglob('*') if f.is_file())
    listed = (path / checksums.FILE).stat().st_size
  table = []
  for i, name in enumerate(('passed', 'of the processor')):
    median = lambda values: statistics.median(list(values))
    shares = [sums['checksums'][i] / total[i] for total, sums in rows]
    values = (
      median(total[i] for total, _ in rows),
      *(median(sums[part][i] for _, sums in rows) for part in parts),
    )
    spread = f'{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})'
    table.append([name, *(f'{v:.2f}' for v in values), spread])
  titles = ['seconds', 'save', 'checksums', 'sync', 'share of checksums']
  print(markdown.table(titles, table))
  print(f'\n{size:,} bytes, of them {listed:,} of checksums')
  print(timing.where())


if __name__ == '__main__':
  main()
