"""Quality, compute and time of runs, at each threshold."""

import dataclasses
import math
import pathlib
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.costs import flops
from softmoe.data import prefetch
from softmoe.errors import UserError
from softmoe.process import interleaved
from softmoe.runs import load
from softmoe.runs import workdir as workdir_lib
from softmoe.tasks import means

ALL = math.inf  # the threshold at which every expert is on
_BETWEEN_SEEDS = ('seed', 'init')  # fields in which runs of one model differ


@dataclasses.dataclass(frozen=True)
class Row:
  """A run at one threshold.

  Attributes:
    run: the name of its folder.
    threshold: None where the run's router knows none.
    metrics: of the evaluation.
    flops: executed for a unit of the task, such as a token, in one forward pass
      of the whole model.
    seconds: of the forward pass of a batch; the median over the rounds.
    unit: of the task.
    batch_size: examples of that batch.
  """

  run: str
  threshold: float | None
  metrics: dict[str, float]
  flops: float
  seconds: float
  unit: str
  batch_size: int

  @property
  def model(self) -> str:
    """Returns the run without its seed."""
    return _model(self.run)


def measure(
  workdirs: Sequence[str],
  thresholds: Sequence[float],
  *,
  step: str = 'latest',
  split: str = '',
  rounds: int = 20,
) -> list[Row]:
  """Returns a row for each run and threshold.

  Of all runs and thresholds, one forward pass after the other is timed, in so
  many rounds: what disturbs the machine for a while so disturbs them all.

  Args:
    workdirs: of runs.
    thresholds: ALL is every expert.
    step: 'latest', 'best' or a number.
    split: to evaluate on; empty: the run's own.
    rounds: of the timing.

  Raises:
    UserError: there is no such run, its data is no longer what it read, none
      has a threshold router, or runs that have one name but for the seed
      differ in more than that.
  """
  _check(workdirs)
  runs = [Run(workdir, thresholds, step, split) for workdir in workdirs]
  found = {(r, t): r.evaluate(t) for r in runs for t in r.thresholds}
  programs = {(r, t): r.forward(t) for r in runs for t in r.thresholds}
  seconds = interleaved.seconds(programs, rounds)
  return [
    Row(
      run=run.name,
      threshold=t,
      metrics=metrics,
      flops=run.flops(metrics),
      seconds=statistics.median(seconds[run, t]),
      unit=run.experiment.task.unit,
      batch_size=run.experiment.config.data.eval_batch_size,
    )
    for (run, t), metrics in found.items()
  ]


class Run:
  """A run that is restored.

  Attributes:
    name: of its folder.
    thresholds: at which it is evaluated; of another router [None].
  """

  def __init__(
    self, workdir: str, thresholds: Sequence[float], step: str, split: str
  ):
    self.name = _name(workdir)
    self.experiment, _, self._params = load.restore(workdir, step)
    config: Any = experiment_lib.with_fingerprint(self.experiment.config)
    self.thresholds = thresholds if has_threshold(config) else [None]
    self._split = split or config.data.eval_split
    task, graphdef = self.experiment.task, self.experiment.graphdef
    mesh = self.experiment.mesh
    self._over_split = means.over_split(task, graphdef, mesh)
    rows = prefetch.local_rows(mesh, config.data.eval_batch_size)
    batches = task.eval_batches(self._split, rows)
    self._batch = next(prefetch.to_devices(batches, mesh, 0))
    self._cost = flops.forward(config)

    @jax.jit
    def forward(params, batch, options):
      model, batch = nnx.merge(graphdef, params), task.prepare(batch, None)
      return task.loss(model, batch, **options).sum

    self._forward = forward

  def evaluate(self, threshold: float | None) -> dict[str, float]:
    """Returns the metrics on the split."""
    jax.set_mesh(self.experiment.mesh)
    return self._over_split(self._params, self._split, **_options(threshold))

  def forward(self, threshold: float | None) -> Callable[[], Any]:
    """Returns a program that is one forward pass of a batch."""

    def program() -> Any:
      jax.set_mesh(self.experiment.mesh)
      return self._forward(self._params, self._batch, _options(threshold))

    return program

  def flops(self, metrics: dict[str, float]) -> float:
    """Returns what is executed for a unit, given the metrics."""
    return self._cost.flops(
      None if self._cost.is_fixed else metrics['moe/executed']
    )


def _options(threshold: float | None) -> dict[str, Any]:
  if threshold is None:
    return {}
  return {'router_options': {'threshold': jnp.float32(threshold)}}


def _name(workdir: str) -> str:
  return pathlib.Path(workdir).resolve().name


def _model(run: str) -> str:
  return re.sub(r'-seed\d+$', '', run)


def has_threshold(config: Any) -> bool:
  """Returns whether a run of this config knows a threshold."""
  moe = config.model.moe
  return bool(moe.blocks) and moe.router == 'threshold'


def _check(workdirs: Sequence[str]) -> None:
  """Raises a UserError for what cannot stand in one table."""
  configs = {w: workdir_lib.read_config(pathlib.Path(w)) for w in workdirs}
  if not any(map(has_threshold, configs.values())):
    expected = "runs of which one has the router 'threshold'"
    raise UserError('WORKDIR', list(workdirs), expected)
  first: dict[str, Any] = {}
  for workdir, config in configs.items():
    model = _model(_name(workdir))
    other = first.setdefault(model, config)
    for field, (was, now) in workdir_lib.changes(other, config).items():
      if field not in _BETWEEN_SEEDS:
        expected = f'a folder not called {model!r}: another has {field}={was!r}'
        raise UserError('WORKDIR', f'{workdir} with {field}={now!r}', expected)
