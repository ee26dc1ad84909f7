"""What a run tells while it goes on: progress, metrics, speed."""

import contextlib
import pathlib
from collections.abc import Mapping

import jax

from softmoe import experiment as experiment_lib
from softmoe.costs import flops, peak
from softmoe.runs import disk
from softmoe.training import divergence, progress, writers
from softmoe.training import step as step_lib


class Logger:
  """Writes training metrics one step late, so that no device ever waits.

  The metrics of a step are fetched when those of the next one come: by then
  the next step is on its way. `flush` fetches the last ones.

  Attributes:
    cost: what a forward pass costs in training.
  """

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    workdir: pathlib.Path,
    start_step: int,
  ):
    """Drops what `workdir` tells of later steps than `start_step`.

    The metrics of a run whose checkpoints are gone are set aside.
    """
    config, task = experiment.config, experiment.task
    self._config, self._task = config, task
    chief = jax.process_index() == 0
    self.cost = flops.forward(config, training=True)
    self._peak_flops = peak.peak_flops(experiment.mesh)
    is_frozen = any(jax.tree.leaves(experiment.frozen))
    self._has_share = self.cost.is_fixed and not is_frozen
    self._progress = progress.Progress(
      config.steps,
      start_step,
      config.data.batch_size * task.units_per_example,
      task.unit,
      enabled=chief,
    )
    if chief:
      self._compare(workdir / writers.FILE_NAME, start_step)
    self._writer = writers.MetricWriter(workdir, start_step, chief)
    self._pending: tuple[int, step_lib.Metrics] | None = None

  def __enter__(self) -> 'Logger':
    return self

  def __exit__(self, *_) -> None:
    self._progress.close()
    self._writer.close()

  def message(self, text: str) -> None:
    """Prints a line."""
    self._progress.message(text)

  def pause(self) -> contextlib.AbstractContextManager[None]:
    """Stops the clock of the training speed."""
    return self._progress.pause()

  def step(self, step: int, metrics: step_lib.Metrics) -> None:
    """Takes the metrics of a step, and tells those of the one before."""
    self.flush()
    self._pending = step, metrics

  def flush(self) -> None:
    """Waits for the last step, and tells its metrics if they are due.

    Raises:
      Diverged: they are not finite.
    """
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    divergence.check(step, values)
    if step % self._config.log_every and step not in (1, self._config.steps):
      return
    self._progress.update(step, self._shown(values))
    self._writer.write_scalars(step, values | self.speed())

  def sync(self) -> None:
    """Waits until all metrics that were told are on disk.

    Raises:
      WriteFailed: they cannot be brought there.
    """
    self._writer.sync()

  def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
    """Tells how good the state after `step` steps is."""
    self._writer.write_scalars(
      step, {f'eval/{name}': value for name, value in metrics.items()}
    )
    shown = self._shown(metrics).items()
    self.message(
      f'step {step}: {self._config.data.eval_split} '
      + ' '.join(f'{name} {value:.4f}' for name, value in shown)
    )

  def speed(self) -> dict[str, float]:
    """Returns units/s and, where the peak is known, the share of it used.

    A training step counts as three forward passes, whatever remat repeats. A
    model whose tokens decide what they cost, or that is frozen in part, has no
    share.
    """
    rate = self._progress.units_per_second
    if not rate:
      return {}
    speed = {f'{self._task.unit}s_per_second': rate}
    if self._peak_flops and self._has_share:
      speed['mfu'] = 3 * self.cost.flops() * rate / self._peak_flops
    return speed

  def _compare(self, path: pathlib.Path, start_step: int) -> None:
    """Warns where there are metrics without a checkpoint, or none with one."""
    if start_step and not path.exists():
      self.message(
        f'warning: {path.name} is missing: the metrics up to step '
        f'{start_step} are lost'
      )
    if not start_step and path.exists() and path.stat().st_size:
      aside = disk.set_aside(path, 'old')
      self.message(
        f'warning: there is no checkpoint: the run starts at step 0, and what '
        f'{path.name} held is now {aside.name}'
      )

  def _shown(self, metrics: Mapping[str, float]) -> dict[str, float]:
    return {n: metrics[n] for n in self._task.shown if n in metrics}
