"""A language model under a capacity that it was not trained with."""

import pytest

from softmoe.evaluation import run
from softmoe.models.config import MoEConfig
from softmoe.tables import capacity
from tests import untrained

NAMES = 'bits_per_byte', 'moe/wanted', 'moe/granted'
SPLIT = 'train[:40]'
EXPERTS, CHOICES = 4, 2


@pytest.fixture(scope='module')
def sparse(tmp_path_factory):
  moe = MoEConfig(
    router='tokens_choice', blocks=(1,), num_experts=EXPERTS, k=CHOICES
  )
  folder = tmp_path_factory.mktemp('sparse')
  return untrained.run(untrained.text(moe=moe), folder)


def measure(workdir, **factors):
  found = capacity.evaluate(
    workdir, factors=factors, split=SPLIT, metrics=NAMES
  )
  return {name.rpartition('seen/')[2]: v for name, v in found.items()}


@pytest.mark.slow
def test_with_room_for_all_it_is_the_dropless_evaluation(sparse):
  found = measure(sparse, tokens_choice=EXPERTS / CHOICES)
  expected = run.evaluate_workdir(sparse, split=SPLIT)
  assert found == pytest.approx({name: expected[name] for name in NAMES})
  assert found['moe/granted'] == CHOICES


@pytest.mark.slow
def test_with_less_room_experts_drop(sparse):
  found = measure(sparse, tokens_choice=0.5)
  assert found['moe/granted'] <= CHOICES / 2 < found['moe/wanted'] == CHOICES


@pytest.mark.slow
def test_a_router_without_capacity_and_a_dense_model_have_none(
  sparse, tmp_path
):
  assert measure(sparse, threshold=1.0) == {}
  dense = untrained.run(untrained.text(), tmp_path)
  assert measure(dense, tokens_choice=1.0) == {}
