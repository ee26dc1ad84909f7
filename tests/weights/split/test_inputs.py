"""Which tokens an MLP is split by: from all over, and none twice."""

import dataclasses

import jax
import numpy as np

from softmoe import experiment as experiment_lib
from softmoe.weights.split import inputs
from tests import untrained


def of_mlps(config, num_tokens):
  experiment = experiment_lib.build(config, jax.devices()[:1], training=False)
  params = jax.jit(experiment.init_params)()
  return inputs.of_mlps(experiment, params, num_tokens)


def test_they_are_from_all_over_a_sorted_split(tiny, tmp_path):
  labels = np.arange(1000) // 100
  images = np.broadcast_to(20 * labels[:, None, None], (1000, 8, 8))
  arrays = {'train_images': images.astype(np.uint8), 'train_labels': labels}
  np.savez(tmp_path / 'data.npz', **arrays)
  source = f'npz:{tmp_path}/data.npz'
  config = tiny('vit', data__source=source, data__train_split='train')
  first, last = of_mlps(config, 158)
  assert first.shape == last.shape == (158, 16)
  # Four tokens an image, all images of a class alike.
  steps = np.abs(np.diff(first[::4], axis=0)).max(axis=1)
  assert np.sum(steps > 1e-4) == 9


def test_windows_that_overlap_count_no_token_twice(tmp_path):
  (tmp_path / 'text.txt').write_text('abcdefghij' * 10)
  config = untrained.text()
  data = dataclasses.replace(
    config.data, source=f'text:{tmp_path}/text.txt', stride=4
  )
  config = dataclasses.replace(config, data=data)
  # All of the text, and its end.
  assert {len(x) for x in of_mlps(config, 1000)} == {101}
