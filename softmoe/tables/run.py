"""Does the runs of a suite that are missing, and goes on after any stop.

python -m softmoe.tables run SUITE
"""

import shlex
import sys

from softmoe.process import arguments
from softmoe.tables import options as options_lib
from softmoe.tables import page, reuse, runner


def main(argv: list[str]) -> None:
  """Runs what the arguments ask for; the process ends with its exit code."""
  parser = options_lib.suite_parser('run', 'Does the runs of a suite.')
  parser.add_argument('--only', metavar='RUN', help='one run alone')
  parser.add_argument(
    '--workers', type=arguments.positive, metavar='N', help='runs at once'
  )
  parser.add_argument(
    '--print', action='store_true', help='one command a run, for array jobs'
  )
  options = parser.parse_args(argv)
  path, suite, folders = options_lib.open_suite(options)
  runs = (suite.find(options.only),) if options.only else suite.runs
  if options.print:
    print('\n'.join(_command(options, run.name) for run in runs))
    return
  for run in runs:
    if source := reuse.take(suite, run, folders):
      print(f'{run.name} is the same training as {source}', file=sys.stderr)
  workers = options.workers or runner.default_workers()
  shown = page.Page(folders.suite, suite.metric)
  sys.exit(runner.Runner(path, runs, folders, workers, shown).work())


def _command(options, run: str) -> str:
  """Returns the command that does one run, with all that the machine has."""
  parts = ['python', '-m', 'softmoe.tables', 'run', options.suite]
  parts += [f'--only={run}', '--workers=1']
  for name in ('results', 'runs'):
    if getattr(options, name) != name:
      parts.append(f'--{name}={getattr(options, name)}')
  return shlex.join(parts)
