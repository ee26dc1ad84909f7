"""What is written, against full passes; whose draws are whose."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import decoder, generation

MOE = model_config.MoEConfig(
  router='expert_threshold', k=2, group_size=2, blocks=(1,), num_experts=4
)
CONFIG = model_config.DecoderConfig(
  width=8, depth=2, mlp_dim=16, num_heads=2, vocab_size=11, moe=MOE
)
LENGTH, NEW = 9, 4
PROMPTS = [np.array(p) for p in ([3, 1, 4], [1, 5, 9, 2, 6], [5])]


@pytest.fixture(scope='module')
def model():
  """Returns a decoder of numbers that are not small, and groups of two."""
  make = lambda: decoder.Decoder(CONFIG, length=LENGTH, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  draw = lambda w: jnp.asarray(rng.normal(size=w.shape), w.dtype)
  return jax.tree.map(draw, jax.eval_shape(make))


def test_greedy_is_the_best_of_the_full_pass(model):
  how = generation.Sampling(NEW, temperature=0)
  found = generation.generate(model, PROMPTS, how, 2)
  whole = np.zeros((4, LENGTH), np.int32)
  for row, (prompt, new) in enumerate(zip(PROMPTS, found, strict=True)):
    whole[row, : len(prompt) + NEW] = [*prompt, *new]
  apply = jax.jit(lambda model, x: model.logits(model(x)[0]))
  best = np.argmax(apply(model, whole), -1)
  for row, prompt in enumerate(PROMPTS):
    said = best[row, len(prompt) - 1 :][:NEW]
    np.testing.assert_array_equal(found[row], said)


def test_lines_and_seeds_differ_and_compile_nothing_new(model, monkeypatch):
  traced, pick = [], generation.pick

  def counted(*arguments):
    traced.append(1)
    return pick(*arguments)

  monkeypatch.setattr(generation, 'pick', counted)
  how = generation.Sampling(NEW, temperature=2.0)
  write = lambda prompts, seed: generation.generate(
    model, prompts, how._replace(seed=seed), 4
  )
  found = write(PROMPTS[:1] * 3, 0)
  count = len(traced)
  assert len({tuple(line) for line in found}) == 3
  assert np.any(write(PROMPTS[:1] * 3, 1) != found)
  assert len(traced) == count
  # What a line says does not depend on how many follow.
  np.testing.assert_array_equal(write(PROMPTS[:1], 0), found[:1])


def test_draws():
  logits = jnp.array([[0.0, 1.0, 2.0, 3.0]] * 500)
  keys = jax.random.split(jax.random.key(0), 500)
  draw = lambda **how: np.asarray(
    generation.pick(logits, generation.Sampling(1, **how), keys)
  )
  assert set(draw(top_k=2)) == {2, 3}
  assert set(draw(top_k=9)) == {0, 1, 2, 3}  # more than there are
  share = np.mean(draw(temperature=2.0) == 3)
  expected = np.exp(1.5) / np.sum(np.exp(np.arange(4) / 2))
  assert abs(share - expected) < 0.1
  assert set(draw(temperature=0.0)) == {3}


def test_more_than_there_are_positions(model):
  with pytest.raises(UserError, match='length: got 10; at most 9, the pos'):
    generation.generate(model, PROMPTS, generation.Sampling(5), 4)
