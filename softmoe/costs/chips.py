"""Published figures of accelerators, one line a chip.

Figures are of one JAX device: half the chip's where JAX shows two devices a
chip (`cores`). Peaks are dense bfloat16. Link speeds are one way.

Sources, looked up in 2026: Google's pages cloud.google.com/tpu/docs/NAME for
v3, v4, v5e, v5p, v6e, tpu7x; Norrie et al. 2021 (IEEE Micro 41(2), "The Design
Process for Google's Training Chips: TPUv2 and TPUv3") for v2; Jouppi et al.
2023 (https://arxiv.org/abs/2304.01433, table 4) for the links and clocks of v3
and v4; NVIDIA's data sheets of A100 (80 GB SXM), H100 SXM, H200 SXM and B200,
and of DGX (400 Gbit/s of network a GPU; A100: 200). Clocks of v5e, v5p and v6e
follow from the peaks and the sizes of their matrix units.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a device can do.

  Attributes:
    name: in the name of a target.
    kind: how JAX's `device_kind` begins.
    flops: peak FLOP/s in bfloat16.
    memory: bytes.
    bandwidth: of the memory, bytes/s.
    link: of one link of a torus, or of the switch in a host, bytes/s one way.
    network: between hosts, a device, bytes/s one way; 0: a torus reaches all.
    dims: of the torus; 0: a switch.
    cores: JAX devices a chip.
    clock: cycles/s, for the compiler's estimates; 0: not published.
    processors: that run programs of a kernel, one each, at a time.
  """

  name: str
  kind: str
  flops: float
  memory: int
  bandwidth: float
  link: float
  network: float = 0.0
  dims: int = 0
  cores: int = 1
  clock: float = 0.0
  processors: int = 1


# The first whose kind fits is taken: 'TPU v5 lite' stands before 'TPU v5'.
CHIPS = (
  Chip(
    'v2', 'TPU v2', 23e12, 8 * GIB, 350e9, 62e9, dims=2, cores=2, clock=0.7e9
  ),
  Chip(
    'v3',
    'TPU v3',
    61.5e12,
    16 * GIB,
    450e9,
    70e9,
    dims=2,
    cores=2,
    clock=0.94e9,
  ),
  Chip('v4', 'TPU v4', 275e12, 32 * GIB, 1200e9, 50e9, dims=3, clock=1.05e9),
  Chip(
    'v5e', 'TPU v5 lite', 197e12, 16 * GIB, 819e9, 50e9, dims=2, clock=1.5e9
  ),
  Chip('v5p', 'TPU v5', 459e12, 95 * GIB, 2765e9, 100e9, dims=3, clock=1.75e9),
  Chip(
    'v6e', 'TPU v6 lite', 918e12, 32 * GIB, 1638e9, 100e9, dims=2, clock=1.75e9
  ),
  Chip('tpu7x', 'TPU7x', 1153.5e12, 96 * GIB, 3690e9, 100e9, dims=3, cores=2),
  Chip(
    'a100', 'NVIDIA A100', 312e12, 80 * GIB, 2039e9, 300e9, 25e9, processors=108
  ),
  Chip(
    'h100',
    'NVIDIA H100',
    989e12,
    84_978_434_048,
    3352e9,
    450e9,
    50e9,
    processors=132,
  ),
  Chip(
    'h200',
    'NVIDIA H200',
    989e12,
    141 * 10**9,
    4800e9,
    450e9,
    50e9,
    processors=132,
  ),
  Chip(
    'b200',
    'NVIDIA B200',
    2250e12,
    180 * 10**9,
    8000e9,
    900e9,
    50e9,
    processors=148,
  ),
)


def of_kind(device_kind: str) -> Chip | None:
  """Returns the chip of a device, None if it is not in the table."""
  return next((c for c in CHIPS if device_kind.startswith(c.kind)), None)


def named(name: str) -> Chip | None:
  """Returns the chip of a target's name, None if it is not in the table."""
  return next((c for c in CHIPS if c.name == name), None)
