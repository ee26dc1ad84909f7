"""What a format is: a table of rows, and what only its library knows."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from softmoe.weights.row import Arrays, Row


@dataclasses.dataclass(frozen=True)
class Format:
  """How a library names the parameters of a model like one of ours.

  Attributes:
    name: as the command line has it.
    is_it: tells from the names of a file's arrays whether it is of the format.
    rows: from a model's config and the file's names to the table. It may hold
      rows of parameters that the model lacks. To write, the names are the
      paths of the parameters.
    config: from our config to the fields of the `config.json` that is written
      beside the weights.
    facts: from the content of a `config.json` to fields of our model's config
      that no shape tells.
    trained: fields of the model's config as the library always has them.
    foreign: what some models of the library have and none of ours, by a word
      that is in the names.
    ignored: regex of names that hold no weights.
    file: name of what is written.
    refuse: raises a UserError if the library has no such model.
    headless: whether it has models without a head.
    fold: from our parameters, by path, to those that are written: where the
      library has no place for a part of one, it is put into another.
  """

  name: str
  is_it: Callable[[Collection[str]], bool]
  rows: Callable[[Any, Collection[str]], list[Row]]
  refuse: Callable[[Any], None]
  config: Callable[[Any], dict[str, Any]] = lambda config: {}
  facts: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: {}
  trained: dict[str, Any] = dataclasses.field(default_factory=dict)
  foreign: dict[str, str] = dataclasses.field(default_factory=dict)
  ignored: str = ''
  file: str = 'model.safetensors'
  headless: bool = False
  fold: Callable[[Arrays], Arrays] = lambda params: params


def told(
  activations: dict[str, str], activation: Any, **fields: Any
) -> dict[str, Any]:
  """Returns what a library's config tells of the fields of our model's.

  Args:
    activations: by our names, theirs.
    activation: as theirs is called; None: it does not tell.
    **fields: other fields; None: it does not tell.
  """
  ours = {theirs: name for name, theirs in activations.items()}
  fields |= {'activation': ours.get(str(activation))}
  return {field: value for field, value in fields.items() if value is not None}
