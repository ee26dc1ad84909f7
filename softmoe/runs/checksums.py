"""Checksums of a checkpoint's files: a flipped bit is found, not trained on.

`checksums.json` lists every other file below a directory by its size and its
XXH3 hash of 64 bits. That is no signature: who can write a file can write its
checksum.
"""

import concurrent.futures
import json
import pathlib
from collections.abc import Sequence

import xxhash

FILE = 'checksums.json'

Sums = dict[str, list]  # name of a file -> its size in bytes and its hash

_THREADS = 4
_CHUNK = 2**20  # bytes; what is read stays in the cache of a core


def names(directory: pathlib.Path) -> list[str]:
  """Returns the files below a directory, relative to it, but for `FILE`."""
  return sorted(
    path.relative_to(directory).as_posix()
    for path in directory.rglob('*')
    if path.is_file() and path != directory / FILE
  )


def of(directory: pathlib.Path, names: Sequence[str]) -> Sums:
  """Returns the checksums of files below a directory.

  Raises:
    OSError: one of them cannot be read.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(_of_file, [directory / name for name in names])
    return dict(zip(names, sums, strict=True))


def read(directory: pathlib.Path) -> Sums | None:
  """Returns what `FILE` lists; None: there is no such file.

  Raises:
    ValueError: it is damaged.
  """
  path = directory / FILE
  if not path.exists():
    return None
  sums = json.loads(path.read_bytes())
  if not isinstance(sums, dict):
    raise ValueError(f'{FILE} is damaged')
  return sums


def differing(directory: pathlib.Path, sums: Sums) -> list[str]:
  """Returns those of the listed files that are not what they were.

  A file that is missing or cannot be read is among them.
  """
  sizes = {name: _size(directory / name) for name in sums}
  wrong = {name for name in sums if [sizes[name]] != sums[name][:1]}
  found = of(directory, [name for name in sums if name not in wrong])
  wrong |= {name for name in found if found[name] != sums[name]}
  return sorted(wrong)


def _size(path: pathlib.Path) -> int | None:
  try:
    return path.stat().st_size
  except OSError:
    return None


def _of_file(path: pathlib.Path) -> list:
  digest, size, buffer = xxhash.xxh3_64(), 0, bytearray(_CHUNK)
  view = memoryview(buffer)
  with path.open('rb', buffering=0) as file:
    while count := file.readinto(buffer):
      digest.update(view[:count])
      size += count
  return [size, digest.hexdigest()]
