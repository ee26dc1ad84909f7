"""How many images a second does the input make?

python benchmarks/input.py

Batches of 256, without a model: JPEG files of 500 x 375 pixels, decoded,
cropped at random as for ImageNet to 224 x 224 and flipped; and images of
32 x 32 pixels in memory, cropped after padding and flipped, or as they are.
With one thread, and with one a core.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import timing
from PIL import Image

from softmoe import config as config_lib
from softmoe.data.images import batches
from softmoe.data.images.config import ImageDataConfig, TransformConfig
from softmoe.process import launch
from softmoe.tables import markdown

BATCH = 256
SECONDS = 2.0  # of each measurement
ROUNDS = 3
FILES = 512
CASES = {
  'JPEG, crop to 224, flip': dict(
    source='folder:{}/files',
    image_size=(224, 224),
    train=TransformConfig(crop='inception', flip=True),
  ),
  'in memory, pad and crop, flip': dict(
    source='npz:{}/images.npz',
    image_size=(32, 32),
    train=TransformConfig(crop='pad', padding=4, flip=True),
  ),
  'in memory': dict(source='npz:{}/images.npz', image_size=(32, 32)),
}


def main() -> None:
  """Prints a Markdown table."""
  threads = sorted({1, len(launch.cores())})
  found: dict[tuple[str, int], list[float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder))
    for _ in range(ROUNDS):
      for name in CASES:
        for number in threads:
          rate = images_per_second(make_config(name, folder, number))
          found.setdefault((name, number), []).append(rate)
  rows = [
    (name, *(f'{statistics.median(found[name, n]):,.0f}' for n in threads))
    for name in CASES
  ]
  titles = ('images/s', *(f'threads: {n}' for n in threads))
  print(f'{markdown.table(titles, rows)}\n\n{timing.where()}')


def write(folder: pathlib.Path) -> None:
  """Writes files of smooth noise, about 50 kB each, and an archive."""
  rng = np.random.default_rng(0)
  (folder / 'files' / 'train' / 'one').mkdir(parents=True)
  for i in range(FILES):
    small = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
    large = small.resize((500, 375), Image.Resampling.BICUBIC)
    large.save(folder / 'files' / 'train' / 'one' / f'{i}.jpg', quality=75)
  images = rng.integers(0, 256, (10_000, 32, 32, 3), np.uint8)
  labels = np.zeros(len(images), np.int32)
  np.savez(folder / 'images.npz', train_images=images, train_labels=labels)


def make_config(name: str, folder: str, threads: int) -> ImageDataConfig:
  """Returns the config of one of CASES."""
  fields: dict[str, Any] = dict(CASES[name])
  fields['source'] = fields['source'].format(folder)
  return ImageDataConfig(
    train_split='train',
    channels=3,
    batch_size=BATCH,
    threads=threads,
    prefetch=2,
    **fields,
  )


def images_per_second(config: config_lib.DataConfig) -> float:
  """Returns the rate after the first batches, which fill what is ahead."""
  stream: Iterator[Any] = batches.train_batches(config, seed=0)
  for _ in range(config.threads + 1):
    next(stream)
  start, made = time.perf_counter(), 0
  while (seconds := time.perf_counter() - start) < SECONDS:
    made += len(next(stream)['label'])
  return made / seconds


if __name__ == '__main__':
  main()
