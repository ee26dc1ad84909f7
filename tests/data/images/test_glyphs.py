import json

import numpy as np
import pytest

from softmoe.data.images import sources
from softmoe.errors import UserError


def write(folder, fingerprint='abc', images=6):
  """Writes a data set of two classes by hand."""
  rng = np.random.default_rng(0)
  split = {'images': images, 'classes': 2, 'characters': '亜唖'}
  manifest = {'data': 'glyphs', 'fingerprint': fingerprint}
  manifest['splits'] = {'train': split, 'val': split}
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  for name in manifest['splits']:
    pixels = rng.integers(0, 256, (6, 32, 32), np.uint8)
    np.save(folder / f'{name}_images.npy', pixels)
    np.save(folder / f'{name}_labels.npy', np.arange(6, dtype=np.int32) % 2)


def test_split_is_read_and_pixels_stay_on_the_disk(tmp_path):
  write(tmp_path)
  source = sources.open_source(f'glyphs:{tmp_path}', 'train[2:]')
  assert len(source) == 4 and source.num_classes == 2
  pixels = np.load(tmp_path / 'train_images.npy')
  assert (source[0]['image'][..., 0] == pixels[2]).all()
  assert isinstance(source.source.images.base.base, np.memmap)


def test_fingerprints():
  assert sources.fingerprint('digits') == ''
  with pytest.raises(UserError, match='config.data.source'):
    sources.fingerprint('runes:x')


@pytest.mark.parametrize(
  'damage, line',
  [
    (lambda d: (d / 'manifest.json').unlink(), 'softmoe.data.prepare glyphs'),
    (lambda d: (d / 'manifest.json').write_text('{'), 'data.prepare glyphs'),
    (lambda d: (d / 'manifest.json').write_text('[]'), 'data.prepare glyphs'),
    (lambda d: (d / 'train_images.npy').unlink(), 'intact train_images.npy'),
    (
      lambda d: (d / 'train_labels.npy').write_bytes(b''),
      'train_labels.npy',
    ),
    (lambda d: write(d, images=7), 'manifest says 7 of each, not 6 images'),
  ],
)
def test_damage_is_named(tmp_path, damage, line):
  write(tmp_path)
  damage(tmp_path)
  with pytest.raises(UserError, match=line) as error:
    sources.open_source(f'glyphs:{tmp_path}', 'train')
  assert '\n' not in str(error.value)


def test_unknown_split(tmp_path):
  write(tmp_path)
  with pytest.raises(UserError, match="'train', 'val'"):
    sources.open_source(f'glyphs:{tmp_path}', 'tests')
