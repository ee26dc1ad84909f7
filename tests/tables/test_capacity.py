"""A language model under a capacity that it was not trained with."""

import jax
import pytest
from flax import nnx

from softmoe.errors import UserError
from softmoe.evaluation import run
from softmoe.models import mixtures
from softmoe.models.config import MoEConfig
from softmoe.moe import routing
from softmoe.tables import capacity, suite
from tests import untrained

NAMES = 'bits_per_byte', 'moe/wanted', 'moe/granted'
SPLIT = 'train[:40]'
EXPERTS, CHOICES = 4, 2
# With its factor every token has room in every expert that it wants.
ROOM = {'tokens_choice': EXPERTS / CHOICES, 'threshold': 1.0 * EXPERTS}


@pytest.fixture(scope='module')
def sparse(tmp_path_factory):
  """Returns the workdir of each router by its name."""

  def make(router, **fields):
    moe = MoEConfig(router=router, blocks=(1,), num_experts=EXPERTS, **fields)
    folder = tmp_path_factory.mktemp(router)
    return untrained.run(untrained.text(moe=moe), folder)

  return {
    'tokens_choice': make('tokens_choice', k=CHOICES),
    'threshold': make('threshold'),
  }


def measure(workdir, **factors):
  found = capacity.evaluate(
    workdir, factors=factors, split=SPLIT, metrics=NAMES
  )
  return {name.rpartition('seen/')[2]: v for name, v in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize('router', ROOM)
def test_with_room_for_all_it_is_the_dropless_evaluation(sparse, router):
  found = measure(sparse[router], **ROOM)
  expected = run.evaluate_workdir(sparse[router], split=SPLIT)
  assert found == pytest.approx({name: expected[name] for name in NAMES})
  assert found['moe/granted'] == found['moe/wanted']


@pytest.mark.slow
@pytest.mark.parametrize('router', ROOM)
def test_with_less_room_experts_drop(sparse, router):
  """There is room for one expert a token, and padding takes none of it."""
  found = measure(sparse[router], **{router: ROOM[router] / EXPERTS})
  assert found['moe/granted'] < 1.1 < found['moe/wanted']


@pytest.mark.slow
def test_a_router_without_capacity_and_a_dense_model_have_none(
  sparse, tmp_path
):
  assert measure(sparse['tokens_choice'], threshold=1.0) == {}
  dense = untrained.run(untrained.text(), tmp_path)
  assert measure(dense, tokens_choice=1.0) == {}


@pytest.mark.usefixtures('other_data')
def test_other_data_than_the_run_read_is_refused(tmp_path):
  with pytest.raises(UserError, match='config.data.fingerprint'):
    measure(tmp_path, tokens_choice=1.0)


@pytest.mark.parametrize('name', ['topk_cpu', 'xmoe_cpu-t0.9'])
def test_the_suite_gives_experts_room_for_a_dense_mlps_work(name):
  """It is eight of 64 experts a token: 16 of 128 tokens an expert."""
  lm = suite.load(suite.find('lm'))
  (options,) = (o for o in lm.evaluators.values() if 'factors' in o)
  config = lm.find(f'{name}-seed0').load_config()
  factor = options['factors'][config.model.moe.router]
  model = capacity.limited(config, factor).model
  router = mixtures.make_router(model, nnx.Rngs(0))
  tokens = jax.ShapeDtypeStruct((128, model.width), 'float32')
  assert routing.traced(router, tokens).capacity == 16
