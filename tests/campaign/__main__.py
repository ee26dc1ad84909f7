"""Kills, full disks, flipped bits and double starts, and what they did.

python -m tests.campaign --seconds=3600

Prints counts as one JSON object; those of what was wrong are in WRONG. Exits
with 1 if any of them is not 0. As root, disks are full at random bytes; else
files may not grow beyond a random size. With --cache what is compiled is kept
for the next campaign.
"""

import argparse
import json
import os
import sys

from tests.campaign import folders

WRONG = (
  'mismatches',
  'no result',
  'nobody trained',
  'flips undetected',
  'hangs',
  'wrong codes',
  'wrong lines',
  'tracebacks',
)


def _set_environment(cache):
  """As of a process that has it from a shell; before anything reads it."""
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.05',
    'XLA_FLAGS': '--xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true',
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  }


def main():
  """Runs a campaign."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seconds', type=float, default=600)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', default='1,2,4')
  parser.add_argument('--cache')
  options = parser.parse_args()
  with folders.folder() as cache:
    _set_environment(options.cache or str(cache))
    from tests.campaign import acts

    processes = [int(n) for n in options.processes.split(',')]
    counts, notes = acts.run(options.seconds, options.seed, processes)
  for note in notes:
    print(note, file=sys.stderr)
  wrong = {name: counts.pop(name, 0) for name in WRONG}
  print(json.dumps({'done': dict(sorted(counts.items())), 'wrong': wrong}))
  sys.exit(any(wrong.values()))


if __name__ == '__main__':
  main()
