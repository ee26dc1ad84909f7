"""The command in the tests' own process."""

import pytest

from softmoe.process import launch


@pytest.fixture(autouse=True)
def launched(monkeypatch):
  """Leaves the process, its heap and its devices, as they are."""
  monkeypatch.setattr(launch, 'keep_heap', lambda: None)
  monkeypatch.setattr(launch, 'use_cores', lambda: None)
