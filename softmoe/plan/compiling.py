"""Compiling a program for a target, once: what came out is kept in a file."""

import dataclasses
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import time
import zlib
from typing import Any

import jax

from softmoe.errors import UserError
from softmoe.plan import targets
from softmoe.process import compilation_cache

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# What libtpu says of a program that does not fit: all of it, or without the
# arguments.
_TOO_LARGE = re.compile(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm')
_TEMPORARIES = re.compile(
  r'temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM '
  r'\(([\d.]+)([KMGT]?)\)'
)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of a program; all bytes are of one device.

  Attributes:
    text: the optimized program; '' if it does not fit the device's memory.
    arguments: bytes of the arguments, those that are given back included.
    outputs: bytes of new results.
    temporaries: bytes beside them at the peak.
    code: bytes of the program.
    needed: bytes in all; where a compiler refuses a program, what it says.
    limit: bytes that the compiler has for the program; 0: it does not say.
    flops: by the compiler's count, loops once; 0: it does not say.
    bytes_accessed: likewise.
    seconds: that compiling took, the first time.
  """

  text: str = ''
  arguments: int = 0
  outputs: int = 0
  temporaries: int = 0
  code: int = 0
  needed: int = 0
  limit: int = 0
  flops: float = 0.0
  bytes_accessed: float = 0.0
  seconds: float = 0.0


def open_cache(path: str) -> pathlib.Path:
  """Returns the directory of that path, which is made; '': the default one.

  Raises:
    UserError: it cannot be written to.
  """
  cache = _find_cache(path)
  try:
    cache.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    expected = f'a directory that can be made ({e.strerror})'
    raise UserError('--cache', str(cache), expected) from e
  if not os.access(cache, os.W_OK | os.X_OK):
    raise UserError('--cache', str(cache), 'a writable directory')
  return cache


def _find_cache(path: str) -> pathlib.Path:
  try:
    folder = compilation_cache.folder
    return pathlib.Path(path).expanduser() if path else folder('plan')
  except RuntimeError as e:
    expected = 'the full path of a directory: there is no home to look in'
    raise UserError('--cache', path, expected) from e


def compile_program(
  traced: Any, target: targets.Target, cache: pathlib.Path | None
) -> Compiled:
  """Returns what the target's compiler makes of a traced program.

  Args:
    traced: from `programs.trace`.
    target: whose devices the program is for.
    cache: directory of earlier results, by program, target and versions; None:
      compile in any case.
  """
  lowered = traced.lower()
  if cache is None:
    return _compile(lowered)
  path = cache / f'{_key(lowered, target)}.json.gz'
  compiled = _read(path)
  if compiled is not None:
    return compiled
  compiled = _compile(lowered)
  temporary = path.with_suffix(f'.{os.getpid()}')
  content = json.dumps(dataclasses.asdict(compiled)).encode()
  temporary.write_bytes(gzip.compress(content))
  temporary.replace(path)
  return compiled


def _read(path: pathlib.Path) -> Compiled | None:
  """Returns what was kept; None if there is nothing, or it is damaged."""
  try:
    return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
  except (OSError, EOFError, zlib.error, ValueError, TypeError):
    return None


def _key(lowered: Any, target: targets.Target) -> str:
  flags = [os.environ.get(name) for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
  parts = (target.name, target.compiler, jax.__version__, *map(str, flags))
  parts = (*parts, lowered.as_text())
  return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:32]


def _compile(lowered: Any) -> Compiled:
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    return _refused(e, _arguments(lowered))
  seconds = time.perf_counter() - start
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  parts = dict(
    arguments=memory.argument_size_in_bytes,
    outputs=outputs,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
  )
  return Compiled(
    text=compiled.as_text(),
    **parts,
    needed=sum(parts.values()),
    flops=cost.get('flops', 0.0),
    bytes_accessed=cost.get('bytes accessed', 0.0),
    seconds=seconds,
  )


def _refused(error: Exception, arguments: int) -> Compiled:
  """Returns what a program needs that the compiler finds too large."""
  message = str(error)
  found = _TOO_LARGE.search(message) or _TEMPORARIES.search(message)
  if not found:
    raise error
  used, limit = _bytes(*found.groups()[:2]), _bytes(*found.groups()[2:])
  needed = used + arguments if found.re is _TEMPORARIES else used
  return Compiled(
    arguments=arguments,
    temporaries=needed - arguments,
    needed=needed,
    limit=limit,
  )


def _bytes(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])


def _arguments(lowered: Any) -> int:
  """Returns the bytes of the arguments on one device."""
  return sum(
    math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
    for a in jax.tree.leaves(lowered.in_avals)
  )
