"""Few-shot accuracy of a run; prints one JSON object as its last line.

python -m softmoe.evaluation.fewshot --workdir=runs/soft --source=digits \
  --shots=1,5,10
"""

from typing import Any

from absl import flags

from softmoe.errors import naming
from softmoe.process import launch

_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_STEP = flags.DEFINE_string(
  'step', 'latest', "Which checkpoint: 'latest', 'best' or a step."
)
_MESH = flags.DEFINE_string(
  'mesh', '', 'The mesh, as in a config; it need not be that of the training.'
)
_SOURCE = flags.DEFINE_string(
  'source', '', "Images, as config.data.source; empty: the run's own."
)
_TRAIN_SPLIT = flags.DEFINE_string(
  'train_split', 'train', 'Split that the shots are drawn from.'
)
_VAL_SPLIT = flags.DEFINE_string(
  'val_split',
  '',
  'Split that chooses l2; empty: images of the train split that are no shots.',
)
_TEST_SPLIT = flags.DEFINE_string(
  'test_split', 'test', 'Split that the accuracy is of.'
)
_SHOTS = flags.DEFINE_list('shots', ['1', '5', '10', '25'], 'Images a class.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Draws of the shots.')
_CLASSES = flags.DEFINE_integer(
  'classes', 0, 'So many classes, a fixed sample; 0: all.'
)
flags.register_validator(_WORKDIR, bool, 'give --workdir=DIRECTORY')
flags.register_validator(
  _SHOTS, lambda shots: all(n.isdecimal() for n in shots), 'give --shots=1,5'
)


def evaluate_workdir(
  workdir: Any, config: Any, *, step: str = 'latest', mesh: str = ''
) -> dict[str, Any]:
  """Returns the few-shot accuracies of one checkpoint.

  Args:
    workdir: directory of a run, finished or not.
    config: a `tasks.shots.FewshotConfig`; an empty source is the run's own.
    step: 'latest', 'best' or a number.
    mesh: where to evaluate, as in a config.

  Returns:
    'step', 'source', 'split', and for each number of shots 'Nshot': the mean
    accuracy on the test split, 'seeds': that of each draw, and 'l2'.

  Raises:
    UserError: there is no such run, checkpoint or split, a field is wrong,
      there are too few images, or they are the run's own and no longer what it
      read.
  """
  import dataclasses

  from softmoe import experiment as experiment_lib
  from softmoe.runs import load
  from softmoe.tasks import fewshot

  experiment, number, params = load.restore(workdir, step, mesh)
  own = experiment.config.data.source
  source = config.source or own
  if source == own:
    experiment_lib.with_fingerprint(experiment.config)
  config = dataclasses.replace(config, source=source)
  evaluate = fewshot.make(
    experiment.task, experiment.graphdef, experiment.mesh, config
  )
  results = evaluate(params)
  return {'step': number, 'source': source, 'split': config.test_split} | {
    f'{n}shot': {
      'accuracy': sum(r.accuracies) / len(r.accuracies),
      'seeds': r.accuracies,
      'l2': r.l2,
    }
    for n, r in results.items()
  }


def main() -> dict[str, Any]:
  """Evaluates, and returns the result."""
  import dataclasses

  from softmoe.tasks import shots

  fields = dataclasses.fields(shots.FewshotConfig)
  config = shots.FewshotConfig(
    source=_SOURCE.value,
    train_split=_TRAIN_SPLIT.value,
    val_split=_VAL_SPLIT.value,
    test_split=_TEST_SPLIT.value,
    shots=tuple(map(int, _SHOTS.value)),
    seeds=_SEEDS.value,
    classes=_CLASSES.value,
  )
  with naming({f'config.fewshot.{f.name}': f'--{f.name}' for f in fields}):
    return evaluate_workdir(
      _WORKDIR.value, config, step=_STEP.value, mesh=_MESH.value
    )


if __name__ == '__main__':
  launch.run(main)
