"""Reads what the runs of a suite left, and says what of it is no use."""

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

from softmoe.errors import UserError

TIMES = 'times.json'
_FIELDS = {
  'suite': str,
  'run': str,
  'model': str,
  'sweep': dict,
  'seed': int,
  'command': str,
  'config': dict,
  'costs': dict,
  'metrics': dict,
  'curve': list,
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run.

  Attributes:
    name: of the run, such as 'soft-width32-seed0'.
    model: whose run it is.
    sweep: value of each swept field.
    seed: of parameters and batches.
    steps: how many it trained for; None: its config does not say.
    costs: parameters, GFLOP a unit, training exaFLOP.
    metrics: at the end; those that are finite.
    curve: what it wrote as it went, a dict with 'step' each.
    facts: all that its file says.
  """

  name: str
  model: str
  sweep: dict[str, Any]
  seed: int
  steps: int | None
  costs: dict[str, Any]
  metrics: dict[str, float]
  curve: list[dict[str, Any]]
  facts: dict[str, Any]

  @property
  def group(self) -> str:
    """Returns the name without the seed: runs that differ in nothing else."""
    return re.sub(r'-seed\d+$', '', self.name)


@dataclasses.dataclass(frozen=True)
class Results:
  """What the folder of a suite holds.

  Attributes:
    runs: in the order of the suite.
    expected: the names of all runs of the suite.
    times: seconds by group's name, each timed alone; empty without them.
    timing: the rest of the file of times: machine, commit, versions.
    problems: a line on each file that is left out.
  """

  runs: list[Run]
  expected: list[str]
  times: dict[str, dict[str, Any]]
  timing: dict[str, Any]
  problems: list[str]


def read(folder: pathlib.Path, suite: str, expected: list[str]) -> Results:
  """Returns the finished runs in `folder` that belong to the suite.

  Raises:
    UserError: no run is finished, or two saw different data.
  """
  found, problems = {}, []
  for path in sorted(folder.glob('*.json')):
    if path.name != TIMES:
      try:
        run = _run(_json(path), suite)
        if run.name not in expected:
          raise ValueError(f'{run.name!r} is not among the runs of the suite')
        if run.name in found:
          raise ValueError(f'{run.name!r} is told by two files')
        found[run.name] = run
      except ValueError as e:
        problems.append(f'{path}: left out: {e}')
  if not found:
    where = f'{folder} with a finished run: python -m softmoe.tables run'
    raise UserError('SUITE', suite, f'{where} {suite}{_first(problems)}')
  runs = [found[name] for name in expected if name in found]
  _check_one_data_set(folder, runs)
  timing = _timing(folder / TIMES, problems)
  return Results(runs, expected, timing.pop('models', {}), timing, problems)


def _first(problems: list[str]) -> str:
  return f'; {problems[0]}' if problems else ''


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except UnicodeDecodeError as e:
    raise ValueError('not a text') from e
  except json.JSONDecodeError as e:
    raise ValueError(f'half-written, or not JSON ({e})') from e
  except OSError as e:
    raise ValueError(e.strerror) from e
  if not isinstance(value, dict):
    raise ValueError('not an object')
  return value


def _run(facts: dict[str, Any], suite: str) -> Run:
  for field, kind in _FIELDS.items():
    if type(facts.get(field)) is not kind:
      raise ValueError(f'not of a run: {field!r} is {facts.get(field)!r:.40}')
  if facts['suite'] != suite:
    raise ValueError(f'of the suite {facts["suite"]!r}')
  steps = facts['config'].get('steps')
  return Run(
    name=facts['run'],
    model=facts['model'],
    sweep={f: _word(value) for f, value in facts['sweep'].items()},
    seed=facts['seed'],
    steps=steps if isinstance(steps, int) else None,
    costs=facts['costs'],
    metrics=_with_dropped(_finite(facts['metrics']), facts['config']),
    curve=[p for p in facts['curve'] if isinstance(p, dict) and 'step' in p],
    facts=facts,
  )


def _word(value: Any) -> Any:
  """Returns a number or a word, of which a list is one."""
  return value if isinstance(value, int | float | str) else json.dumps(value)


def _finite(metrics: dict[str, Any]) -> dict[str, float]:
  """Returns the numbers; a run that diverged has the others as strings."""
  numbers = {
    name: float(value)
    for name, value in metrics.items()
    if isinstance(value, int | float)
  }
  return {name: v for name, v in numbers.items() if math.isfinite(v)}


def _with_dropped(
  metrics: dict[str, float], config: dict[str, Any]
) -> dict[str, float]:
  """Adds which share of the experts that tokens chose had no room for them.

  Where experts choose, tokens have no choice that could be dropped.
  """
  moe = (config.get('model') or {}).get('moe') or {}
  if moe.get('router') == 'experts_choice':
    return metrics
  shares = {
    name.replace('/wanted', '/dropped'): 1 - metrics[granted] / wanted
    for name, wanted in metrics.items()
    if name.endswith('moe/wanted') and wanted > 0
    if (granted := name.replace('/wanted', '/granted')) in metrics
  }
  return shares | metrics


def _check_one_data_set(folder: pathlib.Path, runs: list[Run]) -> None:
  first = runs[0]
  for run in runs:
    if run.facts.get('data') != first.facts.get('data'):
      one, other = (folder / f'{r.name}.json' for r in (first, run))
      raise UserError(
        'data',
        run.facts.get('data'),
        f'{first.facts.get("data")!r}: {other} and {one} saw different data, '
        'which no report may mix',
      )


def _timing(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    timing = _json(path)
    models = timing.get('models')
    if not isinstance(models, dict):
      raise ValueError("no times: 'models' is missing")
    for name, times in models.items():
      _check_times(name, times)
  except ValueError as e:
    problems.append(f'{path}: left out: {e}')
    return {}
  return timing


def _check_times(name: str, times: Any) -> None:
  keys = ('train_step_seconds', 'inference_seconds', 'examples')
  for key in keys:
    value = times.get(key) if isinstance(times, dict) else None
    if not isinstance(value, int | float) or not value > 0:
      raise ValueError(f'{key!r} of {name!r} is {value!r}')
