"""A folder of a data set that is being made."""

import numpy as np
import pytest

from softmoe.data.prepare import folder
from softmoe.errors import UserError


@pytest.mark.parametrize(
  'write',
  [
    lambda path, size: path.write_bytes(bytes(size)),
    lambda path, size: np.save(path, np.zeros(size, np.uint8)),
  ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, full_disk, write):
  line = "OUT: got '.*/out'; a path with room for all of it"
  out = tmp_path / 'out'
  with pytest.raises(UserError, match=line), folder.new_folder(out) as new:
    write(new / 'some', full_disk // 2)
    write(new / 'more', full_disk + 1)
  assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_not_the_folders_fault(tmp_path):
  read = tmp_path / 'missing'
  with (
    pytest.raises(FileNotFoundError, match='missing'),
    folder.new_folder(tmp_path / 'out'),
  ):
    read.read_bytes()
