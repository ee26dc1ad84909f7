"""What a model computes with its parameters, where no shape of them tells.

Of a run its config says it, of a file what its library always does and what
its `config.json` tells.
"""

from typing import Any

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.tasks import task as task_lib
from softmoe.tasks import vocabularies
from softmoe.weights.arrays import File
from softmoe.weights.formats import own
from softmoe.weights.formats.format import Format

Facts = dict[str, Any]  # by path in the config, such as 'model.num_heads'

_SAME = ('num_heads', 'positions')
_NOTED = ('activation', 'norm_epsilon')  # training on may change them


def of_config(content: dict[str, Any]) -> Facts:
  """Returns those of each model in the plain form of a config."""
  return {
    f'{name}.{field}': part[field]
    for name, part in content.items()
    if isinstance(part, dict)
    for field in (*_SAME, *_NOTED)
    if field in part
  }


def of_file(form: Format, file: File) -> Facts:
  """Returns those of a file, which is of one model unless it is ours."""
  if form is own.FORMAT:
    return of_config(file.config)
  told = form.trained | form.facts(file.config)
  return {f'model.{field}': value for field, value in told.items()}


def compare(
  config: config_lib.Config, theirs: Facts, name: str
) -> tuple[str, ...]:
  """Returns where the config's models differ in what may, in words.

  Args:
    config: of the experiment that starts.
    theirs: of what it starts from.
    name: of that, for the error.

  Raises:
    UserError: they differ in what must be the same.
  """
  ours, notes = of_config(config_lib.to_dict(config)), []
  for path, value in theirs.items():
    field = path.rpartition('.')[-1]
    if ours.get(path, value) == value:
      continue
    if field in _SAME:
      expected = f'{value!r}, as the model of {name} has it'
      raise UserError.of_field(config, path, expected)
    notes.append(
      f'it was trained with {field} {value!r}; config.{path} is {ours[path]!r}'
    )
  return tuple(notes)


def fingerprint(task: task_lib.Task) -> str:
  """Returns that of the task's tokenizer, '' where it has none.

  Raises:
    UserError: the tokenizer cannot be read.
  """
  is_of_tokens = isinstance(task, vocabularies.OfTokens)
  return task.tokenizer.fingerprint if is_of_tokens else ''


def check_tokenizer(task: task_lib.Task, theirs: str, name: str) -> None:
  """Raises a UserError if a run has other tokens than the one before it.

  Args:
    task: of the run that starts.
    theirs: fingerprint of the tokenizer of the other; '': it has none.
    name: of the other.
  """
  if theirs and theirs != fingerprint(task):
    expected = f'the tokenizer of {name}, whose tokens its model knows'
    raise UserError.of_field(task.config, 'data.tokenizer', expected)
