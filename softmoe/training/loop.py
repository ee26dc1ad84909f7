"""The training loop, from a config to `result.json`."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.costs import flops
from softmoe.data import prefetch
from softmoe.errors import Stopped
from softmoe.process import peers, preemption
from softmoe.runs import checkpoint, restarts
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.training import logger as logger_lib
from softmoe.training import profile as profile_lib
from softmoe.training import startup as startup_lib
from softmoe.training import step as step_lib
from softmoe.weights import pretrained


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  skip_damaged: bool = False,
) -> dict[str, Any]:
  """Trains, or goes on where the run in `workdir` stopped.

  A run that was stopped at any point and goes on ends with the same bits as
  one that was not: a batch follows from seed and step, and so does every
  random key.

  Args:
    config: of the experiment.
    workdir: directory of the run; nobody else trains there meanwhile.
    skip_damaged: whether to go on from the latest checkpoint that is intact,
      where the latest is not, instead of raising a UserError.

  Returns:
    What `result.json` holds: the evaluation of the last state, the size and
    cost of the model, the speed.

  Raises:
    UserError: bad input. Only a bad example that shows late in the training
      is found after something was written.
    Stopped: SIGTERM or SIGINT came; the state is saved.
    Diverged: the loss is no longer finite; the last checkpoint stays.
    WriteFailed: the disk is full, or the workdir is gone.
    GaveUp: the starts before this one were lost, and gained no step.
  """
  startup = startup_lib.Startup()
  startup.done('imports')
  config = experiment_lib.with_fingerprint(config)
  workdir = workdir_lib.claim(workdir, config)
  result = workdir_lib.read_result(workdir)
  if result is None:
    experiment = experiment_lib.build(config)
    startup.done('model')
    _check_data(experiment)
    startup.done('data')
    train_step = step_lib.make_train_step(experiment)
    _check_step(experiment, train_step)
    startup.done('trace')
    with workdir_lib.held(workdir, config):
      # Another process may have finished it in the meantime.
      result = workdir_lib.read_result(workdir)
      if result is None:
        return _train(experiment, train_step, workdir, startup, skip_damaged)
  if jax.process_index() == 0:
    print(f'{workdir} holds the finished run', file=sys.stderr)
  return result


def _train(
  experiment: experiment_lib.Experiment,
  train_step: Any,
  workdir: pathlib.Path,
  startup: startup_lib.Startup,
  skip_damaged: bool,
) -> dict[str, Any]:
  chief, config = jax.process_index() == 0, experiment.config
  with (
    preemption.StopSignal() as stop,
    workdir_lib.open_checkpoints(workdir, config) as checkpoints,
  ):
    if skip_damaged:
      checkpoints.set_damaged_aside()
    start = checkpoints.latest() or 0
    with restarts.counting(workdir, start), peers.ending_on_loss():
      # Restored before anything is written: it may be another model's.
      state = state_lib.restore_or_init(
        experiment, checkpoints, pretrained.start
      )
      startup.done('state')
      if chief:
        workdir_lib.describe(experiment, workdir)
      with logger_lib.Logger(experiment, workdir, start) as logger:
        _announce(experiment, logger, workdir, start)
        for doubt in state_lib.doubts(state, start):
          logger.message(f'warning: {doubt}')
        profile = profile_lib.Profile(config.profile, workdir, logger.pause)
        startup.done('cost')
        told = logger, profile, startup
        run = _Run(experiment, train_step, checkpoints, start, *told)
        with contextlib.closing(profile):
          evaluation = run.loop(state, stop)
        result = _result(experiment, logger, evaluation)
  if chief:
    workdir_lib.write_json(workdir / 'result.json', result)
  return result


class _Run:
  """What the loop works with; it holds no state of the training."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    train_step: Any,
    checkpoints: checkpoint.Checkpoints,
    start: int,
    logger: logger_lib.Logger,
    profile: profile_lib.Profile,
    startup: startup_lib.Startup,
  ):
    self.config, self.checkpoints = experiment.config, checkpoints
    self.logger, self.profile, self.startup = logger, profile, startup
    self.start = start
    self.batches = batches(experiment, start)
    self.train_step = train_step
    split = self.config.data.eval_split
    self.evaluate = lambda params: experiment.evaluate(params, split)

  def loop(
    self, state: state_lib.TrainState, stop: preemption.StopSignal
  ) -> dict[str, float]:
    """Runs the remaining steps; returns the evaluation of the last state.

    The order matters. A state is saved after its metrics were seen, so that it
    is finite; after its evaluation is on disk, so that a run that goes on
    from it neither loses nor repeats that line; and together with it, so that
    the best can be kept. A stop at the last step is none.
    """
    config, evaluation = self.config, {}
    for step in range(self.start + 1, config.steps + 1):
      batch = next(self.batches)
      self.profile.before(step, self.train_step, state, batch)
      state, metrics = self.train_step(state, batch)
      self.profile.after(step, metrics)
      if step == self.start + 1:
        jax.block_until_ready(metrics)
        self.startup.done('step')
        self.logger.message(self.startup.text())
      self.logger.step(step, metrics)
      self.checkpoints.check()
      last = step == config.steps
      # Asked once: a signal from here on is for the next step.
      stopping = '' if last else stop.after_step()
      evaluating = last or _divides(config.eval_every, step)
      saving = last or stopping or _divides(config.checkpoint.every, step)
      if not evaluating and not saving:
        continue
      self.logger.flush()
      with self.logger.pause():
        if evaluating:
          evaluation = self.evaluate(state_lib.evaluated(state))
          self.logger.evaluation(step, evaluation)
        if saving:
          metric = evaluation if evaluating else None
          self.logger.sync()
          self.checkpoints.save(step, state, metric, force=True)
      if stopping:
        raise Stopped(stopping, step)
    # Empty if the run was killed between its last save and its result.
    return evaluation or self.evaluate(state_lib.evaluated(state))


def _divides(every: int, step: int) -> bool:
  return every > 0 and step % every == 0


def _check_data(experiment: experiment_lib.Experiment) -> None:
  """Reads one batch of each split, so that bad data shows before any file."""
  task, data, mesh = experiment.task, experiment.config.data, experiment.mesh
  for name in ('batch_size', 'eval_batch_size'):
    batch = experiment.abstract_batch(getattr(data, name))
    prefetch.check_memory(f'config.data.{name}', batch, mesh)
  next(task.train_batches(prefetch.local_rows(mesh, data.batch_size)))
  rows = prefetch.local_rows(mesh, data.eval_batch_size)
  next(task.eval_batches(data.eval_split, rows))
  _ = experiment.evaluators  # which open what they read


def _check_step(experiment: experiment_lib.Experiment, train_step: Any) -> None:
  """Traces the step, so that what does not fit shows before any file."""
  batch = experiment.abstract_batch(experiment.config.data.batch_size)
  train_step.trace(state_lib.abstract(experiment), batch)


def batches(
  experiment: experiment_lib.Experiment, start: int
) -> Iterator[step_lib.Batch]:
  """Returns the global batches from step `start` on, on the devices."""
  data, mesh = experiment.config.data, experiment.mesh
  rows = prefetch.local_rows(mesh, data.batch_size)
  local = experiment.task.train_batches(rows, start)
  return prefetch.to_devices(local, mesh, data.prefetch)


def _announce(
  experiment: experiment_lib.Experiment,
  logger: logger_lib.Logger,
  workdir: pathlib.Path,
  start: int,
) -> None:
  """Says what is trained, on what, and from where on."""
  mesh = dict(experiment.mesh.shape)
  fixed = '' if logger.cost.is_fixed else 'up to '
  logger.message(
    f'{experiment.config.name}: {experiment.num_params():,} parameters, '
    f'{fixed}{logger.cost.flops() / 1e9:.3g} GFLOP/{experiment.task.unit}, '
    f'{jax.default_backend()} device(s) as {mesh}'
  )
  if start:
    logger.message(f'resuming {workdir} at step {start}')


def _result(
  experiment: experiment_lib.Experiment,
  logger: logger_lib.Logger,
  evaluation: dict[str, float],
) -> dict[str, Any]:
  """Returns the content of `result.json`."""
  config, cost = experiment.config, flops.forward(experiment.config)
  wanted = None if cost.is_fixed else evaluation['moe/wanted']
  return {
    'name': config.name,
    'steps': config.steps,
    'split': config.data.eval_split,
    **evaluation,
    **({'notes': notes} if (notes := experiment.task.notes()) else {}),
    'params': experiment.num_params(),
    'data': config.data.fingerprint,
    'metric': config.checkpoint.best_metric,
    'unit': experiment.task.unit,
    f'gflop_per_{experiment.task.unit}': cost.flops(wanted) / 1e9,
    'train': logger.speed(),
    'device': jax.devices()[0].device_kind,
    'devices': experiment.mesh.size,
    'finished': time.strftime('%Y-%m-%dT%H:%M:%S'),
  }
