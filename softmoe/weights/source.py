"""Where the parameters come from that `config.init` names: a run, or a file."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.errors import UserError, naming
from softmoe.models.config import TransformerConfig
from softmoe.runs import workdir as workdir_lib
from softmoe.tasks import registry
from softmoe.tasks import task as task_lib
from softmoe.weights import arrays, facts, fit, hub
from softmoe.weights.formats import own as own_format
from softmoe.weights.formats import registry as formats
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Row

Tree = Any  # nested dicts of arrays, or of their shapes
Flat = dict[tuple, Any]  # the same, by path
_LINEAR = ('kernel', 'bias')  # of a head


class Source(NamedTuple):
  """Parameters that are not read yet.

  Attributes:
    kind: 'a run' or 'a file'.
    name: as the report has it.
    task: that of the model that they are of.
    saved: their shapes, types and places, as they will be read.
    exchange: from what is read to parameters without `scan`.
    read: reads them onto the devices.
    branch: of this model's parameters that these are; '': all.
    left_over: names of what is not read.
    notes: what a user should know beside it.
  """

  kind: str
  name: str
  task: task_lib.Task
  saved: Tree
  exchange: Callable[[Tree], Tree]
  read: Callable[[], Tree]
  branch: str = ''
  left_over: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


@contextlib.contextmanager
def find(experiment: experiment_lib.Experiment) -> Iterator[Source]:
  """Finds what `config.init` names.

  Raises:
    UserError: there is no such run, checkpoint or file, or it is not of this
      model, as far as that shows before shapes are compared.
  """
  name = experiment.config.init
  if is_file(name):
    with naming({'weights': 'config.init'}):
      yield _of_file(experiment, name)
    return
  with checkpoint(name) as found:
    yield _of_run(experiment, found)


def is_file(name: str) -> bool:
  """Tells whether `config.init` names a weights file, and not a run."""
  path = pathlib.Path(name).expanduser()
  return name.startswith(hub.SCHEME) or arrays.is_weights(path)


def split(name: str) -> tuple[str, str]:
  """Returns the workdir and the step that 'WORKDIR' or 'WORKDIR@STEP' name."""
  match = re.fullmatch(r'(.+)@(best|latest|\d+)', name)
  return (match[1], match[2]) if match else (name, 'latest')


def is_reset(config: Any, task: task_lib.Task, path: str) -> bool:
  """Tells whether a parameter is of a head that starts anew."""
  return config.init_head == 'reset' and _is_of(path, task.head)


def is_elsewhere(source: Source, path: str) -> bool:
  """Tells whether a parameter is in no branch that the source has."""
  return source.branch != '' and not _is_of(path, source.branch)


def _is_of(path: str, name: str) -> bool:
  return path.split('/')[0] == name


def flat(tree: Tree) -> Flat:
  """Returns the leaves of nested dicts by their paths."""
  return traverse_util.flatten_dict(tree)


# --- A run.


@contextlib.contextmanager
def checkpoint(name: str) -> Iterator[workdir_lib.Found]:
  """Finds the checkpoint that 'WORKDIR' or 'WORKDIR@STEP' names.

  Raises:
    UserError: there is no such run or checkpoint.
  """
  with contextlib.ExitStack() as stack:
    with _naming_run(name):
      found = workdir_lib.find_checkpoint(*split(name))
      found = stack.enter_context(found)
    yield found


def restore(name: str, found: workdir_lib.Found, like: Tree, key: str) -> Tree:
  """Returns one entry of the state that a checkpoint holds.

  Args:
    name: of the run.
    found: its checkpoint.
    like: shapes, types and places of the entry.
    key: the entry's name.

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  with _naming_run(name), workdir_lib.reading(found.step, found.checkpoints):
    return found.checkpoints.restore_params(like, found.step, key)


@contextlib.contextmanager
def _naming_run(name: str) -> Iterator[None]:
  """Lets errors of the other run name the field that it is given by."""
  try:
    yield
  except UserError as e:
    expected = e.expected if e.field == '--workdir' else str(e)
    raise UserError('config.init', name, expected) from e


def _of_run(
  experiment: experiment_lib.Experiment, found: workdir_lib.Found
) -> Source:
  name, average = experiment.config.init, bool(found.config.ema)
  with _naming_run(name):
    source = registry.find(found.config.task)(found.config)
    branch = _branch(experiment.task, source)
    saved, left_over = _abstract(experiment, source, branch, average)
    tokenizer = facts.fingerprint(source)
  facts.check_tokenizer(experiment.task, tokenizer, name)
  told = facts.of_config(config_lib.to_dict(source.config))
  notes = facts.compare(experiment.task.config, told, name)

  def exchange(params: Tree) -> Tree:
    params = source.exchange(params)
    return {branch: _without_head(params, source)} if branch else params

  return Source(
    'a run',
    f'step {found.step} of {name}',
    source,
    saved,
    exchange,
    lambda: restore(name, found, saved, 'ema' if average else 'params'),
    branch,
    left_over,
    notes,
  )


def _branch(like: task_lib.Task, source: task_lib.Task) -> str:
  """Returns which branch of this task's parameters the other run's are.

  Raises:
    UserError: it is of a task that has nothing to do with this one.
  """
  if type(source) is type(like):
    return ''
  branch, part = like.part
  if branch and type(source) is registry.find(part):
    return branch
  known = ' or '.join(map(repr, filter(None, (like.config.task, part))))
  expected = f'a run of the same task, {known}'
  raise UserError('config.task', source.config.task, expected)


def _without_head(params: Tree, task: task_lib.Task) -> Tree:
  return {name: value for name, value in params.items() if name != task.head}


def _abstract(
  experiment: experiment_lib.Experiment,
  source: task_lib.Task,
  branch: str,
  average: bool,
) -> tuple[Tree, tuple[str, ...]]:
  """Returns what is saved, and the names of what of it is of no use.

  That is shapes and types there, places on the mesh here.
  """
  with jax.set_mesh(sharding.one_device_mesh()):
    shapes = experiment_lib.abstract_params(source, sharding.one_device_mesh())
  exchanged = flat(source.exchange(shapes))
  dtype = lambda x: jnp.float32 if average else x.dtype
  placed = _placed(
    experiment, {k: (x.shape, dtype(x)) for k, x in exchanged.items()}, branch
  )
  unused = [_word(path) for path in exchanged if path[0] == source.head]
  saved = source.take(traverse_util.unflatten_dict(placed))
  return saved, tuple(unused if branch else ())


def _placed(
  experiment: experiment_lib.Experiment,
  leaves: dict[tuple, tuple],
  branch: str = '',
) -> Flat:
  """Returns each (shape, type) with where it is read to.

  That is where this run has the parameter of its name and shape; what has none
  is read whole.

  Args:
    experiment: that starts.
    leaves: (shape, type) by path.
    branch: of the experiment's parameters that the paths are below.
  """
  own = flat(experiment.task.exchange(experiment.abstract_params))
  whole = jax.NamedSharding(experiment.mesh, jax.P())
  above = (branch,) if branch else ()

  def place(path: tuple, shape: tuple, dtype: Any) -> jax.ShapeDtypeStruct:
    like = own.get(above + path)
    there: Any = whole
    if like is not None and like.shape == shape:
      there = like.sharding
    return jax.ShapeDtypeStruct(shape, dtype, sharding=there)

  return {path: place(path, *leaf) for path, leaf in leaves.items()}


def _word(path: tuple) -> str:
  return '/'.join(map(str, path))


# --- A file.


def _of_file(experiment: experiment_lib.Experiment, name: str) -> Source:
  task = experiment.task
  file = arrays.open_file(hub.locate(name))
  form = formats.detect(file.arrays)
  model = _model(task, form, name)
  notes = facts.compare(task.config, facts.of_file(form, file), name)
  own = flat(task.exchange(experiment.abstract_params))
  branch, head = _branch_of_file(task, file)
  paths = _paths_below(branch, own)
  heads = [f'{head}/{leaf}' for leaf in _LINEAR] if branch else []
  found = fit.fit(file, form, model, [*paths, *heads])
  fresh = lambda p: p in heads or is_reset(experiment.config, task, p)
  rows, left_over = _to_read(experiment, file, form, found, fresh)
  leaves = {paths[p]: (found.shapes[p], own[paths[p]].dtype) for p in rows}
  saved = _placed(experiment, leaves)

  def read() -> Tree:
    part = lambda row: lambda index: row.read(file.arrays, index)
    return traverse_util.unflatten_dict(
      {paths[p]: _place(saved[paths[p]], part(row)) for p, row in rows.items()}
    )

  return Source(
    'a file',
    f'{name}, a {form.name} file',
    task.of_shapes({_word(paths[p]): found.shapes[p] for p in rows}),
    traverse_util.unflatten_dict(saved),
    lambda params: params,
    read,
    branch,
    left_over,
    notes,
  )


def _branch_of_file(task: task_lib.Task, file: arrays.File) -> tuple[str, str]:
  """Returns the branch of the parameters that a file has, and its head's name.

  Only a file of our own has all of a model that has such a branch.
  """
  branch, part = task.part
  if not branch or any(_is_of(name, branch) for name in file.arrays):
    return '', ''
  return branch, registry.find(part).head


def _paths_below(branch: str, paths: Iterable[tuple]) -> dict[str, tuple]:
  """Returns the paths of a branch by what they are called in it."""
  if not branch:
    return {_word(path): path for path in paths}
  return {_word(path[1:]): path for path in paths if path[0] == branch}


def _model(task: task_lib.Task, form: Format, name: str) -> Any:
  """Returns the model's config, which the tables of other libraries need."""
  model = getattr(task.config, 'model', None)
  if form is not own_format.FORMAT and not isinstance(model, TransformerConfig):
    expected = f'our own format, not {form.name}, for a task of your own'
    raise UserError('config.init', name, expected)
  return model


def _to_read(
  experiment: experiment_lib.Experiment,
  file: arrays.File,
  form: Format,
  found: fit.Fit,
  fresh: Callable[[str], bool],
) -> tuple[dict[str, Row], tuple[str, ...]]:
  """Returns the rows that are to be read, and the names of all other arrays.

  A head that starts anew, or has no place here, is not read.
  """
  config = experiment.config
  missing = [path for path in found.missing if not fresh(path)]
  fit.check(
    'config.init', file, form, missing, found.left_over, config.init_allow
  )
  rows = {path: row for path, row in found.rows.items() if not fresh(path)}
  names = lambda rows: {n for row in rows.values() for n in row.names()}
  unread = sorted(names(found.rows) - names(rows))
  return rows, (*found.left_over, *unread)


def _place(
  like: jax.ShapeDtypeStruct, read: Callable[[Any], np.ndarray]
) -> jax.Array:
  """Returns an array of which every device reads its own part."""
  part = lambda index: np.asarray(read(index), like.dtype)
  place: Any = like.sharding
  return jax.make_array_from_callback(like.shape, place, part)
