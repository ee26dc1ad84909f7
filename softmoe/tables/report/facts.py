"""Where the numbers come from: commands, commits, machines, versions, data."""

from collections import Counter
from typing import Any

from softmoe.tables.report.numbers.runs import Results


def provenance(results: Results) -> dict[str, str]:
  """Returns a line on each, with counts where runs differ."""
  facts = [run.facts for run in results.runs]
  lines = {
    'commit': _counted([f.get('commit') for f in facts]),
    'machine': _counted([f.get('machine') for f in facts]),
    'versions': _counted([_versions(f.get('versions')) for f in facts]),
    'data': facts[0].get('data') or 'no fingerprint',
    'finished': _between([str(f.get('finished', '')) for f in facts]),
  }
  if taken := [f['taken_from'] for f in facts if f.get('taken_from')]:
    lines['trained by other suites'] = ', '.join(map(str, taken))
  if results.timing:
    lines['times'] = _times(results.timing)
  return lines


def commands(suite: str) -> list[str]:
  """Returns what makes the suite's runs, times and report again."""
  return [f'python -m softmoe.tables {c} {suite}' for c in COMMANDS]


COMMANDS = ('run', 'time', 'report')


def _versions(versions: Any) -> str:
  if not isinstance(versions, dict):
    return 'unknown'
  return ', '.join(f'{name} {version}' for name, version in versions.items())


def _counted(values: list[Any]) -> str:
  counts = Counter(str(value or 'unknown') for value in values)
  if len(counts) == 1:
    return next(iter(counts))
  return '; '.join(f'{value} ({n} runs)' for value, n in counts.most_common())


def _between(moments: list[str]) -> str:
  return ' to '.join(dict.fromkeys([min(moments), max(moments)]))


def _times(timing: dict[str, Any]) -> str:
  of = [
    f'{timing["rounds"]} rounds' if 'rounds' in timing else '',
    str(timing.get('machine', '')),
    f'commit {timing["commit"]}' if timing.get('commit') else '',
  ]
  return ', '.join(['each model alone, in turn', *filter(None, of)])
