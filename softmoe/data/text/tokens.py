"""Tokens in a file: `tokens:PATH`, made by `softmoe.data.text.tokenize`.

PATH holds the streams of the splits one behind another, raw uint16 or uint32,
each document with EOS behind it. PATH.json says what they are:

  {"dtype": "uint16", "eos": 256,
   "tokenizer": {"name": "bytes", "sha256": of its file},
   "splits": {"train": number of tokens, "test": ...},
   "sha256": of PATH}
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from softmoe.data import new_file, splits
from softmoe.data.text import corpus, documents
from softmoe.data.text.tokenizers import tokenizer as tokenizer_lib
from softmoe.errors import UserError

_DTYPES = ('uint16', 'uint32')


def open_split(
  argument: str, split: str, name: str, tokenizer: tokenizer_lib.Tokenizer
) -> corpus.Corpus:
  """Returns the tokens of a split or of a slice of its documents.

  They stay on the disk. The fingerprint is that of the whole file.

  Args:
    argument: path of the file.
    split: that the file has, or a slice of one.
    name: of the tokenizer, for the error.
    tokenizer: which must be the one that made them.

  Raises:
    UserError: a file is missing, or is not what its JSON says; the tokenizer is
      another; the split is unknown.
  """
  manifest = _read_manifest(argument)
  made_by = manifest['tokenizer']
  if made_by['sha256'] != tokenizer.fingerprint:
    expected = f'the tokenizer of {argument!r}: {made_by["name"]!r}'
    raise UserError('config.data.tokenizer', name, expected)
  whole = _map(argument, manifest, splits.base_name(split), tokenizer.eos)
  tokens = _slice(whole, split, tokenizer.eos)
  return corpus.Corpus(tokens, tokenizer, manifest['sha256'])


def write(
  out: pathlib.Path,
  name: str,
  tokenizer: tokenizer_lib.Tokenizer,
  streams: Mapping[str, Iterable[corpus.Tokens]],
) -> dict[str, Any]:
  """Writes the file and its JSON, and returns what the latter holds.

  Args:
    out: a path that is free, as is that of the JSON.
    name: of the tokenizer.
    tokenizer: of the tokens.
    streams: of each split, in parts of any size.

  Raises:
    UserError: there are such files, or they cannot be written.
  """
  about = _manifest_path(out)
  new_file.check(about)
  with new_file.new_file(out) as file:
    digest, sizes, dtype = hashlib.sha256(), {}, ''
    for split, stream in streams.items():
      sizes[split] = 0
      for tokens in stream:
        digest.update(tokens.tobytes())
        file.write(tokens.tobytes())
        sizes[split] += len(tokens)
        dtype = tokens.dtype.name
    manifest = {
      'dtype': dtype,
      'eos': tokenizer.eos,
      'tokenizer': {'name': name, 'sha256': tokenizer.fingerprint},
      'splits': sizes,
      'sha256': digest.hexdigest(),
    }
    with new_file.new_file(about) as described:
      described.write((json.dumps(manifest, indent=2) + '\n').encode('utf-8'))
  return manifest


def _manifest_path(path: str | pathlib.Path) -> pathlib.Path:
  return pathlib.Path(f'{path}.json').expanduser()


def _read_manifest(argument: str) -> dict[str, Any]:
  path = _manifest_path(argument)
  try:
    manifest = json.loads(path.read_text(encoding='utf-8'))
    sizes, tokenizer = manifest['splits'], manifest['tokenizer']
    texts = manifest['sha256'], tokenizer['name'], tokenizer['sha256']
    if (
      manifest['dtype'] in _DTYPES
      and all(isinstance(text, str) for text in texts)
      and all(type(size) is int and size > 0 for size in sizes.values())
    ):
      return manifest
    reason = 'it has other values'
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    reason = f'{type(error).__name__}: {error}'
  expected = 'a JSON file as `python -m softmoe.data.text.tokenize` writes it'
  raise documents.wrong(str(path), f'{expected} ({reason})')


def _map(
  argument: str, manifest: dict[str, Any], name: str, eos: int
) -> corpus.Tokens:
  """Returns the tokens of a whole split, mapped from the file."""
  sizes = manifest['splits']
  if name not in sizes:
    raise splits.unknown(name, sizes)
  try:
    path = pathlib.Path(argument).expanduser()
    found = np.memmap(path, manifest['dtype'], mode='r')
  except (OSError, ValueError) as error:
    expected = f'a file of tokens that can be read ({error})'
    raise documents.wrong(argument, expected) from error
  start = sum(list(sizes.values())[: list(sizes).index(name)])
  tokens = found[start : start + sizes[name]]
  if len(found) != sum(sizes.values()) or tokens[-1] != eos:
    expected = f'{sum(sizes.values())} tokens, the last of each split its EOS'
    raise documents.wrong(argument, f'{expected}, as its JSON says')
  return tokens


def _slice(whole: corpus.Tokens, split: str, eos: int) -> corpus.Tokens:
  """Returns the documents of a slice, which follow one another."""
  if split == splits.base_name(split):
    return whole
  ends = corpus.document_ends(whole, eos)
  chosen = splits.indices(split, len(ends))
  start = ends[chosen.start - 1] if chosen.start else 0
  return whole[start : ends[chosen.stop - 1]]
