"""The directory of one run: who owns it, and what it holds.

`config.json`, `params.txt`, what the task keeps (a tokenizer), `metrics.jsonl`,
TensorBoard events, `checkpoints/`, and at the end `result.json`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from absl import logging
from clu import parameter_overview

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import attention
from softmoe.models.config import TransformerConfig
from softmoe.process import peers
from softmoe.runs import checkpoint, disk, lock
from softmoe.tasks import registry

_LOCK = '.lock'  # whoever trains here has it

# Fields that may change from one start of a run to the next: none of them
# changes a number that the run computes, but for the order of a sum.
_FREE_OF_TOWERS = (
  'attention',
  'moe.buffer_factor',
  'moe.exchange_chunks',
  'remat',
)
_FREE = (
  'mesh',
  *(f'model.{field}' for field in _FREE_OF_TOWERS),
  *(f'text.{field}' for field in _FREE_OF_TOWERS),
  'log_every',
  'eval_every',
  'profile',
  'checkpoint.',
  'data.threads',
  'data.prefetch',
  'data.max_pixels',
  'sample.',
)
# Nor do these, where the loss of a batch is a sum over its examples.
_FREE_OF_SUMS = ('data.eval_batch_size',)


def claim(
  workdir: str | os.PathLike, config: config_lib.Config
) -> pathlib.Path:
  """Makes sure that `workdir` is new, empty, or of this very experiment.

  It is made if it does not exist; nothing is written into it.

  Raises:
    UserError: it is no path, cannot be written to, holds files of something
      else, belongs to another experiment, or another process trains in it.
  """
  _check_mounted(workdir)
  workdir = pathlib.Path(workdir).expanduser()
  _make(workdir)
  if lock.is_taken(workdir / _LOCK):
    raise _taken(workdir)
  if (workdir / 'config.json').exists():
    _compare(workdir, config)
  elif any(_is_visible_file(path) for path in workdir.rglob('*')):
    raise UserError(
      '--workdir', str(workdir), 'a directory that is new, empty or of a run'
    )
  return workdir


@contextlib.contextmanager
def held(workdir: pathlib.Path, config: config_lib.Config) -> Iterator[None]:
  """Keeps everyone else from training in `workdir`, which was claimed.

  Process 0 has the lock, for its job. What another run left since the claim is
  looked at once more.

  Raises:
    UserError: as `claim`, or another process has a directory of its own by
      that name.
  """
  peers.meet('claimed')  # so nobody writes while another still looks
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      with disk.writing(workdir):
        file = lock.take(workdir / _LOCK)
      if file is None:
        raise _taken(workdir)
      stack.enter_context(file)
      if (workdir / 'config.json').exists():
        _compare(workdir, config)
    _share(workdir)
    yield


def _share(workdir: pathlib.Path) -> None:
  """Makes sure that `workdir` is the same directory for all processes."""
  own = str(workdir.absolute())  # checkpoints are written by it
  job = json.dumps([own, secrets.token_hex(8)])
  path, token = json.loads(peers.from_first('job', job))
  if path != own:
    raise UserError('--workdir', own, f'one path for all processes: {path}')
  token = workdir / f'.job.{token}'
  if jax.process_index() == 0:
    with disk.writing(workdir):
      token.touch()
  peers.meet('written')
  if not token.exists():
    raise UserError(
      '--workdir', str(workdir), 'a directory that all processes share'
    )
  peers.meet('shared')
  if jax.process_index() == 0:
    token.unlink()


def describe(
  experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> None:
  """Makes the workdir this run's: its files, `config.json`, `params.txt`."""
  # First the config: without it, other files would be something else's.
  write_json(workdir / 'config.json', config_lib.to_dict(experiment.config))
  for name, content in experiment.task.files().items():
    disk.write(workdir / name, content)
  overview = parameter_overview.get_parameter_overview(
    experiment.abstract_params, include_stats=False
  )
  disk.write(workdir / 'params.txt', (overview + '\n').encode())


def read_config(workdir: pathlib.Path) -> config_lib.Config:
  """Returns the config of the run in `workdir`.

  Raises:
    UserError: there is none, or it is not one.
  """
  _check_mounted(workdir)
  values = _read_json(workdir / 'config.json')
  values.pop('fsdp', None)  # of old runs: now an axis of the mesh
  return experiment_lib.parse(values)


def changes(
  old: config_lib.Config, new: config_lib.Config
) -> dict[str, tuple[Any, Any]]:
  """Returns the fields, as path -> (old, new), that change a run's numbers."""
  additive = registry.find(old.task).additive
  free = _FREE + (_FREE_OF_SUMS if additive else ())
  return {
    field: values
    for field, values in config_lib.differences(old, new).items()
    if not field.startswith(free)
  }


def read_result(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns what a finished run wrote to `result.json`, None if it did not.

  Raises:
    UserError: the file is corrupt.
  """
  path = workdir / 'result.json'
  return _read_json(path) if path.exists() else None


def open_checkpoints(
  workdir: pathlib.Path, config: config_lib.Config
) -> checkpoint.Checkpoints:
  """Returns the checkpoints of the run in `workdir`; there may be none yet.

  Raises:
    UserError: the config is wrong.
  """
  return checkpoint.Checkpoints(workdir / 'checkpoints', config.checkpoint)


class Found(NamedTuple):
  """A checkpoint of a run.

  Attributes:
    config: of the run, as it can be built here.
    step: number of the checkpoint.
    checkpoints: where it can be read.
  """

  config: config_lib.Config
  step: int
  checkpoints: checkpoint.Checkpoints


@contextlib.contextmanager
def find_checkpoint(
  workdir: str | os.PathLike, step: str | int
) -> Iterator[Found]:
  """Finds a checkpoint of the run in `workdir`, finished or not.

  Args:
    workdir: directory of the run.
    step: 'latest', 'best' or a number.

  Raises:
    UserError: there is no such run or checkpoint.
  """
  workdir = pathlib.Path(workdir).expanduser()
  config = read_config(workdir)
  config = registry.find(config.task).located(config, workdir)
  config = _with_attention(config)
  if not (workdir / 'checkpoints').exists():
    raise UserError('--workdir', str(workdir), 'a run with a checkpoint')
  with open_checkpoints(workdir, config) as checkpoints:
    yield Found(config, _find(checkpoints, step), checkpoints)


def _with_attention(config: config_lib.Config) -> config_lib.Config:
  """Returns a run's config, 'plain' where its attention is not to be had."""
  platform, plain = sharding.platform(), {}
  for field in dataclasses.fields(config):
    model = getattr(config, field.name)
    if isinstance(model, TransformerConfig) and not attention.is_there(
      model.attention, platform
    ):
      plain[field.name] = dataclasses.replace(model, attention='plain')
  return dataclasses.replace(config, **plain)


@contextlib.contextmanager
def reading(step: int, checkpoints: checkpoint.Checkpoints) -> Iterator[None]:
  """Turns whatever a damaged checkpoint raises into one UserError."""
  # The libraries beneath report damage at length, in several log lines.
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    if peers.is_loss(e):
      raise
    problem = f'{type(e).__name__}: {e}'.splitlines()[0][:200]
    expected = checkpoints.instead(step)
    raise UserError(f'checkpoint {step}', problem, expected) from e
  finally:
    logging.set_verbosity(verbosity)


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON file to disk, all of it or nothing.

  Raises:
    WriteFailed: the disk is full, or the directory is gone.
  """
  disk.write(path, (json.dumps(value, indent=2) + '\n').encode())


def _find(checkpoints: checkpoint.Checkpoints, step: str | int) -> int:
  """Returns the number of the checkpoint that `step` names."""
  named = {'latest': checkpoints.latest, 'best': checkpoints.best}
  name = str(step)
  if name not in named and not name.isdecimal():
    raise UserError('--step', step, "'latest', 'best' or a number")
  number = int(name) if name.isdecimal() else named[name]()
  if number is None:
    raise UserError(
      '--step', step, f'a checkpoint that is there: {checkpoints.steps()}'
    )
  return number


def _check_mounted(workdir: str | os.PathLike) -> None:
  """Raises if `workdir` is a URL such as 'gs://bucket/run'."""
  # One slash is enough: a path of two has lost one.
  if re.match(r'[A-Za-z][\w+.-]+:/', os.fspath(workdir)):
    raise UserError(
      '--workdir',
      os.fspath(workdir),
      'a path on a file system that is mounted here, such as by gcsfuse',
    )


def _taken(workdir: pathlib.Path) -> UserError:
  expected = 'a run that no other process is training'
  return UserError('--workdir', str(workdir), expected)


def _make(workdir: pathlib.Path) -> None:
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    writable = os.access(workdir, os.W_OK | os.X_OK)
  except OSError as e:
    raise UserError(
      '--workdir', str(workdir), f'a directory that can be made ({e.strerror})'
    ) from e
  if not writable:
    raise UserError('--workdir', str(workdir), 'a writable directory')


def _is_visible_file(path: pathlib.Path) -> bool:
  return path.is_file() and not path.name.startswith('.')


def _compare(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Raises if the run in `workdir` computes other numbers than `config`."""
  for field, (old, new) in changes(read_config(workdir), config).items():
    raise UserError(
      f'config.{field}',
      new,
      f'{old!r}, as the run in {workdir} has it; or take another --workdir',
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except OSError as e:
    expected = f'a run, which has a {path.name} ({e.strerror})'
    raise UserError('--workdir', str(path.parent), expected) from e
  except ValueError as e:
    raise UserError('--workdir', str(path.parent), f'a run; {path}: {e}') from e
  if not isinstance(value, dict):
    raise UserError(str(path), value, 'an object, as a run writes it')
  return value
