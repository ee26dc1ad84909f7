"""BLEU and chrF2++ of translations, by sacrebleu."""

from collections.abc import Sequence
from typing import Any

from softmoe.data.text import parallel
from softmoe.errors import UserError

NAMES = ('bleu', 'chrf')


def corpus(
  translations: Sequence[str], pairs: parallel.Pairs
) -> dict[str, float]:
  """Returns `bleu` and `chrf`, from 0 to 100, of a whole split.

  Of several languages also those of each, as `bleu/XX` and `chrf/XX`; `bleu` is
  that of all sentences together.

  Args:
    translations: of the sources, in their order.
    pairs: with the references.
  """
  found = _of(translations, pairs.targets, '')
  languages = sorted(set(pairs.languages) - {''})
  for language in languages if len(languages) > 1 else ():
    rows = [i for i, name in enumerate(pairs.languages) if name == language]
    part = [translations[i] for i in rows]
    found |= _of(part, [pairs.targets[i] for i in rows], f'/{language}')
  return found


def signatures() -> dict[str, str]:
  """Returns how the scores are computed, as sacrebleu writes it.

  Raises:
    UserError: sacrebleu is not installed.
  """
  found = {}
  for name, metric in _metrics().items():
    metric.corpus_score(['a'], [['a']])  # only then there is a signature
    found[name] = str(metric.get_signature())
  return found


def _of(
  translations: Sequence[str], references: Sequence[str], suffix: str
) -> dict[str, float]:
  return {
    f'{name}{suffix}': metric.corpus_score(translations, [references]).score
    for name, metric in _metrics().items()
  }


def _metrics() -> dict[str, Any]:
  try:
    from sacrebleu import metrics
  except ImportError as e:
    expected = "an install with it: pip install 'softmoe[text]'"
    raise UserError('package sacrebleu', 'none', expected) from e
  found = metrics.BLEU(), metrics.CHRF(word_order=2)
  return dict(zip(NAMES, found, strict=True))
