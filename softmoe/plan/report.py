"""Estimates as text for a person: one column, or two side by side."""

from collections.abc import Callable
from typing import Any

from softmoe.plan import programs

Row = tuple[str, Callable[[dict[str, Any]], str | None]]


def table(reports: list[dict[str, Any]]) -> str:
  """Returns lines of a name and the value of each report; `*`: analytic."""
  rows = [_row(name, value, reports) for name, value in _HEAD]
  for program in (programs.TRAIN, programs.INFERENCE):
    if all(program in report for report in reports):
      parts = [report[program] for report in reports]
      rows.append([f'-- {program} step'] + [''] * len(reports))
      rows += [_row(name, value, parts) for name, value in _PROGRAM]
      rows += _collectives(parts)
  rows = [row for row in rows if any(row[1:]) or row[0].startswith('--')]
  widths = [max(len(row[i]) for row in rows) for i in range(len(reports) + 1)]
  lines = (
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  )
  return '\n'.join(line.rstrip() for line in lines)


def verdict(report: dict[str, Any]) -> str:
  """Returns one line: whether the training step fits, and by how much."""
  memory = report[programs.TRAIN]['memory']
  if not memory['limit']:
    return f'needs {_bytes(memory["total"])} a device'
  spare = memory['limit'] - memory['total']
  if memory['fits']:
    return f'fits: {_bytes(spare)} of {_bytes(memory["limit"])} a device left'
  return (
    f'does not fit: {_bytes(memory["total"])} of {_bytes(memory["limit"])} a '
    f'device, {_bytes(max(-spare, 0))} too much'
  )


def advice(suggestion: dict[str, Any] | None) -> str:
  """Returns one line: what to change, as flags."""
  if suggestion is None:
    return 'nothing that was tried fits: take more chips, or larger ones'
  flags = (f'--config.{k}={v}' for k, v in suggestion['changes'].items())
  part = suggestion[programs.TRAIN]
  return (
    f'it would with {" ".join(flags)}: {_bytes(part["memory"]["total"])} a '
    f'device, roofline {_seconds("roofline")(part)}'
  )


def _row(name, value, parts) -> list[str]:
  return [name] + [value(part) or '' for part in parts]


def _collectives(parts) -> list[list[str]]:
  kinds = dict.fromkeys(
    k for part in parts for k in part.get('collectives', {})
  )

  def cell(part, kind):
    row = part.get('collectives', {}).get(kind)
    return f'{row["count"]} x, {_bytes(row["bytes"])} sent' if row else ''

  return [[kind] + [cell(part, kind) for part in parts] for kind in kinds]


def _bytes(value: int | float) -> str:
  for unit, size in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
    if value >= size:
      return f'{value / size:,.2f} {unit}'
  return f'{value:,.0f} B'


def _seconds(name: str) -> Callable[[dict[str, Any]], str | None]:
  def cell(part):
    value = part.get('seconds', {}).get(name)
    if value is None:
      return None
    small = 0 < value < 1e-5
    return f'{value * 1e6:,.2f} µs' if small else f'{value * 1e3:,.2f} ms'

  return cell


def _memory(name: str) -> Callable[[dict[str, Any]], str | None]:
  return lambda part: _bytes(part['memory'][name])


def _tera(name: str) -> Callable[[dict[str, Any]], str]:
  return lambda part: f'{part["flops"][name] / 1e12:,.3f} T'


def _least(text: str, sure: bool) -> str:
  return text if sure else f'{text} at least'


def _program_flops(part: dict[str, Any]) -> str:
  return _least(_tera('program')(part), part['flops']['exact'])


def _traffic(part: dict[str, Any]) -> str | None:
  if 'traffic' not in part:
    return None
  return _least(_bytes(part['traffic']), not part['open_loops'])


def _worst(value: Callable[[dict[str, Any]], str | None]):
  """Shows what dropless experts need if all tokens want the same."""
  return lambda part: value(part['worst']) if 'worst' in part else None


def _optional(name: str, form: Callable[[Any], str]):
  return lambda part: form(part[name]) if name in part else None


def _unlooped(value: Callable[[dict[str, Any]], float]):
  """Shows a compiler's count only where no loop hides a part of it."""

  def cell(part):
    count = 0 if part.get('loops', True) else value(part)
    return f'{count / 1e12:,.3f} T' if count else None

  return cell


def _fits(part: dict[str, Any]) -> str:
  return 'yes' if part['memory']['fits'] else 'NO'


def _gflop(report: dict[str, Any]) -> str:
  unit = report['unit']
  return f'{report[f"gflop_per_{unit}"]:,.2f} / {unit}'


def _rate(part: dict[str, Any]) -> str | None:
  unit = f'{part["unit"]}s'
  rate = part.get(f'{unit}_per_second')
  return f'{rate:,.0f} {unit}/s' if rate is not None else None


_HEAD: list[Row] = [
  ('config', lambda r: r['config']),
  ('target', lambda r: f'{r["target"]} ({r["chips"]} chips)'),
  (
    'mesh',
    lambda r: ','.join(f'{axis}:{n}' for axis, n in r['mesh'].items()),
  ),
  ('compiler', lambda r: r['compiler']),
  ('attention', lambda r: r['attention']),
  ('parameters', lambda r: f'{r["parameters"]:,}'),
  ('active for a token *', lambda r: f'{r["active_parameters"]:,}'),
  ('GFLOP *', _gflop),
  ('parameters a device', lambda r: _bytes(r['parameter_bytes'])),
]
_PROGRAM: list[Row] = [
  ('batch', lambda p: f'{p["batch_size"]:,} examples'),
  ('optimizer a device', _optional('optimizer_bytes', _bytes)),
  ('arguments a device', _memory('arguments')),
  ('temporaries a device', _memory('temporaries')),
  ('all a device', _memory('total')),
  ('memory of a device', _memory('limit')),
  ('fits', _fits),
  ('FLOP of the model, a device *', _tera('model')),
  ('FLOP of the program, a device', _program_flops),
  ("FLOP by the compiler's count", _unlooped(lambda p: p['flops']['compiler'])),
  ('memory traffic a device', _traffic),
  ('compute *', _seconds('compute')),
  ('memory *', _seconds('memory')),
  ('interconnect *', _seconds('interconnect')),
  ('roofline *', _seconds('roofline')),
  ('bound by *', _optional('bound', str)),
  ('rounds of dropless experts, at most', _worst(lambda p: str(p['rounds']))),
  ('roofline with as many *', _worst(_seconds('roofline'))),
  ("compiler's estimate of the cores", _seconds('scheduled')),
  ('at most *', _rate),
  ('at least, chip-hours *', _optional('chip_hours', '{:,.0f}'.format)),
]
