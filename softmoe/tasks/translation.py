"""Translation: sentences of any number of languages into one.

Axes: `b` pairs, `m` source tokens, `n` target tokens, `v` vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from softmoe import config as config_lib
from softmoe import sharding
from softmoe.data import prefetch
from softmoe.data.text import buckets, pairs
from softmoe.data.text.pairs import PairDataConfig
from softmoe.data.text.tokenizers.tokenizer import Tokenizer
from softmoe.errors import UserError
from softmoe.models import beam_search, encoder_decoder, generation, stack
from softmoe.models.config import EncoderDecoderConfig
from softmoe.ranges import SHARE, Range
from softmoe.tasks import auxiliary, means, scores, vocabularies
from softmoe.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """How sentences are translated when a run is evaluated."""

  # Hypotheses; 0: nothing is translated, and there is no BLEU.
  beam: Annotated[int, Range(0, 1000)] = 4
  # Power of the length that scores are divided by.
  penalty: Annotated[float, Range(0, 100)] = 1.0


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Config):
  """An experiment in translation."""

  task: str = 'translation'
  label_smoothing: Annotated[float, SHARE] = 0.1
  model: EncoderDecoderConfig = EncoderDecoderConfig()
  data: PairDataConfig = PairDataConfig()
  checkpoint: config_lib.CheckpointConfig = config_lib.CheckpointConfig(
    best_metric='loss'
  )
  search: SearchConfig = SearchConfig()


class Translation(vocabularies.OfTokens):
  """Sentences to their translations, by an encoder-decoder transformer."""

  Config = Config
  unit = 'sentence'
  shown = ('loss', 'accuracy', 'learning_rate')

  def __init__(self, config: Config):
    """Checks what is special to the task; opens the tokenizer if it has to.

    Raises:
      UserError: as `vocabularies.OfTokens`, or the buckets do not ascend.
    """
    super().__init__(config)
    buckets.check(config.data.buckets)

  def stack_config(self, name: str) -> EncoderDecoderConfig:
    """Returns the config of one of the model's stacks, by its name."""
    config = self.config.model
    return (
      encoder_decoder.decoder_config(config) if name == 'decoder' else config
    )

  @property
  def length(self) -> int:
    """The tokens of the longest side that there is."""
    return self.config.data.buckets[-1]

  def make_model(self, rngs: nnx.Rngs) -> encoder_decoder.EncoderDecoder:
    """Returns an encoder-decoder, plain or with MoE blocks."""
    return encoder_decoder.EncoderDecoder(
      self.config.model, length=self.length, rngs=rngs
    )

  def train_batches(
    self, rows: task_lib.Rows, start_step: int = 0
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns pairs of like length, shuffled."""
    return pairs.train_batches(
      self.config.data,
      seed=self.config.seed,
      start_step=start_step,
      rows=rows,
    )

  def eval_batches(
    self, split: str, rows: task_lib.Rows
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns the pairs of a split, by length."""
    return pairs.eval_batches(self.config.data, split, rows=rows)

  def fingerprint(self) -> str:
    """Returns that of the pairs and the tokenizer."""
    return pairs.fingerprint(self.config.data)

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `data.text.pairs` says, of the last bucket."""
    shape = (size, self.length)
    kinds = dict(
      source=jnp.int32,
      source_mask=jnp.bool_,
      tokens=jnp.int32,
      targets=jnp.int32,
      weights=jnp.float32,
    )
    return {
      name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in kinds.items()
    } | {'index': jax.ShapeDtypeStruct((size,), jnp.int32)}

  def loss(
    self,
    model: encoder_decoder.EncoderDecoder,
    batch: task_lib.Batch,
    key: Any = None,
    *,
    router_options: dict[str, Any] | None = None,
  ) -> task_lib.Loss:
    """Returns the cross-entropy in nats a token, smoothed in training alone.

    Args:
      model: of `make_model`.
      batch: of `train_batches` or `eval_batches`.
      key: for dropout and routing noise; None at evaluation.
      router_options: further arguments of the routers' calls, by name.
    """
    x, aux = self._represent(model, batch, key, router_options)
    smoothing = 0.0 if key is None else self.config.label_smoothing
    losses, weights = (
      model.losses(x, batch['targets'], smoothing),
      batch['weights'],
    )
    total = lambda values: jnp.sum(values * weights)
    metrics = {
      'accuracy': total(losses.correct),
      'cross_entropy': total(losses.cross_entropy),
    }
    return task_lib.Loss(total(losses.smoothed), jnp.sum(weights), metrics, aux)

  def infer(
    self, model: encoder_decoder.EncoderDecoder, batch: task_lib.Batch
  ) -> Float[Array, 'b n v']:
    """Returns the logits after every token of the target."""
    return model.logits(self._represent(model, batch)[0])

  def ratings(self) -> tuple[str, ...]:
    """Returns the loss, the accuracy and the scores."""
    found = scores.NAMES if self.config.search.beam else ()
    return ('loss', 'accuracy', *found)

  def evaluators(
    self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ) -> tuple[task_lib.Evaluator, ...]:
    """Returns loss and perplexity over a split, and BLEU and chrF2++."""
    evaluators = [
      vocabularies.with_perplexity(means.over_split(self, graphdef, mesh))
    ]
    if self.config.search.beam:
      evaluators.append(functools.partial(self._score, graphdef, mesh))
    return tuple(evaluators)

  def notes(self) -> dict[str, str]:
    """Returns the pairs left out of training, and the scores' signatures."""
    signatures = scores.signatures() if self.config.search.beam else {}
    return {'left_out': pairs.left_out(self.config.data)} | signatures

  def write(
    self,
    model: encoder_decoder.EncoderDecoder,
    prompts: Sequence[str],
    how: generation.Sampling,
  ) -> list[str]:
    """Returns a translation of each sentence, which `<XX> ` may begin.

    A prompt such as '<de> Guten Tag' says its language.

    Raises:
      UserError: a sentence is too long.
    """
    split = [_split_language(p, self.tokenizer) for p in prompts]
    languages, texts = zip(*split, strict=True)
    sources = pairs.encode_sources(self.tokenizer, texts, languages)
    lengths = np.array([len(tokens) for tokens in sources])
    if np.max(lengths) > self.length:
      at = int(np.argmax(lengths))
      expected = f'at most {self.length} tokens, the last of the buckets'
      raise UserError(
        'prompt', f'{lengths[at]} tokens: {prompts[at]}', expected
      )
    found: list[str] = [''] * len(prompts)
    size = min(len(prompts), self.config.data.eval_batch_size)
    order = buckets.Order(lengths, self.config.data.buckets, size, seed=0)
    for batch in order.evaluation:
      # Of one size, that each bucket compiles once.
      shape = self.filled(size), batch.length
      some = [sources[i] for i in batch.indices]
      texts = self._write(model, some, shape, how)
      for i, text in zip(batch.indices, texts, strict=True):
        found[i] = text
    return found

  def _write(self, model, sources, shape, how) -> list[str]:
    source, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, tokens in enumerate(sources):
      source[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
    search = self.config.search
    most = min(how.tokens, self.length)
    search = beam_search.Search(how.beam, most, search.penalty)
    tokens = translate(
      model, jnp.asarray(source), jnp.asarray(mask), self.tokenizer.eos, search
    )
    return self._texts(jax.device_get(tokens)[: len(sources)])

  def _represent(self, model, batch, key=None, router_options=None):
    keys = [None] * 2 if key is None else list(jax.random.split(key))
    mask = batch['source_mask']
    memory, first = model.encode(batch['source'], mask, keys[0], router_options)
    x, second, _ = model.decode(
      batch['tokens'],
      memory,
      mask,
      keys[1],
      mask=batch['weights'] > 0,
      router_options=router_options,
    )
    return x, auxiliary.merge(first, second, 'decoder')

  def _score(self, graphdef, mesh, params, split: str) -> dict[str, float]:
    """Returns the scores of a split's translations."""
    data, search = self.config.data, self.config.search
    rows = prefetch.local_rows(mesh, data.eval_batch_size)
    texts = pairs.load(data, split).texts
    found: list[str] = [''] * len(texts)
    how = beam_search.Search(search.beam, self.length, search.penalty)
    placed = prefetch.to_devices(self.eval_batches(split, rows), mesh, 1)
    model = nnx.merge(graphdef, params)
    for batch in placed:
      tokens = translate(
        model, batch['source'], batch['source_mask'], self.tokenizer.eos, how
      )
      tokens, index = multihost_utils.process_allgather(
        (tokens, batch['index']), tiled=True
      )
      for i, text in zip(index, self._texts(tokens), strict=True):
        if i >= 0:
          found[i] = text
    return scores.corpus(found, texts)

  def _texts(self, tokens: np.ndarray) -> list[str]:
    eos = self.tokenizer.eos
    return [self.tokenizer.decode(row[row != eos]) for row in tokens]


@functools.partial(jax.jit, static_argnums=(3, 4))
def translate(
  model: encoder_decoder.EncoderDecoder,
  source: Int[Array, 'b m'],
  mask: Array,
  eos: int,
  how: beam_search.Search,
) -> Int[Array, 'b n']:
  """Returns the best translation of each sentence, EOS behind it.

  Args:
    model: whose mesh is in force.
    source: tokens.
    mask: False where they only fill up, as all of a sentence may.
    eos: the token that ends a sentence, and comes before the first.
    how: see `beam_search.Search`.
  """
  memory, _ = model.encode(source, mask)
  each = lambda v: sharding.repeat(v, how.beam)
  caches = model.init_caches(each(memory), how.length)
  mask = each(mask)
  real = jnp.any(mask, axis=1, keepdims=True)

  def step(last, caches):
    x, _, caches = model.decode(last, None, mask, mask=real, caches=caches)
    return model.logits(x)[:, 0], caches

  reorder = lambda caches, parents: stack.take_hypotheses(
    caches, parents, model.decoder_config
  )
  first = jnp.full_like(source[:, 0], eos)
  found = beam_search.search(step, reorder, caches, first, eos, how)
  return found.tokens[:, 0]


def _split_language(prompt: str, tokenizer: Tokenizer) -> tuple[str, str]:
  """Returns the language that a prompt begins with, if any, and the rest."""
  first, _, rest = prompt.partition(' ')
  if first in tokenizer.special:
    return first[1:-1], rest
  return '', prompt
