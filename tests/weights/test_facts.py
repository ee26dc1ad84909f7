"""What no shape of a run's parameters tells, against the run that starts."""

import dataclasses
import shutil

import pytest

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.weights import pretrained
from tests import untrained
from tests.data.text import trained


def test_another_tokenizer_of_as_many_tokens_is_named(tmp_path, one_device):
  name = trained.name('bpe', tmp_path)
  made = untrained.text(vocab_size=300)
  data = dataclasses.replace(made.data, tokenizer=name)
  workdir = tmp_path / 'run'
  untrained.run(dataclasses.replace(made, data=data), workdir)
  moved = shutil.copytree(workdir, tmp_path / 'moved')
  shutil.rmtree(workdir)
  config = dataclasses.replace(made, init=str(moved))
  with pytest.raises(UserError) as error:
    pretrained.params(experiment_lib.build(config))
  line = "config.data.tokenizer: got 'bytes'; the tokenizer of "
  assert str(error.value).startswith(f'{line}{moved}')
  config = dataclasses.replace(config, data=data)
  pretrained.params(experiment_lib.build(config))
