"""The files of a data set of labelled images, and their manifest.

A split is three arrays: SPLIT_images.npy, SPLIT_labels.npy, SPLIT_faces.npy.
"""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from softmoe.data.prepare import selection
from softmoe.data.prepare.pairs import Kept, Split


def write(
  folder: pathlib.Path,
  splits: dict[str, Split],
  chosen: selection.Choice,
  software: dict[str, str],
) -> dict[str, Any]:
  """Writes the splits and `manifest.json`; returns what that holds."""
  described = {
    name: _write_split(folder, name, split) for name, split in splits.items()
  }
  counts = np.zeros((len(chosen.kept), len(splits)), np.int64)
  for column, split in enumerate(splits.values()):
    counts[:, column] = np.bincount(split.faces, minlength=len(counts))
  manifest = {
    'data': 'glyphs',
    'fingerprint': _fingerprint(described),
    'splits': described,
    'faces': [
      _describe(each, dict(zip(splits, map(int, row), strict=True)))
      for each, row in zip(chosen.kept, counts, strict=True)
    ],
    'same': [
      _origin(each.face) | {'as': each.kept, 'distance': each.distance}
      for each in chosen.same
    ],
    'software': software,
  }
  text = json.dumps(manifest, indent=1, ensure_ascii=False)
  (folder / 'manifest.json').write_text(text + '\n', encoding='utf-8')
  return manifest


def _write_split(
  folder: pathlib.Path, name: str, split: Split
) -> dict[str, Any]:
  arrays = split._asdict()
  classes = arrays.pop('classes')
  hashes = {}
  for kind, array in arrays.items():
    path = folder / f'{name}_{kind}.npy'
    np.save(path, array)
    with path.open('rb') as file:
      hashes[kind] = hashlib.file_digest(file, 'sha256').hexdigest()
  return {
    'images': len(split.labels),
    'classes': len(classes),
    'characters': classes,
    'sha256': hashes,
  }


def _fingerprint(described: dict[str, Any]) -> str:
  """Returns a hash of all images, labels, faces and characters."""
  return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _origin(face: Any) -> dict[str, Any]:
  return {
    'name': face.name,
    'version': face.version,
    'file': pathlib.Path(face.path).name,
    'index': face.index,
    'sha256': face.sha256,
  }


def _describe(kept: Kept, images: dict[str, int]) -> dict[str, Any]:
  nearest = {}
  if kept.nearest is not None:
    name, distance = kept.nearest
    nearest = {'nearest_training_face': name, 'distance': distance}
  return (
    _origin(kept.face)
    | {'name': kept.name, 'family': kept.family, 'held_out': kept.held_out}
    | nearest
    | {'images': images}
  )
