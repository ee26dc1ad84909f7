"""Suites: the runs that a table is made of.

A suite is a Python file with `get_suite()`, in `configs/suites/` or anywhere.
"""

import dataclasses
import itertools
import pathlib
import re
import runpy
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.process import config_flag

Changes = Mapping[str, Any]  # config fields by dotted path
# Coordinates in the table, and the fields that they stand for: a function of
# the config's argument and the seed, where they name another run.
Point = tuple[Mapping[str, Any], Changes | Callable[[str, int], Changes]]

# Overrides for suites of many runs: a workdir stays small.
ONE_CHECKPOINT = {'checkpoint.keep_last': 1, 'checkpoint.keep_best': 0}


@dataclasses.dataclass(frozen=True)
class Run:
  """One training.

  Attributes:
    model: name in the table, such as 'Soft MoE'.
    config: as `train.py --config` takes it, such as 'glyphs:soft'.
    seed: of the training.
    sweep: further coordinates in the table, such as {'width': 32}.
    overrides: config fields by dotted path, such as {'model.width': 32}.
  """

  model: str
  config: str
  seed: int
  sweep: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def variant(self) -> str:
    """The name without the seed, such as 'soft-width32'."""
    file, _, argument = self.config.partition(':')
    parts = [argument or pathlib.PurePath(file).stem]
    parts += [f'{name}{value}' for name, value in self.sweep.items()]
    return '-'.join(re.sub(r'[^\w.]+', '-', part).strip('-') for part in parts)

  @property
  def name(self) -> str:
    """A file name, such as 'soft-width32-seed0'; one of its suite."""
    return f'{self.variant}-seed{self.seed}'

  def arguments(self) -> list[str]:
    """Returns the flags of `train.py` that make the config."""
    fields = {'seed': self.seed} | dict(self.overrides)
    return [
      f'--config={self.config}',
      *(f'--config.{path}={value}' for path, value in fields.items()),
    ]

  def command(self, workdir: pathlib.Path) -> str:
    """Returns the shell command that does this training and no more."""
    parts = ['train.py', *self.arguments(), f'--workdir={workdir}']
    return shlex.join(['python', *parts])

  def load_config(self) -> config_lib.Config:
    """Returns the checked config.

    Raises:
      UserError: it cannot be read, or a field is wrong.
    """
    return experiment_lib.parse(config_flag.load(self.arguments()))


@dataclasses.dataclass(frozen=True)
class Suite:
  """The runs of one table.

  Attributes:
    title: of the table.
    runs: in the order in which they are done.
    baseline: name of the model that others are compared to; empty: none.
    metric: the main one, as SPLIT/NAME.
    splits: on which the last checkpoint is evaluated.
    evaluators: what else evaluates it: 'module:function' -> its options. It is
      called with the workdir and the options, and returns metrics by name.
  """

  title: str
  runs: tuple[Run, ...]
  baseline: str = ''
  metric: str = 'test/accuracy'
  splits: tuple[str, ...] = ('test',)
  evaluators: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    names = [run.name for run in self.runs]
    for name in names:
      if names.count(name) > 1:
        raise UserError('suite.runs', name, 'a name of one run alone')
    if self.baseline not in {'', *(run.model for run in self.runs)}:
      raise UserError('suite.baseline', self.baseline, 'the model of a run')
    of_splits = (self.metric.startswith(f'{split}/') for split in self.splits)
    if not any(of_splits) and not self.evaluators:
      raise UserError('suite.metric', self.metric, 'SPLIT/NAME, of its splits')

  def find(self, name: str) -> Run:
    """Returns the run of this name.

    Raises:
      UserError: there is none.
    """
    for run in self.runs:
      if run.name == name:
        return run
    names = ', '.join(run.name for run in self.runs)
    raise UserError('--only', name, f'one of {names}')


def start(
  workdir: str, changes: Changes | None = None
) -> Callable[[str, int], Changes]:
  """Returns what starts runs from those of another suite, for a `Point`.

  Args:
    workdir: theirs, with '{argument}' of the config and '{seed}' in it.
    changes: further fields.
  """

  def fields(argument: str, seed: int) -> Changes:
    init = workdir.format(argument=argument, seed=seed)
    return {'init': init} | dict(changes or {})

  return fields


def product(
  models: Mapping[str, str],
  seeds: Iterable[int],
  points: Iterable[Point] = (({}, {}),),
  overrides: Mapping[str, Any] | None = None,
) -> tuple[Run, ...]:
  """Returns a run for each seed, point and model; all of one seed come first.

  Args:
    models: name in the table -> config.
    seeds: of the trainings.
    points: of the sweep.
    overrides: of all runs; those of a point come after them.
  """
  common = dict(overrides or {})

  def run(seed: int, point: Point, model: tuple[str, str]) -> Run:
    (sweep, changes), (name, config) = point, model
    if callable(changes):
      changes = changes(config.partition(':')[2], seed)
    return Run(name, config, seed, dict(sweep), common | dict(changes))

  each = itertools.product(seeds, list(points), models.items())
  return tuple(itertools.starmap(run, each))


def find(name: str) -> pathlib.Path:
  """Returns the file of a suite.

  Args:
    name: of one that comes along, or a path.

  Raises:
    UserError: there is none.
  """
  known = {path.stem: path for path in _folder().glob('*.py')}
  path = pathlib.Path(name)
  if name not in known and not (path.suffix == '.py' and path.is_file()):
    raise UserError('SUITE', name, f'a file, or one of {sorted(known)}')
  return known.get(name, path)


def load(path: pathlib.Path) -> Suite:
  """Returns the suite of a file.

  Raises:
    UserError: it has none.
  """
  try:
    return runpy.run_path(str(path))['get_suite']()
  except UserError:
    raise
  except Exception as e:
    problem = f'{type(e).__name__}: {e}'.splitlines()[0]
    raise UserError(
      'SUITE', str(path), f'a file with get_suite() ({problem})'
    ) from e


def _folder() -> pathlib.Path:
  return config_flag.folder() / 'suites'
