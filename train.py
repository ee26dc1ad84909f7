"""Trains the experiment of a config file.

python train.py --config=configs/quickstart.py:soft --workdir=runs/soft
"""

from typing import Any

from absl import flags
from ml_collections import config_flags

from softmoe import experiment as experiment_lib
from softmoe.process import launch

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The experiment: FILE or FILE:ARGUMENT.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Directory of the run; a run that it holds goes on.'
)
# A file that cannot be read shows itself at the first look into the config.
flags.register_validator(
  _CONFIG, lambda config: config and 'steps' in config, 'give --config=FILE'
)
flags.register_validator(_WORKDIR, bool, 'give --workdir=DIRECTORY')


def main() -> dict[str, Any]:
  """Trains, and returns the result."""
  from softmoe.training import loop

  return loop.train(experiment_lib.parse(_CONFIG.value), _WORKDIR.value)


if __name__ == '__main__':
  launch.run(main)
