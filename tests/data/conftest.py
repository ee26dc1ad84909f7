"""What tests of data share."""

import resource

import pytest

LIMIT = 2**16  # bytes


@pytest.fixture
def full_disk():
  """Lets no file grow beyond `LIMIT`, as if the disk were full then."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
  yield LIMIT
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
