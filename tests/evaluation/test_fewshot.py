"""Few-shot accuracy of a run, from its directory alone."""

import json

import numpy as np
import pytest

from softmoe.errors import UserError
from softmoe.evaluation import fewshot
from softmoe.tasks import shots


def test_one_line_of_json(finished, one_device):
  workdir, _, _ = finished
  config = shots.FewshotConfig(shots=(1, 10), seeds=2)
  result = json.loads(json.dumps(fewshot.evaluate_workdir(workdir, config)))
  assert (result['step'], result['source']) == (8, 'digits')
  assert result['split'] == 'test'
  for name in ('1shot', '10shot'):
    assert len(result[name]['seeds']) == 2
    assert result[name]['accuracy'] == np.mean(result[name]['seeds'])
  assert result['10shot']['accuracy'] > result['1shot']['accuracy'] > 0.15
  best = fewshot.evaluate_workdir(workdir, config, step='6')
  assert best['step'] == 6 and best['10shot'] != result['10shot']


@pytest.mark.usefixtures('other_data')
@pytest.mark.parametrize(
  ('source', 'field'), [('', 'data.fingerprint'), ('npz:none', 'source')]
)
def test_the_runs_own_data_is_what_the_run_read(tmp_path, source, field):
  config = shots.FewshotConfig(source=source)
  with pytest.raises(UserError, match=f'config.*{field}'):
    fewshot.evaluate_workdir(tmp_path, config)


def test_a_directory_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='--workdir'):
    fewshot.evaluate_workdir(tmp_path, shots.FewshotConfig())
