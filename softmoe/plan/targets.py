"""Slices by name, and the devices that a compiler sees in their place.

The names: 'v5p:8x8x4' a TPU slice of that shape in chips, 'h100:8' one host of
GPUs, 'h100:4x8' four hosts, 'cpu:8' devices of this machine's CPU.
"""

import dataclasses
import importlib.metadata
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from packaging import requirements, specifiers

from softmoe.costs import chips
from softmoe.errors import UserError
from softmoe.plan import slices
from softmoe.process import launch

_NAMES = ', '.join(c.name for c in chips.CHIPS if c.dims)
_FORM = (
  f"'v5p:8x8x4' or another TPU slice ({_NAMES}), 'h100:8', 'h100:4x8' (hosts x "
  "GPUs) or 'cpu:8'"
)
_MOST_GPUS = 16_384
# What XLA's GPU compiler must know of a device that is not here. NVIDIA H100
# Tensor Core GPU architecture white paper, and CUDA's device query of the SXM.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for.

  Attributes:
    name: as the user wrote it.
    chip: its published figures; None: a CPU.
    devices: of all hosts; nothing can run on them, a CPU's aside.
    shape: of the torus in chips; of GPUs (hosts, GPUs a host).
    compiler: name and version of what compiles for it.
  """

  name: str
  chip: chips.Chip | None
  devices: tuple[Any, ...]
  shape: tuple[int, ...]
  compiler: str

  @property
  def num_chips(self) -> int:
    """Returns the number of chips, of which JAX may show two devices each."""
    return len(self.devices) // (self.chip.cores if self.chip else 1)


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """Returns the chip or 'cpu', and the shape, that a name asks for.

  Raises:
    UserError: the name is wrong.
  """
  match = re.fullmatch(r'([a-z]\w*):(\d{1,9}(?:x\d{1,9})*)', name)
  if not match:
    raise UserError('--target', name, _FORM)
  kind, shape = match[1], tuple(map(int, match[2].split('x')))
  if kind == 'cpu':
    _check_number(name, shape, launch.MOST_DEVICES)
  return kind, shape


def _check_number(name: str, shape: tuple[int, ...], most: int) -> None:
  if not 1 <= math.prod(shape) <= most:
    raise UserError('--target', name, f'1 to {most:,} devices')


def open_target(name: str) -> Target:
  """Returns the target of a name.

  Raises:
    UserError: the name is wrong, no compiler for it is installed, or its
      compiler knows no such slice.
  """
  kind, shape = parse(name)
  if kind == 'cpu':
    return _cpu(name, shape)
  chip = chips.named(kind)
  if chip is None or (chip.dims == 0 and kind != 'h100'):
    raise UserError('--target', name, _FORM)
  return _tpu(name, chip, shape) if chip.dims else _gpu(name, chip, shape)


def _cpu(name: str, shape: tuple[int, ...]) -> Target:
  devices, wanted = jax.devices('cpu'), math.prod(shape)
  if wanted > len(devices):
    expected = f'at most {len(devices)} devices, or --cpu_devices={wanted}'
    raise UserError('--target', name, expected)
  compiler = f'jaxlib {jax.lib.__version__}'
  return Target(name, None, tuple(devices[:wanted]), shape, compiler)


def _tpu(name: str, chip: chips.Chip, shape: tuple[int, ...]) -> Target:
  slices.check(name, chip, shape)
  version = _version('libtpu', name, 'plan-tpu')
  # Otherwise libtpu looks for the machine that it does not run on.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5p-8')
  # There is no TPU that two processes could want.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  options = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}
  topology = f'{chip.name}:{"x".join(map(str, shape))}'
  devices = _describe(name, 'tpu', topology, options)
  return Target(name, chip, devices, shape, f'libtpu {version}')


def _gpu(name: str, chip: chips.Chip, shape: tuple[int, ...]) -> Target:
  if len(shape) > 2:
    raise UserError('--target', name, "'h100:8' or 'h100:4x8' (hosts x GPUs)")
  _check_number(name, shape, _MOST_GPUS)
  version = _version('jax-cuda12-plugin', name, 'plan-cuda')
  hosts, gpus = shape if len(shape) == 2 else (1, *shape)
  topology = f'1x{hosts}x{gpus}'
  options = {'topology': topology, 'target_config': _H100}
  devices = _describe(name, 'cuda', topology, options)
  compiler = f'jax-cuda12-plugin {version}'
  return Target(name, chip, devices, (hosts, gpus), compiler)


def _version(package: str, name: str, extra: str) -> str:
  """Returns the version of a compiler that is there and JAX's own."""
  install = f"pip install 'softmoe[{extra}]'"
  try:
    version = importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError as e:
    expected = f'its compiler installed: {install}'
    raise UserError('--target', name, expected) from e
  wanted = _wanted(package)
  if not wanted.contains(version, prereleases=True):
    expected = f'{wanted}, for jax {jax.__version__}: {install}'
    raise UserError(package, version, expected)
  return version


def _wanted(package: str) -> specifiers.SpecifierSet:
  """Returns the versions of a package that this version of JAX names."""
  lines = importlib.metadata.requires('jax') or ()
  needs = map(requirements.Requirement, lines)
  return next(n.specifier for n in needs if n.name == package)


def _describe(
  name: str, platform: str, topology: str, options: dict[str, str]
) -> tuple[Any, ...]:
  try:
    description = topologies.get_topology_desc(
      platform=platform, topology_name=topology, **options
    )
    return tuple(description.devices)
  except Exception as e:
    problem = str(e).splitlines()[0][:200]
    raise UserError(
      '--target', name, f'a slice that its compiler knows ({problem})'
    ) from e
