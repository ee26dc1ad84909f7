"""What `manifest.json` says of a corpus."""

import hashlib
import json
import pathlib
from typing import Any

NAME = 'manifest.json'


def write(folder: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
  """Writes what is known of a corpus beside its files; returns all of it.

  Adds `files`, the SHA-256 of each, and `fingerprint`, a hash of those.
  """
  files = {path.name: _hash(path) for path in sorted(folder.iterdir())}
  content = json.dumps(files).encode()
  fingerprint = hashlib.sha256(content).hexdigest()[:16]
  manifest = about | {'files': files, 'fingerprint': fingerprint}
  text = json.dumps(manifest, indent=1, ensure_ascii=False)
  (folder / NAME).write_text(text + '\n', encoding='utf-8')
  return manifest


def _hash(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
