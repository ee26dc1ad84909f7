"""Language modelling: the next token, from those before it in its document.

Axes: `b` windows of text, `n` tokens of a window, `v` vocabulary.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe import config as config_lib
from softmoe.data.text import batches
from softmoe.data.text.config import TextDataConfig
from softmoe.errors import UserError
from softmoe.models import decoder, generation
from softmoe.models.config import DecoderConfig
from softmoe.ranges import COUNT, Range
from softmoe.tasks import means, vocabularies
from softmoe.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Text that is written after each evaluation, for a person to read."""

  tokens: Annotated[int, COUNT] = 0  # how many; 0: none
  prompt: str = ''
  temperature: Annotated[float, Range(0, 1000)] = 1.0


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Config):
  """An experiment in language modelling."""

  task: str = 'language'
  model: DecoderConfig = DecoderConfig()
  data: TextDataConfig = TextDataConfig()
  checkpoint: config_lib.CheckpointConfig = config_lib.CheckpointConfig(
    best_metric='loss'
  )
  sample: SampleConfig = SampleConfig()


class Language(vocabularies.OfTokens):
  """Tokens to the next ones, by a decoder-only transformer."""

  Config = Config
  unit = 'token'
  shown = ('loss', 'bits_per_byte', 'learning_rate')

  def __init__(self, config: Config):
    """Checks what is special to the task; opens the tokenizer if it has to.

    Raises:
      UserError: as `vocabularies.OfTokens`.
    """
    super().__init__(config)
    self.units_per_example = config.data.length

  def make_model(self, rngs: nnx.Rngs) -> decoder.Decoder:
    """Returns a decoder, plain or with MoE blocks."""
    config = self.config
    return decoder.Decoder(config.model, length=config.data.length, rngs=rngs)

  def train_batches(
    self, rows: task_lib.Rows, start_step: int = 0
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns windows of the stream of documents, shuffled."""
    return batches.train_batches(
      self.config.data,
      seed=self.config.seed,
      start_step=start_step,
      rows=rows,
    )

  def eval_batches(
    self, split: str, rows: task_lib.Rows
  ) -> Iterator[dict[str, np.ndarray]]:
    """Returns windows of a split, in order, each token scored once."""
    return batches.eval_batches(self.config.data, split, rows=rows)

  def fingerprint(self) -> str:
    """Returns that of the text and the tokenizer."""
    return batches.fingerprint(self.config.data)

  def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `data.text.batches` says, each (b, n)."""
    shape = (size, self.config.data.length)
    kinds = dict.fromkeys(
      ('tokens', 'targets', 'segments', 'positions', 'bytes'), jnp.int32
    )
    return {
      name: jax.ShapeDtypeStruct(shape, dtype)
      for name, dtype in (kinds | {'weights': jnp.float32}).items()
    }

  def loss(
    self,
    model: decoder.Decoder,
    batch: task_lib.Batch,
    key: Any = None,
    *,
    router_options: dict[str, Any] | None = None,
  ) -> task_lib.Loss:
    """Returns the cross-entropy in nats; bits a byte; the accuracy.

    Args:
      model: of `make_model`.
      batch: of `train_batches` or `eval_batches`.
      key: for dropout and routing noise; None at evaluation.
      router_options: further arguments of the routers' calls, by name.
    """
    x, aux = self._represent(model, batch, key, router_options)
    weights = batch['weights']
    losses = model.losses(x, batch['targets'])
    total = jnp.sum(losses.cross_entropy * weights)
    num_bytes = jnp.sum(batch['bytes'] * weights)
    metrics: dict[str, Any] = {
      'accuracy': jnp.sum(losses.correct * weights),
      'bits_per_byte': task_lib.Mean(total / math.log(2), num_bytes),
    }
    if 'share' in batch:
      share = batch['share'] * weights
      of_documents = jnp.sum(losses.cross_entropy * share), jnp.sum(share)
      metrics['document_loss'] = task_lib.Mean(*of_documents)
    return task_lib.Loss(total, jnp.sum(weights), metrics, aux)

  def infer(
    self, model: decoder.Decoder, batch: task_lib.Batch
  ) -> Float[Array, 'b n v']:
    """Returns the logits after every token."""
    return model.logits(self._represent(model, batch)[0])

  def ratings(self) -> tuple[str, ...]:
    """Returns the losses and the accuracy."""
    return ('loss', 'document_loss', 'accuracy')

  def evaluators(
    self, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh
  ) -> tuple[task_lib.Evaluator, ...]:
    """Returns loss and perplexity over a split, after which a sample shows."""
    self._check_sample()
    evaluate = vocabularies.with_perplexity(
      means.over_split(self, graphdef, mesh)
    )

    def and_show(params: task_lib.Params, split: str) -> dict[str, float]:
      found = evaluate(params, split)
      if self.config.sample.tokens:
        self._show(nnx.merge(graphdef, params))
      return found

    return (and_show,)

  def write(
    self, model: decoder.Decoder, prompts: list[str], how: generation.Sampling
  ) -> list[str]:
    """Returns each prompt and what goes on from it, to the document's end."""
    starts = [self._start(prompt) for prompt in prompts]
    rows = self.filled(min(len(starts), self.config.data.eval_batch_size))
    found = generation.generate(model, starts, how, rows)
    return [self._text(*each) for each in zip(starts, found, strict=True)]

  def _start(self, prompt: str) -> Int[np.ndarray, ' m']:
    # What ends a document is what comes before the first token of the next.
    start = [self.tokenizer.eos, *self.tokenizer.encode(prompt)]
    return np.array(start, np.int32)

  def _text(self, start: np.ndarray, tokens: np.ndarray) -> str:
    ends = np.flatnonzero(tokens == self.tokenizer.eos)
    tokens = tokens[: ends[0]] if len(ends) else tokens
    return self.tokenizer.decode(np.concatenate([start[1:], tokens]))

  def _represent(self, model, batch, key=None, router_options=None):
    x, aux, _ = model(
      batch['tokens'],
      key,
      mask=batch['segments'] > 0,
      segments=batch['segments'],
      positions=batch['positions'],
      router_options=router_options,
    )
    return x, aux

  def _check_sample(self) -> None:
    """Raises a UserError if there are no positions for the text to show."""
    sample, config = self.config.sample, self.config
    if not sample.tokens or config.model.positions != 'learned':
      return
    room = config.data.length - len(self._start(sample.prompt))
    if sample.tokens > room:
      expected = f'at most {max(room, 0)}: positions are learned for '
      expected += f'{config.data.length} tokens, of which some are the prompt'
      raise UserError.of_field(config, 'sample.tokens', expected)

  def _show(self, model: decoder.Decoder) -> None:
    sample = self.config.sample
    how = generation.Sampling(sample.tokens, sample.temperature)
    text = self.write(model, [sample.prompt], how)[0]
    if jax.process_index() == 0:
      print(f'| {text}'.replace('\n', '\n| '), file=sys.stderr)
