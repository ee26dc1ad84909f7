"""Images with texts in tar files."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.captioned import sources
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.errors import UserError


def png(value):
  file = io.BytesIO()
  pillow.fromarray(np.full((3, 4), value, np.uint8)).save(file, 'PNG')
  return file.getvalue()


def write(path, files):
  path.parent.mkdir(exist_ok=True)
  with tarfile.open(path, 'w') as opened:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      opened.addfile(member, io.BytesIO(content))


@pytest.fixture
def root(tmp_path):
  """Returns a folder of two splits, the first of two files."""
  for part, numbers in ((0, (1, 2, 3)), (1, (4, 5))):
    files = {}
    for i in numbers:
      files[f'./a/{i}.PNG'] = png(i)
      files[f'./a/{i}.json'] = b'{}'
      files[f'./a/{i}.txt'] = f'text {i} é'.encode()
    write(tmp_path / 'train' / f'{part}.tar', files)
  lonely = {'6.png': png(6), '7.txt': b'7', '8.0.txt': b'no', '8.png': b''}
  write(tmp_path / 'val' / '0.tar', lonely)
  return tmp_path


def open_split(root, split):
  config = CaptionedDataConfig(source=f'webdataset:{root}')
  return sources.open_split(config, split)


def test_images_have_their_texts_in_a_fixed_mixed_order(root):
  found = open_split(root, 'train')
  values = []
  for example in (found.images[i] for i in range(5)):
    value = int(example['image'][0, 0, 0])
    assert example['image'].shape == (3, 4, 1)
    assert found.texts[example['label']] == [f'text {value} é']
    values.append(value)
  assert sorted(values) == [1, 2, 3, 4, 5] and values != sorted(values)
  part = open_split(root, 'train[40%:]')
  assert [int(part.images[i]['image'][0, 0, 0]) for i in range(3)] == values[2:]


def test_the_heads_of_a_split_are_read_once(root):
  found = open_split(root, 'train')
  assert open_split(root, 'train').images is found.images


@pytest.mark.parametrize(
  ('split', 'line'),
  [
    ('val', r'tar files with KEY.jpg or KEY.png beside KEY.txt'),
    ('test', r"the source has \['train', 'val'\]"),
  ],
)
def test_a_split_without_examples_and_one_that_is_not_there(root, split, line):
  with pytest.raises(UserError, match=line) as error:
    open_split(root, split)
  assert '\n' not in str(error.value)


def test_a_damaged_file_is_named(root):
  path = root / 'train' / '0.tar'
  path.write_bytes(b'x' * 2000)
  with pytest.raises(UserError, match='0.tar.*; an intact tar file'):
    open_split(root, 'train')
  path.write_bytes(b'')
  with pytest.raises(UserError, match='0.tar.*; an intact tar file'):
    open_split(root, 'train')


def test_a_damaged_image_is_named(root):
  write(root / 'val' / '0.tar', {'1.jpg': b'x', '1.txt': b'one'})
  with pytest.raises(UserError, match='example 0.*; an intact JPEG or PNG'):
    open_split(root, 'val').images[0]
