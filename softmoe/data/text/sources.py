"""Sources by name: the one place that knows them all.

Their documents come in `fixed_order`, whatever the source, so that any slice of
a split is a fair sample of it.
"""

from softmoe.data import splits
from softmoe.data.text import documents, jsonl, stdlib, text_files, tfds


def _refuse_tokens(argument: str) -> dict[str, documents.Documents]:
  expected = 'a source of text; these are tokens already'
  raise documents.wrong(f'tokens:{argument}', expected)


_OPENERS = {
  'jsonl': jsonl.open_splits,
  'stdlib': stdlib.open_splits,
  'text': text_files.open_splits,
  'tfds': tfds.open_splits,
  'tokens': _refuse_tokens,  # `corpus` reads them
}


def open_source(name: str, split: str) -> documents.Documents:
  """Returns the documents of a split, such as `train` or `train[:90%]`.

  Args:
    name: `kind` or `kind:argument`, as in `stdlib` or `text:/data/books`.
    split: a split of the source, or a slice of one.

  Raises:
    UserError: the source or the split is unknown, missing or empty. Reading a
      document raises it too, where it is not valid.
  """
  found = _open(name)
  base = splits.base_name(split)
  if base not in found:
    raise splits.unknown(split, found)
  order = splits.fixed_order(len(found[base]))
  chosen = splits.indices(split, len(order))
  return documents.Selection(found[base], order[chosen.start : chosen.stop])


def split_names(name: str) -> list[str]:
  """Returns the splits of a source.

  Raises:
    UserError: the source is unknown, missing or empty.
  """
  return sorted(_open(name))


def _open(name: str) -> dict[str, documents.Documents]:
  kind, _, argument = name.partition(':')
  if kind not in _OPENERS:
    raise documents.wrong(name, f'one of {sorted(_OPENERS)}')
  return _OPENERS[kind](argument)
