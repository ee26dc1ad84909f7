"""What tasks share whose models have a vocabulary: its size and tokenizer."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

from softmoe.data.text.tokenizers import registry
from softmoe.data.text.tokenizers.tokenizer import Tokenizer
from softmoe.errors import UserError
from softmoe.models import stack
from softmoe.tasks import task as task_lib

_TOKENIZER = 'tokenizer'  # the file in a workdir
_STACKS = ('blocks', 'encoder', 'decoder')


class OfTokens(task_lib.Task):
  """A task on tokens; its config has `data.tokenizer`.

  Attributes:
    reader: branch of the config that has `vocab_size`.
  """

  reader: str = 'model'

  def __init__(self, config: Any):
    """Opens the tokenizer if the vocabulary has to be as large as its own.

    Raises:
      UserError: the tokenizer cannot be read.
    """
    super().__init__(config)
    reader = getattr(config, self.reader)
    if not reader.vocab_size:
      size = self.tokenizer.vocab_size
      reader = dataclasses.replace(reader, vocab_size=size)
      self.config = dataclasses.replace(config, **{self.reader: reader})

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that the config names.

    Raises:
      UserError: it cannot be read, or has more tokens than the vocabulary.
    """
    found = registry.open_tokenizer(self.config.data.tokenizer)
    size = getattr(self.config, self.reader).vocab_size
    if 0 < size < found.vocab_size:
      expected = f'at least {found.vocab_size}, the tokens of the tokenizer'
      raise UserError.of_field(
        self.config, f'{self.reader}.vocab_size', expected
      )
    return found

  def files(self) -> dict[str, bytes]:
    """Returns the tokenizer's file."""
    content = self.tokenizer.content
    return {_TOKENIZER: content} if content else {}

  @classmethod
  def located(cls, config: Any, workdir: pathlib.Path) -> Any:
    """Returns the config with the tokenizer that the run keeps."""
    path = workdir / _TOKENIZER
    if not path.exists():
      return config
    kind = config.data.tokenizer.partition(':')[0]
    data = dataclasses.replace(config.data, tokenizer=f'{kind}:{path}')
    return dataclasses.replace(config, data=data)

  def filled(self, count: int) -> int:
    """Returns the number of examples, so many or more, that fill groups."""
    size = self.config.model.moe.group_size
    return -(-count // size) * size

  def exchange(self, params: task_lib.Params) -> task_lib.Params:
    """Returns parameters as they are without `scan`."""
    return params | {
      name: stack.unstack(params[name], self.stack_config(name))
      for name in params.keys() & set(_STACKS)
    }

  def take(self, params: task_lib.Params) -> task_lib.Params:
    """Returns the inverse of `exchange`."""
    return params | {
      name: stack.stack(params[name], self.stack_config(name))
      for name in params.keys() & set(_STACKS)
    }

  def stack_config(self, name: str) -> Any:
    """Returns the config of one of the model's stacks, by its name."""
    del name
    return self.config.model


def with_perplexity(evaluator: task_lib.Evaluator) -> task_lib.Evaluator:
  """Returns an evaluator that adds `perplexity`, exp(loss in nats)."""

  def evaluate(params: task_lib.Params, split: str) -> dict[str, float]:
    found = evaluator(params, split)
    loss = found['loss']
    return found | {'perplexity': math.exp(loss) if loss < 700 else math.inf}

  return evaluate
