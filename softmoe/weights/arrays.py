"""Arrays by name, out of files that nobody has to trust.

Nothing is unpickled, and nothing is read before it is looked at: arrays are
maps of the file into memory, so a device that takes a part of one reads that
part. Only what a .npz holds compressed is read whole.
"""

import json
import math
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np
from jax import numpy as jnp
from jaxtyping import Shaped

from softmoe.errors import UserError

INDEX = 'model.safetensors.index.json'
ONE = 'model.safetensors'
SUFFIXES = ('.safetensors', '.npz')
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


class File(NamedTuple):
  """What a weights file holds.

  Attributes:
    path: of the file, or of the folder that it is in with others.
    arrays: by name.
    config: content of the `config.json` beside it, empty where there is none.
  """

  path: pathlib.Path
  arrays: dict[str, Shaped[np.ndarray, '...']]
  config: dict[str, Any]


def is_weights(path: pathlib.Path) -> bool:
  """Tells whether a path is, or should be, a weights file or folder."""
  if path.is_dir():
    return any((path / name).exists() for name in (ONE, INDEX))
  return path.is_file() or path.suffix in SUFFIXES


def open_file(path: pathlib.Path) -> File:
  """Returns the arrays of a file, or of a folder with `model.safetensors`.

  Raises:
    UserError: there is none, or it is damaged or of another kind.
  """
  folder = path if path.is_dir() else path.parent
  if path.is_dir():
    sharded = not (path / ONE).exists()
    arrays = _sharded(path) if sharded else _open(path / ONE)
  else:
    arrays = _open(path)
  beside = folder / 'config.json'
  config = _read_json(beside) if beside.exists() else {}
  return File(path, arrays, config)


def _open(path: pathlib.Path) -> dict[str, Any]:
  """Returns the arrays of one file; what it is, its first bytes tell."""
  try:
    with path.open('rb') as file:
      zipped = file.read(2) == b'PK'
    return _npz(path) if zipped else _safetensors(path)
  except UserError:
    raise
  except Exception as e:  # whatever a file that nobody checked may cause
    problem = f'{type(e).__name__}: {e}'.splitlines()[0][:200]
    expected = f'an intact .safetensors or .npz file ({problem})'
    raise UserError('weights', str(path), expected) from e


def _safetensors(path: pathlib.Path) -> dict[str, Any]:
  from safetensors import safe_open

  # It checks all that the header says against the size of the file.
  with safe_open(path, framework='numpy'):
    pass
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    header = json.loads(file.read(length))
  data = np.memmap(path, np.uint8, 'r')[8 + length :]
  header.pop('__metadata__', None)
  return {name: _tensor(data, name, info) for name, info in header.items()}


def _tensor(data: Any, name: str, info: dict[str, Any]) -> Any:
  if info['dtype'] not in _DTYPES:
    raise ValueError(f'{name} is of type {info["dtype"]}')
  start, end = info['data_offsets']
  return data[start:end].view(_DTYPES[info['dtype']]).reshape(info['shape'])


def _sharded(path: pathlib.Path) -> dict[str, Any]:
  """Returns the arrays of all files that an index names."""
  files = set(_read_json(path / INDEX).get('weight_map', {}).values())
  arrays = {}
  for name in sorted(map(str, files)):
    if pathlib.PurePath(name).name != name:
      expected = 'names of files in the same folder'
      raise UserError('weights', f'{path / INDEX}: {name}', expected)
    arrays |= _open(path / name)
  return arrays


def _npz(path: pathlib.Path) -> dict[str, Any]:
  with zipfile.ZipFile(path) as zipped:
    return {
      info.filename.removesuffix('.npy'): _member(path, zipped, info)
      for info in zipped.infolist()
    }


def _member(path: pathlib.Path, zipped: Any, info: zipfile.ZipInfo) -> Any:
  """Returns one array of a .npz, mapped where it is not compressed."""
  read = np.lib.format
  with zipped.open(info) as file:
    if info.compress_type != zipfile.ZIP_STORED:
      return _typed(read.read_array(file, allow_pickle=False))
    headers = {
      (1, 0): read.read_array_header_1_0,
      (2, 0): read.read_array_header_2_0,
    }
    shape, fortran, dtype = headers[read.read_magic(file)](file)
    header = file.tell()
  if dtype.hasobject:
    raise ValueError(f'{info.filename} holds Python objects')
  if not math.prod(shape):
    return np.zeros(shape, dtype)
  offset = _start(path, info) + header
  order = 'F' if fortran else 'C'
  return _typed(np.memmap(path, dtype, 'r', offset, shape, order))


def _start(path: pathlib.Path, info: zipfile.ZipInfo) -> int:
  """Returns where a member's bytes begin, behind a header of its own."""
  with path.open('rb') as file:
    file.seek(info.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), 'little') for _ in range(2))
  return info.header_offset + 30 + name + extra


def _typed(array: Any) -> Any:
  """Returns an array whose bfloat16 is one: NumPy saves it as two bytes."""
  is_bytes = array.dtype == np.dtype('V2')
  return array.view(jnp.bfloat16) if is_bytes else array


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise UserError('weights', str(path), f'a JSON file ({e})') from e
  if not isinstance(content, dict):
    raise UserError('weights', str(path), 'a JSON object')
  return content
