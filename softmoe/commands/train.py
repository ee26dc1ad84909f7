"""Trains the experiment of a config file, or of one that comes along.

softmoe-train --config=quickstart:soft --workdir=runs/soft
"""

from typing import Any

from absl import flags

from softmoe.process import config_flag, launch

_CONFIG = config_flag.define(
  'config',
  'The experiment: FILE[:ARGUMENT] or NAME[:ARGUMENT].',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Directory of the run; a run that it holds goes on.'
)
_SKIP_DAMAGED = flags.DEFINE_bool(
  'skip_damaged',
  False,
  'Where the latest checkpoint is damaged, call it STEP.damaged, and go on '
  'from the latest that is intact.',
)
# A file that cannot be read shows itself at the first look into the config.
flags.register_validator(
  _CONFIG, lambda config: config and 'steps' in config, 'give --config=FILE'
)
flags.register_validator(_WORKDIR, bool, 'give --workdir=DIRECTORY')


def run() -> None:
  """Runs the command line; the process ends with its exit code."""
  launch.run(main)


def main() -> dict[str, Any]:
  """Trains, and returns the result."""
  from softmoe import experiment
  from softmoe.training import loop

  config = experiment.parse(_CONFIG.value)
  return loop.train(config, _WORKDIR.value, _SKIP_DAMAGED.value)
