import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import decode
from softmoe.errors import UserError


def _encoded(image, suffix='png', **options):
  content = io.BytesIO()
  pillow_format = {'png': 'PNG', 'jpg': 'JPEG'}[suffix]
  image.save(content, pillow_format, **options)
  return content.getvalue()


def _decode(content):
  return decode.decode(io.BytesIO(content), 'the image', 32 * 32)


@pytest.mark.parametrize(
  ('mode', 'channels'),
  [
    ('L', 1),
    ('1', 1),
    ('LA', 1),
    ('RGB', 3),
    ('RGBA', 3),
    ('P', 3),
    ('CMYK', 3),
  ],
)
def test_modes(mode, channels):
  suffix = 'jpg' if mode == 'CMYK' else 'png'
  image = _decode(_encoded(pillow.new(mode, (6, 4)), suffix))
  assert (image.shape, image.dtype) == ((4, 6, channels), np.uint8)


def test_pixels():
  image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  whole = pillow.fromarray(image)
  np.testing.assert_array_equal(_decode(_encoded(whole)), image)
  lossy = _decode(_encoded(whole, 'jpg', quality=95))
  np.testing.assert_allclose(lossy.astype(int), image, atol=2)


def test_path(tmp_path):
  path = tmp_path / 'x.png'
  path.write_bytes(_encoded(pillow.new('L', (2, 3), 7)))
  np.testing.assert_array_equal(
    decode.decode(str(path), 'x', 6), [[[7]] * 2] * 3
  )


def _chunk(name, content):
  checked = name + content
  size, check = struct.pack('>I', len(content)), zlib.crc32(checked)
  return size + checked + struct.pack('>I', check)


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize(('kind', 'channels'), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_images_of_16_bits_are_refused(kind, channels, bits):
  """Of all kinds of PNG: Pillow itself writes 16 bits of grey alone."""
  head = struct.pack('>2I5B', 2, 2, bits, kind, 0, 0, 0)
  rows = 2 * (b'\0' + bytes(2 * channels * bits // 8))
  chunks = ((b'IHDR', head), (b'IDAT', zlib.compress(rows)), (b'IEND', b''))
  content = b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(*each) for each in chunks)
  if bits == 8:
    assert not _decode(content).any()
  else:
    with pytest.raises(UserError, match='16 bits a channel, not 8'):
      _decode(content)


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('keep', [0, 10, 300])
def test_a_corrupt_image_is_named(suffix, keep):
  noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  content = _encoded(pillow.fromarray(noise), suffix)[:keep]
  with pytest.raises(UserError, match='the image.*an intact JPEG or PNG'):
    _decode(content)


def test_a_huge_image_is_refused_before_it_is_decoded():
  expected = "'the image, 33 x 32 pixels'; at most 1024 .*max_pixels"
  with pytest.raises(UserError, match=expected):
    _decode(_encoded(pillow.new('L', (32, 33))))
