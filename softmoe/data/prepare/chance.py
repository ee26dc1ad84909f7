"""Chance that follows from a name, the same on every machine."""

import hashlib


def share(name: str) -> float:
  """Returns a number in [0, 1), as good as random, for a name."""
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48
