"""The start of a run from other parameters: `config.init`."""

import dataclasses
import re
import sys
from typing import Any

import jax

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.weights import fit, moments, upcycle
from softmoe.weights import source as source_lib
from softmoe.weights.adoption import Adoption

Tree = source_lib.Tree
Shapes = dict[str, tuple[int, ...]]  # by path


def params(experiment: experiment_lib.Experiment) -> experiment_lib.Params:
  """Returns the parameters that `config.init` names, each where it belongs.

  Those of a run are what it evaluates: its average, if it keeps one. It may
  have been scanned or not, on any mesh, and of another type; each device reads
  its own part of a file. What is special to the model, such as another
  resolution, is up to `Task.adopt`; all else has to be of the same name and
  shape, but for names that `config.init_allow` matches. A task whose model has
  that of another task as a part (`Task.part`) may start with this alone. With
  `config.upcycle` it is of the model without experts, whose MLPs they are made
  of.

  Raises:
    UserError: there is no such run, checkpoint or file, or it is of another
      model. Nothing was placed then.
  """
  return start(experiment)[0]


def start(
  experiment: experiment_lib.Experiment,
) -> tuple[experiment_lib.Params, dict[str, Any]]:
  """Returns the parameters, and the moments if `config.init_moments` is set.

  Raises:
    UserError: as `params`; or there are no moments.
  """
  config = experiment.config
  with source_lib.find(_origin(experiment)) as source:
    way = Adoption(experiment, source, experiment.init_params, config.upcycle)
    found = _shapes(jax.eval_shape(source.exchange, source.saved))
    saved = _shapes(jax.eval_shape(way.exchange, source.saved))
    adopted = _shapes(jax.eval_shape(way.adopt, source.saved))
    _compare(experiment, source, saved, adopted)
    before = moments.read(experiment, source) if config.init_moments else {}
    _report(experiment, source, found, saved, adopted)
    return way.read(source.read(), experiment.abstract_params), before


def _origin(experiment: experiment_lib.Experiment) -> experiment_lib.Experiment:
  """Returns the experiment, or its dense twin, that `config.init` is of."""
  if not experiment.config.upcycle.enabled:
    return experiment
  task = upcycle.dense(experiment.task)
  model = experiment_lib.abstract_model(task)
  params = experiment_lib.placed_params(task, model, experiment.mesh)
  return dataclasses.replace(experiment, task=task, abstract_params=params)


def _shapes(tree: Tree) -> Shapes:
  leaves = source_lib.flat(tree)
  return {'/'.join(map(str, path)): x.shape for path, x in leaves.items()}


def _compare(
  experiment: experiment_lib.Experiment,
  source: source_lib.Source,
  saved: Shapes,
  adopted: Shapes,
) -> None:
  """Raises if a parameter is missing, of another shape, or one too many."""
  config, task = experiment.config, experiment.task
  wanted = _shapes(task.exchange(experiment.abstract_params))
  for path in [*wanted, *saved]:
    both = path in wanted and path in saved
    if not both and (
      re.fullmatch(config.init_allow, path)
      or source_lib.is_reset(config, task, path)
      or source_lib.is_elsewhere(source, path)
    ):
      continue
    has = str(adopted.get(path, saved[path])) if path in saved else 'missing'
    needs = str(wanted.get(path, 'missing'))
    if has != needs:
      expected = (
        f'{source.kind} whose {path} is {needs}, as in this model, not {has}'
      )
      raise UserError('config.init', config.init, expected)


def _report(
  experiment: experiment_lib.Experiment,
  source: source_lib.Source,
  found: Shapes,
  saved: Shapes,
  adopted: Shapes,
) -> None:
  """Prints what is loaded, resized, left at initialisation and left over.

  Args:
    experiment: that starts.
    source: where from.
    found: what is there.
    saved: what was made of it, before it was fitted to the model.
    adopted: what the model has.
  """
  config, task = experiment.config, experiment.task
  made = [path for path in saved if path not in found]  # by upcycling
  fresh = [
    path
    for path in adopted
    if path not in saved
    or source_lib.is_reset(config, task, path)
    or (path in made and re.search('/router/|/lora_', path))
  ]
  resized = [
    f'{path} {saved[path]} -> {shape}'
    for path, shape in adopted.items()
    if path not in fresh and saved[path] != shape
  ]
  left_over = [*source.left_over, *(p for p in saved if p not in adopted)]
  count = len(adopted) - len(fresh)
  lines = [f'starting from {count} parameters of {source.name}']
  for what, names in (
    ('made of an MLP', [path for path in made if path not in fresh]),
    ('resized', resized),
    ('left at initialisation', fresh),
    ('left over', left_over),
  ):
    lines += [f'  {what}: {fit.some(names)}'] if names else []
  lines += [f'  note: {note}' for note in source.notes]
  if jax.process_index() == 0:
    print('\n'.join(lines), file=sys.stderr)
