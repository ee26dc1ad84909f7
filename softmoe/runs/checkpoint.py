"""Checkpoints of a run: the only module that knows Orbax.

A train state is a nested pytree of arrays (dicts, tuples, dataclasses) with
the parameters under the key `params`. A checkpoint is a directory named by its
step. It holds the state whole, whatever mesh it was on, and can be read onto
any other mesh.

A save is written below a hidden name, with the checksums of all its files last
of all, and gets the name of its step once all of it is on disk. Whatever has
such a name is whole, and its checksums tell whether it still is.
"""

import contextlib
import itertools
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from softmoe.config import CheckpointConfig
from softmoe.errors import UserError, WriteFailed
from softmoe.process import peers
from softmoe.runs import background, checksums, disk, leaves, noise

Tree = Any  # a nested pytree of arrays, or of jax.ShapeDtypeStruct

_METRICS = 'metrics/metrics'  # the file of a checkpoint's evaluation
# In bytes. One file of all would leave its checksum to a single thread.
_FILE_SIZE = 2**26
_opened = itertools.count()  # the same in all processes: they open alike

noise.quiet()


class Checkpoints:
  """The checkpoints of one run, saved in the background.

  All processes of a run call every method alike, and one run at a time saves.
  As a context manager, it waits on leaving until the last save is on disk.
  """

  def __init__(self, directory: str | os.PathLike, config: CheckpointConfig):
    """Looks at what is there, and makes nothing."""
    self._config = config
    self._directory = pathlib.Path(directory).expanduser().absolute()
    self._key = f'checkpoints/{next(_opened)}'
    # As one process sees it: a network's caches may lag behind elsewhere.
    there = json.dumps([secrets.token_hex(4), _steps(self._directory)])
    # The token keeps apart what a killed job's last process may still write.
    self._token, self._steps = json.loads(peers.from_first(self._key, there))
    self._inode: int | None = None  # of the directory, once saved into
    self._saving = background.Task()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    self.wait()

  def save(
    self,
    step: int,
    state: Tree,
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
  ) -> bool:
    """Starts to save `state` if `step` is due, and returns whether it did.

    The state is copied before this returns and may be donated at once; the
    rest happens in the background, after the save before it has ended. Once it
    is on disk, checkpoints that no rule keeps are deleted.

    Args:
      step: number of steps done; due if divisible by `config.every`. A step
        that is already there is not saved again.
      state: the train state.
      metrics: evaluation metrics of this very state, for the keep-best rule;
        None if it was not evaluated.
      force: whether to save even if the step is not due.

    Raises:
      WriteFailed: this save or the one before it went wrong.
    """
    if not force and not self._due(step):
      return False
    if step in self._steps:
      return False
    self.wait()
    metrics = {name: float(v) for name, v in (metrics or {}).items()}
    new = self._directory / f'.saving-{step}-{self._token}'
    with disk.writing(self._directory / str(step)):
      self._prepare()
      with _saving():
        written = ocp.save_async(str(new), state)
    self._steps.append(step)
    self._saving.start(lambda: self._finish(step, new, written, metrics))
    return True

  def restore(self, abstract_state: Tree, step: int | None = None) -> Tree:
    """Returns the state of a checkpoint, once its checksums were compared.

    Args:
      abstract_state: the state as `jax.ShapeDtypeStruct`s whose shardings say
        where each array goes.
      step: which checkpoint; None: the latest.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or of another
        model.
    """
    path = self._intact(step)
    leaves.compare(path, _saved(path), leaves.describe(abstract_state))
    return ocp.load(str(path), abstract_state)

  def restore_params(
    self, abstract_params: Tree, step: int | None = None, key: str = 'params'
  ) -> Tree:
    """Returns one branch of a state, by default its parameters, alone.

    Args:
      abstract_params: as in `restore`, for that branch.
      step: which checkpoint; None: the latest.
      key: name of the branch, for instance that of averaged parameters.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or of another
        model.
    """
    path = self._intact(step)
    wanted: Any = {key: abstract_params}
    saved = {k: v for k, v in _saved(path).items() if k.split('/')[0] == key}
    leaves.compare(path, saved, leaves.describe(wanted))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      restored: Any = ocp.load(str(path), wanted)
    return restored[key]

  def steps(self) -> list[int]:
    """Returns the steps of all checkpoints, in ascending order."""
    return sorted(self._steps)

  def latest(self) -> int | None:
    """Returns the last step that was saved, None if none was."""
    return max(self._steps, default=None)

  def best(self) -> int | None:
    """Returns the step with the best metric, None if none was evaluated.

    The highest `config.best_metric` is best; the lowest, if it is a loss. Of
    equals, the later.

    Raises:
      UserError: the metrics of a checkpoint are damaged.
    """
    self.wait()
    rated = [(self._rating(step), step) for step in self._steps]
    rating, step = max(rated, default=(-math.inf, 0))
    return step if rating > -math.inf else None

  def set_damaged_aside(self) -> None:
    """Renames the latest checkpoints to STEP.damaged until one is intact.

    To be called before the first save, by whoever has the run.

    Raises:
      WriteFailed: one cannot be renamed.
    """
    while (step := self.latest()) is not None and self._is_damaged(step):
      path = self._directory / str(step)
      if jax.process_index() == 0:
        aside = disk.set_aside(path, 'damaged')
        print(f'warning: {path} is damaged: now {aside.name}', file=sys.stderr)
      self._steps.remove(step)

  def instead(self, step: int) -> str:
    """Returns what to use where the checkpoint of `step` is damaged."""
    before = max((s for s in self._steps if s < step), default=None)
    if before is None:
      return 'an intact checkpoint; there is none before it'
    return (
      f'an intact checkpoint; that before it is {before}: --step={before} '
      'evaluates it, train.py --skip_damaged goes on from it'
    )

  def check(self) -> None:
    """Notices if the save in progress went wrong; waits for nothing.

    Raises:
      WriteFailed: it did.
    """
    self._saving.check()

  def wait(self) -> None:
    """Blocks until the save in progress, if any, is on disk.

    Raises:
      WriteFailed: it went wrong.
    """
    self._saving.wait()

  def _due(self, step: int) -> bool:
    return bool(self._config.every) and step % self._config.every == 0

  def _intact(self, step: int | None) -> pathlib.Path:
    """Returns the directory of a checkpoint that is as it was written."""
    self.wait()
    if not self._steps:
      raise UserError(str(self._directory), step, 'it holds no checkpoint yet')
    step = max(self._steps) if step is None else step
    if step not in self._steps:
      expected = f'one of {self.steps()} in {self._directory}'
      raise UserError('step', step, expected)
    path = self._directory / str(step)
    if not (path / checksums.FILE).exists() and jax.process_index() == 0:
      print(f'warning: {path} has no checksums: unchecked', file=sys.stderr)
    if changed := _changed(path):
      given = f'{", ".join(changed)}: not as written'
      raise UserError(f'checkpoint {path}', given, self.instead(step))
    return path

  def _is_damaged(self, step: int) -> bool:
    """Tells whether any process finds that a checkpoint is damaged."""
    key = f'{self._key}/{step}/damaged'
    try:
      mine = bool(_changed(self._directory / str(step)))
    except (OSError, ValueError, TypeError):  # of what lists the checksums
      mine = True
    found = peers.to_first(f'{key}/by', json.dumps(mine))
    return json.loads(peers.from_first(key, json.dumps('true' in found)))

  def _prepare(self) -> None:
    """Makes the directory, once; from then on it has to stay the same one."""
    if jax.process_index():
      return
    if self._inode is None:
      self._directory.mkdir(exist_ok=True)
      _remove_torn(self._directory)
      self._inode = self._directory.stat().st_ino
    self._check_place()

  def _check_place(self) -> None:
    if self._directory.stat().st_ino != self._inode:
      raise OSError('it was deleted or replaced during the run')

  def _finish(
    self, step: int, new: pathlib.Path, written: Any, metrics: dict[str, float]
  ) -> None:
    """Brings a save to disk under its own name, in the background.

    Each process vouches for the files that it wrote itself.
    """
    key, path = f'{self._key}/{step}', self._directory / str(step)
    try:
      written.result()
      if metrics and jax.process_index() == 0:
        (new / _METRICS).parent.mkdir()
        disk.write(new / _METRICS, json.dumps(metrics).encode())
      own = [
        f for f in checksums.names(new) if _writer(f) == jax.process_index()
      ]
      sums = checksums.of(new, own)
      for name in own:
        disk.sync(new / name)
      parts = peers.to_first(f'{key}/sums', json.dumps(sums))
      if jax.process_index() == 0:
        self._commit(new, path, parts)
      peers.meet(f'{key}/saved')
    except Exception as e:
      self._clear(new)
      raise WriteFailed(f'checkpoint {path}', e) from e

  def _clear(self, new: pathlib.Path) -> None:
    """Removes what a save made anew where the directory was deleted."""
    with contextlib.suppress(OSError):
      replaced = self._directory.stat().st_ino != self._inode
      if replaced and self._inode is not None:  # as the first process knows it
        for left in self._directory.glob(f'{new.name}*'):
          shutil.rmtree(left)
        self._directory.rmdir()
        self._directory.parent.rmdir()

  def _commit(
    self, new: pathlib.Path, path: pathlib.Path, parts: list[str]
  ) -> None:
    sums = {name: s for part in parts for name, s in json.loads(part).items()}
    if unseen := set(checksums.names(new)) - set(sums):
      raise OSError(f'no process has seen {sorted(unseen)}')
    text = json.dumps(sums, indent=0) + '\n'
    disk.write(new / checksums.FILE, text.encode())
    for directory in (new, *(p for p in new.rglob('*') if p.is_dir())):
      disk.sync(directory)
    self._check_place()
    disk.rename(new, path)
    self._prune()

  def _prune(self) -> None:
    """Deletes what no rule keeps: first its name, then its content.

    What is gone already, or cannot be deleted, makes no save fail.
    """
    for step in set(self._steps) - self._kept():
      path = self._directory / str(step)
      doomed = path.with_name(f'.deleting-{step}')
      with contextlib.suppress(OSError):
        path.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
      self._steps.remove(step)

  def _kept(self) -> set[int]:
    config, steps = self._config, self.steps()
    kept, rated = set(steps[-config.keep_last :]), []
    for step in steps:
      if config.keep_every and step % config.keep_every == 0:
        kept.add(step)
      try:
        rated.append((self._rating(step), step))
      except UserError:
        kept.add(step)  # nobody knows whether it is the best
    rated = sorted(pair for pair in rated if pair[0] > -math.inf)
    best = rated[-config.keep_best :] if config.keep_best else []
    return kept | {step for _, step in best}

  def _rating(self, step: int) -> float:
    """Returns how good a checkpoint is: higher is better, -inf is unknown."""
    path, name = self._directory / str(step), self._config.best_metric
    try:
      value = _metrics(path).get(name, math.nan)
    except (OSError, ValueError, TypeError, AttributeError) as e:
      raise UserError(f'checkpoint {path}', f'{e}', 'intact metrics') from e
    if math.isnan(value):
      return -math.inf
    return -value if 'loss' in name else value


def _steps(directory: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints in a directory, ascending."""
  names = [p.name for p in directory.glob('[0-9]*') if p.is_dir()]
  return sorted(int(name) for name in names if name.isdecimal())


def _remove_torn(directory: pathlib.Path) -> None:
  """Removes what saves and deletions left that were killed."""
  for path in directory.iterdir():
    if path.name.startswith('.') or '.orbax-checkpoint-tmp' in path.name:
      shutil.rmtree(path, ignore_errors=True)


def _writer(name: str) -> int:
  """Returns which process wrote a file: the first, if no name is in it."""
  match = re.match(r'.*\bprocess_(\d+)(/|$)', name)
  return int(match[1]) if match else 0


def _changed(path: pathlib.Path) -> list[str]:
  """Returns which files of a checkpoint are not as they were written.

  Each process looks at its share of them; all of them together at all.
  """
  sums = checksums.read(path) or {}
  share = sorted(sums)[jax.process_index() :: jax.process_count()]
  return checksums.differing(path, {name: sums[name] for name in share})


def _metrics(path: pathlib.Path) -> dict[str, float]:
  """Returns the metrics that a checkpoint was saved with.

  Raises:
    OSError, ValueError: they are damaged.
  """
  sums = checksums.read(path) or {}
  listed = {name: sums[name] for name in sums if name == _METRICS}
  if checksums.differing(path, listed):
    raise ValueError(f'{_METRICS}: not as written')
  file = path / _METRICS
  return json.loads(file.read_bytes()) if file.exists() else {}


def _saving() -> ocp.Context:
  """Returns a context in which checkpoints become files of a moderate size."""
  context = ocp.Context()
  context.array.saving.ocdbt_target_data_file_size = _FILE_SIZE
  return context


def _saved(path: pathlib.Path) -> dict[str, str]:
  metadata = ocp.metadata(str(path)).metadata
  if metadata is None:
    raise ValueError('its metadata is damaged')
  return leaves.describe(metadata)
