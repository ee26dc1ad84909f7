"""The collectives of a compiled program: which, how often, how many bytes."""

import dataclasses
import math
import re

import numpy as np

from softmoe.plan import hlo

KINDS = (
  'all-to-all',
  'ragged-all-to-all',
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'collective-permute',
  'collective-broadcast',
)
_PAIRS = re.compile(r'source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction.

  Attributes:
    kind: one of KINDS.
    count: how often it runs in a step.
    sent: bytes that a device sends each time, as a ring would: all but its own
      part of an all-to-all, twice that of an all-reduce.
    groups: of devices, by their place in the mesh, that do it side by side: all
      pairs of a permute; of others, whose groups are alike, the first.
    name: where it comes from, as JAX says.
  """

  kind: str
  count: int
  sent: int
  groups: tuple[tuple[int, ...], ...]
  name: str


def find(program: hlo.Program, num_devices: int) -> list[Collective]:
  """Returns all collectives that a step runs; groups of one device are none.

  A count is a lower bound in a loop whose number of turns varies.
  """
  found = []
  for computation, times, _ in program.executed():
    for instruction in computation.instructions.values():
      kind = instruction.opcode.removesuffix('-start')
      if kind in KINDS:
        found.append(_collective(computation, instruction, times, num_devices))
  return [c for c in found if any(len(group) > 1 for group in c.groups)]


def summary(collectives: list[Collective]) -> dict[str, dict[str, int]]:
  """Returns count and bytes sent by a device in a step, by kind."""
  table: dict[str, dict[str, int]] = {}
  for c in collectives:
    row = table.setdefault(c.kind, {'count': 0, 'bytes': 0})
    row['count'] += c.count
    row['bytes'] += c.count * c.sent
  return {kind: table[kind] for kind in KINDS if kind in table}


def _collective(computation, instruction, times, num_devices) -> Collective:
  kind = instruction.opcode.removesuffix('-start')
  groups = find_groups(instruction.attributes, num_devices)
  shapes = [computation.instructions[o].shape for o in instruction.operands]
  operands = sum(map(hlo.num_bytes, shapes))
  return Collective(
    kind,
    times,
    _sent(kind, operands, len(groups[0])),
    groups,
    instruction.op_name(),
  )


def _sent(kind: str, operands: int, devices: int) -> int:
  """Returns the bytes that a device sends, from those it gives."""
  others = operands * (devices - 1) // devices
  if kind == 'all-gather':
    return operands * (devices - 1)
  if kind == 'all-reduce':
    return 2 * others
  if kind in ('collective-permute', 'collective-broadcast'):
    return operands
  return others


def find_groups(
  attributes: str, num_devices: int
) -> tuple[tuple[int, ...], ...]:
  """Returns the groups of a collective: see `Collective`."""
  if pairs := _PAIRS.search(attributes):
    return tuple(
      (int(source), int(target))
      for source, target in re.findall(r'(\d+),(\d+)', pairs.group(1))
    )
  found = re.search(r'replica_groups=', attributes)
  if not found:
    return (tuple(range(num_devices)),)
  return (_first_group(attributes[found.end() :], num_devices),)


def _first_group(text: str, num_devices: int) -> tuple[int, ...]:
  """Reads `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` or `mesh['a'=2,...] {'a'}`."""
  if text.startswith('{{'):
    return tuple(map(int, text[2 : text.index('}')].split(',')))
  if text.startswith('{'):
    return tuple(range(num_devices))
  if text.startswith('['):
    return _iota_group(text)
  if text.startswith('mesh['):
    return _mesh_group(text)
  raise ValueError(f'replica groups of an unknown form: {text[:100]}')


def _iota_group(text: str) -> tuple[int, ...]:
  match = re.match(r'\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', text)
  if not match:
    raise ValueError(f'replica groups of an unknown form: {text[:100]}')
  ids = _iota(match.group(2)).reshape(_numbers(match.group(1)))
  return tuple(ids[0].tolist())


def _mesh_group(text: str) -> tuple[int, ...]:
  order = r'(?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))?'
  match = re.match(rf'mesh\[([^\]]*)\]{order} \{{([^}}]*)\}}', text)
  if not match:
    raise ValueError(f'replica groups of an unknown form: {text[:100]}')
  sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", match.group(1))}
  order = match.group(2) or f'[{math.prod(sizes.values())}]'
  ids = _iota(order).reshape(tuple(sizes.values()))
  axes = re.findall(r"'(\w+)'", match.group(3))
  # The first group: index 0 along all other axes.
  return tuple(
    ids[tuple(slice(None) if a in axes else 0 for a in sizes)].ravel().tolist()
  )


def _iota(text: str) -> np.ndarray:
  """Reads `[2,4]T(1,0)`: 0, 1, ... of that shape, transposed."""
  match = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  if not match:
    raise ValueError(f'device ids of an unknown form: {text[:100]}')
  sizes = _numbers(match.group(1))
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(match.group(2))) if match.group(2) else ids


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(',')))
