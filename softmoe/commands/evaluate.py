"""Evaluates a run, and prints one JSON object as its last line.

softmoe-eval --workdir=runs/soft --step=best --split='test[:50%]'
"""

from typing import Any

from absl import flags

from softmoe.process import launch

_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_STEP = flags.DEFINE_string(
  'step', 'latest', "Which checkpoint: 'latest', 'best' or a step."
)
_SPLIT = flags.DEFINE_string(
  'split', '', "Which split; empty: the config's eval_split."
)
_MESH = flags.DEFINE_string(
  'mesh', '', 'The mesh, as in a config; it need not be that of the training.'
)
flags.register_validator(_WORKDIR, bool, 'give --workdir=DIRECTORY')


def run() -> None:
  """Runs the command line; the process ends with its exit code."""
  launch.run(main)


def main() -> dict[str, Any]:
  """Evaluates, and returns the result."""
  from softmoe.evaluation import run

  return run.evaluate_workdir(
    _WORKDIR.value, step=_STEP.value, split=_SPLIT.value, mesh=_MESH.value
  )
