"""The start of a run from the parameters of another: `config.init`."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.errors import UserError
from softmoe.runs import workdir as workdir_lib
from softmoe.tasks import registry
from softmoe.tasks import task as task_lib

Tree = Any  # nested dicts of arrays, or of their shapes


def params(experiment: experiment_lib.Experiment) -> experiment_lib.Params:
  """Returns the parameters that `config.init` names, each where it belongs.

  They are those that the other run evaluates: its average, if it keeps one. It
  may have been scanned or not, on any mesh, and of another type. What is
  special to the model, such as another resolution, is up to `Task.adopt`; all
  else has to be of the same name and shape.

  Raises:
    UserError: there is no such run or checkpoint, or it is of another model.
  """
  name, task = experiment.config.init, experiment.task
  workdir, step = split(name)
  with _naming(name), workdir_lib.find_checkpoint(workdir, step) as found:
    source = _task(found.config, task)
    saved = _abstract(experiment, source, bool(found.config.ema))
    adopt = lambda saved: task.adopt(
      source.exchange(saved), source, task.exchange(experiment.init_params())
    )
    wanted = task.exchange(experiment.abstract_params)
    _compare(name, jax.eval_shape(adopt, saved), wanted)
    key = 'ema' if found.config.ema else 'params'
    with workdir_lib.reading(found.step, found.checkpoints):
      saved = found.checkpoints.restore_params(saved, found.step, key)
  place = lambda x, like: jax.reshard(x.astype(like.dtype), like.sharding)
  return jax.jit(
    lambda saved: jax.tree.map(
      place, task.take(adopt(saved)), experiment.abstract_params
    )
  )(saved)


def split(name: str) -> tuple[str, str]:
  """Returns the workdir and the step that 'WORKDIR' or 'WORKDIR@STEP' name."""
  match = re.fullmatch(r'(.+)@(best|latest|\d+)', name)
  return (match[1], match[2]) if match else (name, 'latest')


def _task(config: Any, like: task_lib.Task) -> task_lib.Task:
  """Returns the other run's task."""
  source = registry.find(config.task)(config)
  if type(source) is not type(like):
    expected = f'a run of the same task, {like.config.task!r}'
    raise UserError('config.task', config.task, expected)
  return source


def _abstract(
  experiment: experiment_lib.Experiment, source: task_lib.Task, average: bool
) -> Tree:
  """Returns what is saved: shapes and types there, places on the mesh here.

  A parameter is read to where this run has the one of its name and shape; what
  has none is read whole.
  """
  with jax.set_mesh(sharding.one_device_mesh()):
    shapes = experiment_lib.abstract_params(source, sharding.one_device_mesh())
  own = _by_name(experiment.task.exchange(experiment.abstract_params))
  whole = jax.NamedSharding(experiment.mesh, jax.P())

  def place(path: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    like = own.get(_name(path))
    there = whole
    if like is not None and like.shape == x.shape:
      there = like.sharding
    return x.update(sharding=there, dtype=jnp.float32 if average else x.dtype)

  exchanged = source.exchange(shapes)
  return source.take(jax.tree_util.tree_map_with_path(place, exchanged))


def _compare(name: str, found: Tree, wanted: Tree) -> None:
  """Raises if a parameter is missing, of another shape, or one too many."""
  there, here = (
    {path: str(leaf.shape) for path, leaf in _by_name(tree).items()}
    for tree in (found, wanted)
  )
  for path in [*here, *there]:
    has, needs = there.get(path, 'missing'), here.get(path, 'missing')
    if has != needs:
      expected = f'a run whose {path} is {needs}, as in this model, not {has}'
      raise UserError('config.init', name, expected)


def _by_name(tree: Tree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
  """Lets errors of the other run name the field that it is given by."""
  try:
    yield
  except UserError as e:
    if e.field.startswith('config.init'):
      raise
    raise UserError('config.init', name, str(e)) from e
