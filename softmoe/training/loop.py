"""The training loop, from a config to `result.json`."""

import math
import pathlib
import time
from typing import Any

import jax
from clu import parameter_overview

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import flops
from softmoe.data import batches, prefetch
from softmoe.evaluation import classification
from softmoe.training import checkpoint, preemption, progress, writers
from softmoe.training import state as state_lib
from softmoe.training import step as step_lib
from softmoe.training import workdir as workdir_lib

SHOWN = ('loss', 'accuracy', 'learning_rate')


def train(
  config: config_lib.Config, workdir: str | pathlib.Path
) -> dict[str, Any]:
  """Trains, or goes on where the run in `workdir` stopped.

  A run that was stopped at any point and goes on ends with the same bits as
  one that was not: a batch follows from seed and step, and so does every
  random key.

  Returns:
    What `result.json` holds: the evaluation of the last state, the size and
    cost of the model, the speed.

  Raises:
    UserError: bad input; nothing in `workdir` has changed then.
    Stopped: SIGTERM or SIGINT came; the state is saved.
    FloatingPointError: the loss is no longer finite.
  """
  workdir = pathlib.Path(workdir)
  workdir_lib.claim(workdir, config)
  experiment = experiment_lib.build(config)
  check_data(config)
  run = _Run(experiment, workdir)
  result = workdir_lib.read_result(workdir)
  if result and run.checkpoints.latest() == config.steps:
    run.progress.message(f'{workdir} holds the finished run')
    return result
  with run.checkpoints, preemption.StopSignal() as stop:
    state = run.restore_or_init()
    state, evaluation = run.loop(state, stop)
  result = run.result(evaluation)
  workdir_lib.write_json(workdir / 'result.json', result)
  return result


def check_data(config: config_lib.Config) -> None:
  """Reads one batch of each split, so that bad data shows before any file."""
  local = dict(
    process_index=jax.process_index(), process_count=jax.process_count()
  )
  next(batches.train_batches(config.data, seed=config.seed, **local))
  next(batches.eval_batches(config.data, config.data.eval_split, **local))


class _Run:
  """What the loop works with; it holds no state of the training."""

  def __init__(
    self, experiment: experiment_lib.Experiment, workdir: pathlib.Path
  ):
    config = self.config = experiment.config
    self.experiment, self.workdir = experiment, workdir
    self.chief = jax.process_index() == 0
    if self.chief:
      self.write_config()
    self.checkpoints = checkpoint.Checkpoints(
      workdir / 'checkpoints', config.checkpoint
    )
    self.start = self.checkpoints.latest() or 0
    self.train_step = step_lib.make_train_step(experiment)
    self.evaluate = classification.make_evaluator(
      experiment, config.data.eval_split
    )
    self.forward_flops = flops.forward_flops(config)
    self.peak_flops = flops.peak_flops(experiment.mesh)
    self.progress = progress.Progress(
      config.steps, self.start, config.data.batch_size, enabled=self.chief
    )

  def restore_or_init(self) -> state_lib.TrainState:
    """Returns the newest saved state, or a fresh one."""
    self.announce()
    if self.start:
      self.progress.message(f'resuming {self.workdir} at step {self.start}')
      return self.checkpoints.restore(state_lib.abstract(self.experiment))
    return state_lib.init(self.experiment)

  def write_config(self) -> None:
    """Makes the workdir this run's: `config.json` and `params.txt`."""
    config = config_lib.to_dict(self.config)
    workdir_lib.write_json(self.workdir / 'config.json', config)
    overview = parameter_overview.get_parameter_overview(
      self.experiment.abstract_params, include_stats=False
    )
    (self.workdir / 'params.txt').write_text(overview + '\n')

  def announce(self) -> None:
    """Says what will be trained, and on what."""
    mesh = dict(self.experiment.mesh.shape)
    self.progress.message(
      f'{self.config.name}: {self.experiment.num_params():,} parameters, '
      f'{self.forward_flops / 1e9:.3g} GFLOP an image, '
      f'{jax.default_backend()} device(s) as {mesh}'
    )

  def batches(self) -> Any:
    """Returns the global batches from the first step on, on the devices."""
    local = batches.train_batches(
      self.config.data,
      seed=self.config.seed,
      start_step=self.start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    return prefetch.to_devices(
      local, self.experiment.mesh, self.config.data.prefetch
    )

  def loop(
    self, state: state_lib.TrainState, stop: preemption.StopSignal
  ) -> tuple[state_lib.TrainState, dict[str, float]]:
    """Runs the remaining steps; returns the last state and its evaluation.

    The order matters. A step is dispatched before the metrics of the one
    before are fetched, so that the devices never wait for the host. A state
    is evaluated before it is saved, so that its metric is saved with it.
    """
    data = self.batches()
    writer = writers.MetricWriter(self.workdir, self.start, self.chief)
    previous, evaluation = None, {}
    for step in range(self.start + 1, self.config.steps + 1):
      state, metrics = self.train_step(state, next(data))
      if previous:
        self.report(writer, step - 1, previous)
      previous = metrics
      if not self.pauses_at(step) and not stop.name:
        continue
      self.report(writer, step, previous)
      previous = None
      if self.evaluates_at(step):
        evaluation = self.evaluation(writer, step, state)
      metric = evaluation if self.evaluates_at(step) else None
      last = bool(stop.name) or step == self.config.steps
      self.checkpoints.save(step, state, metric, force=last)
      if stop.name:
        self.stop(writer, stop, step)
    if not evaluation:
      evaluation = self.evaluation(writer, self.config.steps, state)
    self.progress.close()
    writer.close()
    return state, evaluation

  def evaluates_at(self, step: int) -> bool:
    """Tells whether the state after `step` steps is evaluated."""
    every = self.config.eval_every
    return step == self.config.steps or bool(every and step % every == 0)

  def pauses_at(self, step: int) -> bool:
    """Tells whether anything but training happens after `step` steps."""
    every = self.config.checkpoint.every
    return self.evaluates_at(step) or bool(every and step % every == 0)

  def report(
    self, writer: writers.MetricWriter, step: int, metrics: step_lib.Metrics
  ) -> None:
    """Waits for the metrics of a step; writes them if they are due."""
    loss = float(metrics['loss'])
    if not math.isfinite(loss):
      raise FloatingPointError(
        f'the loss at step {step} is {loss}; a lower learning rate, a longer '
        'warm-up or gradient clipping may help'
      )
    if step % self.config.log_every and step not in (1, self.config.steps):
      return
    values = {name: float(value) for name, value in metrics.items()}
    self.progress.update(step, {name: values[name] for name in SHOWN})
    writer.write_scalars(step, values | self.speed())

  def speed(self) -> dict[str, float]:
    """Returns images/s and, where the peak is known, the share of it used.

    A training step counts as three forward passes, whatever remat repeats.
    """
    rate = self.progress.images_per_second
    if not rate:
      return {}
    speed = {'images_per_second': rate}
    if self.peak_flops:
      speed['mfu'] = 3 * self.forward_flops * rate / self.peak_flops
    return speed

  def evaluation(
    self,
    writer: writers.MetricWriter,
    step: int,
    state: state_lib.TrainState,
  ) -> dict[str, float]:
    """Evaluates the state, off the clock."""
    with self.progress.pause():
      metrics = self.evaluate(state_lib.evaluated(state))
    writer.write_scalars(step, {f'eval/{k}': v for k, v in metrics.items()})
    self.progress.message(
      f'step {step}: {self.config.data.eval_split} '
      f'accuracy {metrics["accuracy"]:.4f} loss {metrics["loss"]:.4f}'
    )
    return metrics

  def stop(
    self,
    writer: writers.MetricWriter,
    stop: preemption.StopSignal,
    step: int,
  ) -> None:
    """Ends the run as a signal asked, with everything on disk."""
    self.checkpoints.wait()
    self.progress.close()
    writer.close()
    raise preemption.Stopped(
      f'{stop.name}: saved step {step} in {self.workdir}; '
      'the same command goes on from there'
    )

  def result(self, evaluation: dict[str, float]) -> dict[str, Any]:
    """Returns the content of `result.json`."""
    return {
      'name': self.config.name,
      'steps': self.config.steps,
      'split': self.config.data.eval_split,
      **evaluation,
      'params': self.experiment.num_params(),
      'gflop_per_image': self.forward_flops / 1e9,
      'train': self.speed(),
      'device': jax.devices()[0].device_kind,
      'devices': self.experiment.mesh.size,
      'finished': time.strftime('%Y-%m-%dT%H:%M:%S'),
    }
