"""What a compiled program moves between devices, read from its text."""

import re
from typing import NamedTuple

import numpy as np

from softmoe.plan import collectives as collectives_lib
from softmoe.plan import hlo


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: such as 'all-to-all'.
    count: how often it runs.
    shapes: of the arrays that come out, on one device.
    group: the devices of the first group, by place in the mesh, in order.
    name: what traced it; 'transpose(' is in it if the backward pass did.
  """

  kind: str
  count: int
  shapes: tuple[tuple[int, ...], ...]
  group: tuple[int, ...]
  name: str


def collectives(text: str, num_devices: int) -> list[Collective]:
  """Returns the collectives of a program for a mesh of so many devices."""
  found = []
  for computation, count, _ in hlo.parse(text).executed():
    for instruction in computation.instructions.values():
      kind = instruction.opcode.removesuffix('-start')
      if kind not in collectives_lib.KINDS:
        continue
      attributes = instruction.attributes
      group = collectives_lib.find_groups(attributes, num_devices)[0]
      name = re.search(r'op_name="([^"]*)"', instruction.attributes)
      shapes = tuple(
        tuple(map(int, filter(None, sizes.split(','))))
        for sizes in re.findall(r'\w+\[([\d,]*)\]', instruction.shape)
      )
      if len(group) > 1:
        label = name[1] if name else ''
        found.append(
          Collective(kind, count, shapes, tuple(sorted(group)), label)
        )
  return found


def group_of(mesh, *axes) -> tuple[int, ...]:
  """Returns the first group of devices that differ along these axes alone."""
  ids = np.arange(mesh.size).reshape(mesh.devices.shape)
  index = tuple(slice(None) if a in axes else 0 for a in mesh.axis_names)
  return tuple(sorted(ids[index].ravel().tolist()))
