"""The least time that a step takes: by arithmetic, by memory, by interconnect.

Times are analytic: published figures of the chip (`softmoe.costs.chips`)
applied to what the compiled program does. Collectives are taken to use every
link that helps, all at once, as good algorithms on a torus do:

- all-to-all: half of the bytes cross the middle of the torus's longest side.
- all-reduce, all-gather, reduce-scatter: rings along every side at once.
- collective-permute: as long as its slowest pair takes.
- between hosts of GPUs, all that leaves a host goes over its network cards.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from softmoe.costs import chips
from softmoe.plan import collectives as collectives_lib
from softmoe.plan import hlo, targets

# Kinds whose every byte is for one device: nothing is added up within a host.
_FROM_ONE_TO_ANOTHER = ('all-to-all', 'collective-permute')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of a step.

  Attributes:
    compute: FLOPs at the peak rate.
    memory: bytes to and from the main memory at its full speed.
    interconnect: of all collectives, one after another, at full speed.
  """

  compute: float
  memory: float
  interconnect: float

  @property
  def roofline(self) -> float:
    """Returns the longest of them: the time if all the rest hides behind it."""
    return max(self.compute, self.memory, self.interconnect)

  @property
  def bound(self) -> str:
    """Returns the name of the longest."""
    return max(
      ('compute', 'memory', 'interconnect'), key=lambda n: getattr(self, n)
    )


def times(
  target: targets.Target,
  devices: Sequence[Any],
  flops: float,
  num_bytes: int,
  collectives: list[collectives_lib.Collective],
) -> Times | None:
  """Returns the times of a step; None where no figures are published.

  Args:
    target: the slice.
    devices: in the order of the mesh.
    flops: of one device.
    num_bytes: of one device.
    collectives: with the bytes that one device sends.
  """
  chip = target.chip
  if chip is None:
    return None
  return Times(
    flops / chip.flops,
    num_bytes / chip.bandwidth,
    math.fsum(
      c.count
      * max(
        _seconds(chip, target.shape, [devices[i] for i in group], c)
        for group in c.groups
      )
      for c in collectives
    ),
  )


def scheduled(program: hlo.Program, chip: chips.Chip) -> float | None:
  """Returns the seconds of a step by the TPU compiler's own estimate.

  It covers what runs on the main cores, not the collectives nor what the
  sparse cores do. None: the program carries no estimates, or the chip's clock
  is not known.
  """
  cycles = sum(
    times * int(match.group(1))
    for computation, times, _ in program.executed()
    if not computation.thread
    for instruction in computation.instructions.values()
    if (match := _CYCLES.search(instruction.attributes))
  )
  return cycles / chip.clock if cycles and chip.clock else None


def _seconds(
  chip: chips.Chip,
  shape: tuple[int, ...],
  group: list[Any],
  collective: collectives_lib.Collective,
) -> float:
  if chip.dims == 0:
    return _switched_seconds(chip, group, collective)
  sides = [len({d.coords[i] for d in group}) for i in range(len(shape))]
  sent = collective.sent * chip.cores  # they share the chip's links
  if math.prod(sides) == 1:
    return 0.0  # between the cores of one chip
  if collective.kind.endswith('all-to-all'):
    # Of n bytes a chip, n x side / 4 pass each of the links around the middle;
    # a side that is not closed to a ring has half as many.
    return max(
      sent * side / (8 if _is_ring(chip, shape, i, side) else 4) / chip.link
      for i, side in enumerate(sides)
      if side > 1
    )
  rings = sum(
    2 if _is_ring(chip, shape, i, side) else 1
    for i, side in enumerate(sides)
    if side > 1
  )
  return sent / (rings * chip.link)


def _is_ring(
  chip: chips.Chip, shape: tuple[int, ...], i: int, side: int
) -> bool:
  """Tells whether the far ends of a side are linked.

  So they are along whole sides of a 3D slice of full cubes, and along those of
  16 chips of a 2D slice (v2 and v3: 16 or 32). Two chips have a link each way.
  """
  if side != shape[i]:
    return False
  if chip.dims == 3:
    return all(n % 4 == 0 for n in shape)
  return shape[i] % 16 == 0


def _switched_seconds(
  chip: chips.Chip, group: list[Any], collective: collectives_lib.Collective
) -> float:
  hosts = collections.Counter(d.process_index for d in group)
  if len(hosts) == 1:
    return collective.sent / chip.link
  local, devices = max(hosts.values()), len(group)
  if collective.kind.endswith(_FROM_ONE_TO_ANOTHER):
    outside = collective.sent * (devices - local) / (devices - 1)
    return outside / chip.network
  # Within each host first, then each card its share between the hosts.
  return collective.sent / local / chip.network + collective.sent / chip.link
