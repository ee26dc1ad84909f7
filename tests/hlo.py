"""What a compiled program moves between devices, read from its HLO text."""

import re
from typing import NamedTuple

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
  'reduce-scatter',
)


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: one of KINDS.
    shapes: of the arrays that come out, on one device.
    groups: the devices that take part together, by position in the mesh.
    name: what traced it; 'transpose(' is in it if the backward pass did.
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  groups: frozenset[frozenset[int]]
  name: str


def collectives(text: str, num_devices: int) -> list[Collective]:
  """Returns all collectives of a program, a loop's body once.

  Args:
    text: of the compiled program.
    num_devices: of the mesh.
  """
  pattern = rf' = (.*?) ({"|".join(KINDS)})(?:-start)?\('
  found = []
  for line in text.splitlines():
    if match := re.search(pattern, line):
      shapes = re.findall(r'\w+\[([\d,]*)\]', match[1])
      name = re.search(r'op_name="([^"]*)"', line)
      found.append(
        Collective(
          match[2],
          tuple(tuple(map(int, filter(None, s.split(',')))) for s in shapes),
          _groups(line, num_devices),
          name[1] if name else '',
        )
      )
  return found


def groups_of(mesh, *axes) -> frozenset[frozenset[int]]:
  """Returns the groups of devices that differ along these axes alone."""
  ids = np.arange(mesh.size).reshape(mesh.devices.shape)
  return _along(ids, [mesh.axis_names.index(a) for a in axes])


def _along(ids, axes) -> frozenset[frozenset[int]]:
  ids = np.moveaxis(ids, axes, range(len(axes)))
  size = int(np.prod(ids.shape[: len(axes)]))
  return frozenset(map(frozenset, ids.reshape(size, -1).T.tolist()))


def _groups(line: str, num_devices: int) -> frozenset[frozenset[int]]:
  """Reads the three ways in which XLA writes groups."""
  if match := re.search(r'replica_groups=\{(\{[\d,{}]*\})\}', line):
    rows = re.findall(r'\{([\d,]*)\}', match[1])
    return frozenset(frozenset(map(int, row.split(','))) for row in rows)
  if match := re.search(r'replica_groups=\[([\d,]+)\](<=\S+?)[, ]', line):
    rows = _numbers(match[1])
    return frozenset(map(frozenset, _ids(match[2]).reshape(rows).tolist()))
  if match := re.search(
    r'replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}', line
  ):
    names = re.findall(r"'(\w+)'=\d+", match[1])
    sizes = [int(n) for n in re.findall(r'=(\d+)', match[1])]
    ids = _ids(match[2] or f'[{num_devices}]').reshape(sizes)
    axes = re.findall(r"'(\w+)'", match[3])
    return _along(ids, [names.index(a) for a in axes])
  return frozenset([frozenset(range(num_devices))])


def _ids(text: str):
  """Returns the devices of '[4,2]T(1,0)': counted up, transposed, flat."""
  sizes = _numbers(re.search(r'\[([\d,]+)\]', text)[1])
  order = re.search(r'T\(([\d,]+)\)', text)
  ids = np.arange(int(np.prod(sizes))).reshape(sizes)
  return ids.transpose(_numbers(order[1]) if order else None).reshape(-1)


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(',')]
