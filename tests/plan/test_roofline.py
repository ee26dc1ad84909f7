"""Times from published figures, by hand."""

import types

import numpy as np
import pytest

from softmoe.costs import chips
from softmoe.plan import collectives, hlo, roofline, targets


def torus(name, *shape):
  """Returns a target of as many chips, and its devices in row-major order."""
  coords = [tuple(map(int, c)) for c in np.ndindex(*shape)]
  devices = tuple(types.SimpleNamespace(coords=c) for c in coords)
  chip = chips.named(name)
  return targets.Target(name, chip, devices, shape, ''), devices


def hosts(num_hosts, gpus):
  devices = tuple(
    types.SimpleNamespace(process_index=host)
    for host in range(num_hosts)
    for _ in range(gpus)
  )
  chip = chips.named('h100')
  return targets.Target('', chip, devices, (num_hosts, gpus), ''), devices


def seconds(slice_, kind, sent, *groups, count=1):
  target, devices = slice_
  groups = tuple(map(tuple, groups))
  each = collectives.Collective(kind, count, sent, groups, '')
  return roofline.times(target, devices, 0.0, 0, [each]).interconnect


def test_compute_and_memory_and_what_bounds():
  target, devices = torus('v5p', 2, 2, 2)
  times = roofline.times(target, devices, 459e12, 2 * 2765 * 10**9, [])
  assert (times.compute, times.memory, times.interconnect) == (1, 2, 0)
  assert (times.roofline, times.bound) == (2, 'memory')


def test_there_are_no_figures_of_a_cpu():
  target = targets.Target('cpu:1', None, (), (1,), '')
  assert roofline.times(target, (), 1.0, 1, []) is None


def test_all_to_all_is_bound_by_the_middle_of_the_longest_side():
  """Half of what 64 chips send goes over 2 x 16 links, each way."""
  slice_, sent = torus('v5p', 4, 4, 4), 10**9
  crossing = 64 * sent / 2 / 2  # each half sends half of its own across
  assert seconds(slice_, 'all-to-all', sent, range(64)) == pytest.approx(
    crossing / (2 * 16 * 100e9)
  )


def test_a_mesh_that_is_no_torus_has_half_the_links():
  ring, line = torus('v5e', 16, 16), torus('v5e', 8, 8)
  assert seconds(ring, 'all-to-all', 10**9, range(256)) == pytest.approx(
    10**9 * 16 / 8 / 50e9
  )
  assert seconds(line, 'all-to-all', 10**9, range(64)) == pytest.approx(
    10**9 * 8 / 4 / 50e9
  )


def test_a_slice_of_less_than_cubes_has_no_rings():
  """Nor have its sides of 4 chips: a cube has 4 along all three."""
  line = torus('v4', 2, 4, 4)
  assert seconds(line, 'all-to-all', 10**9, range(32)) == pytest.approx(
    10**9 * 4 / 4 / 50e9
  )
  assert seconds(line, 'all-reduce', 10**9, range(32)) == pytest.approx(
    10**9 / (3 * 50e9)
  )


def test_a_permute_is_as_slow_as_its_slowest_pair():
  """A ring over two hosts of GPUs has two pairs that leave theirs."""
  ring = [(i, (i + 1) % 16) for i in range(16)]
  assert seconds(
    hosts(2, 8), 'collective-permute', 10**9, *ring
  ) == pytest.approx(10**9 / 50e9)
  assert seconds(
    hosts(1, 16), 'collective-permute', 10**9, *ring
  ) == pytest.approx(10**9 / 450e9)


def test_a_reduction_uses_rings_along_all_sides_of_its_group():
  slice_ = torus('v5p', 4, 4, 4)
  assert seconds(
    slice_, 'all-reduce', 10**9, range(64), count=3
  ) == pytest.approx(3 * 10**9 / (6 * 100e9))
  row = range(4)  # along the last side alone
  assert seconds(slice_, 'all-gather', 10**9, row) == pytest.approx(
    10**9 / (2 * 100e9)
  )


def test_gpus_use_the_switch_inside_and_the_network_between_hosts():
  slice_ = hosts(4, 8)
  assert seconds(slice_, 'all-to-all', 7 * 10**9, range(8)) == pytest.approx(
    7e9 / 450e9
  )
  # 24 of the 31 others are on other hosts.
  assert seconds(slice_, 'all-to-all', 31 * 10**9, range(32)) == pytest.approx(
    24e9 / 50e9
  )
  assert seconds(slice_, 'all-reduce', 8 * 10**9, range(32)) == pytest.approx(
    1e9 / 50e9 + 8e9 / 450e9
  )


def test_the_compilers_estimate_counts_loops():
  text = """HloModule m

%cond (p: (s32[])) -> pred[] {
  %p = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (q: (s32[])) -> (s32[]) {
  %q = (s32[]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %k = s32[] add(%j, %j), backend_config={"estimated_cycles":"100"}
  ROOT %r = (s32[]) tuple(%k)
}

ENTRY %main (a: (s32[])) -> (s32[]) {
  %a = (s32[]) parameter(0)
  ROOT %w = (s32[]) while(%a), condition=%cond, body=%body
}
"""
  chip = chips.named('v5e')
  assert roofline.scheduled(hlo.parse(text), chip) == pytest.approx(500 / 1.5e9)
  assert roofline.scheduled(hlo.parse(text), chips.named('tpu7x')) is None


def test_the_compilers_estimate_is_of_the_main_cores():
  text = """HloModule m

%called (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %k = s32[] add(%p, %p), \
backend_config={"estimated_cycles":"9223372036854775807"}
}, execution_thread="sparsecore"

ENTRY %main (a: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %start = ((s32[]), s32[]) call-start(%a), \
async_execution_thread="sparsecore", to_apply=%called
  %b = s32[] add(%a, %a), backend_config={"estimated_cycles":"15"}
  ROOT %done = s32[] call-done(%start)
}
"""
  program = hlo.parse(text)
  assert roofline.scheduled(program, chips.named('v5e')) == 15 / 1.5e9


def test_device_kinds_find_their_chip():
  for kind, name in (
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('TPU7x', 'tpu7x'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
  ):
    assert chips.of_kind(kind) is chips.named(name)
  assert chips.of_kind('cpu') is None
