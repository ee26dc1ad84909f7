"""What pieces of an example do for each other, as loops, gradients included."""

import numpy as np

from softmoe.moe import routing


def pieces_of(n, size):
  return [range(i, min(i + size, n)) for i in range(0, n, size)]


def last_document(piece, mask, segments):
  """Returns the document of the last token that is not padding, or None."""
  real = [segments[t] for t in piece if mask[t]]
  return real[-1] if real else None


def run_example(route, x, mask, segments, dy, size, expert):
  """Returns y, dx and losses of one example.

  Args:
    route: from tokens, their mask, and the gradients of their weights or (), to
      (dparams, dx), (Slots, aux); parameters' gradients are its own affair.
    x: tokens.
    mask: False where a token is padding.
    segments: their documents.
    dy: gradient of the outputs.
    size: of a piece.
    expert: from an index and a slot to an output and its pull-back.
  """
  pieces = pieces_of(len(x), size)
  y, dx = np.zeros_like(dy), np.zeros_like(x)
  owners = [last_document(piece, mask, segments) for piece in pieces]
  routes, outputs = [], []
  for piece, owner in zip(pieces, owners, strict=True):
    at = list(piece)
    writes = np.array([mask[t] and segments[t] == owner for t in at])
    (_, _), (routed, _) = route(x[at], writes, ())
    assert isinstance(routed, routing.Slots)
    dispatch, combine = map(np.asarray, routed)
    slot = lambda e, s, d=dispatch, at=at: sum(
      d[j, e, s] * x[t] for j, t in enumerate(at)
    )
    routes.append((at, writes, dispatch, combine))
    outputs.append(
      {i: expert(i[0], slot(*i)) for i in np.ndindex(dispatch.shape[1:])}
    )
  ddispatch = [np.zeros_like(r[2]) for r in routes]
  dcombine = [np.zeros_like(r[3]) for r in routes]
  for k in range(len(pieces) - 1):
    own, _, dispatch, _ = routes[k]
    after, _, _, combine = routes[k + 1]
    readers = [j for j, t in enumerate(after) if segments[t] == owners[k]]
    for (e, s), (output, pull) in outputs[k].items():
      doutput = np.zeros_like(output)
      for j in readers:
        y[after[j]] += combine[j, e, s] * output
        doutput += combine[j, e, s] * dy[after[j]]
        dcombine[k + 1][j, e, s] = dy[after[j]] @ output
      dslot = pull(doutput)
      for j, t in enumerate(own):
        dx[t] += dispatch[j, e, s] * dslot
        ddispatch[k][j, e, s] = x[t] @ dslot
  gradients = []
  for (at, writes, _, _), *weights in zip(
    routes, ddispatch, dcombine, strict=True
  ):
    (drouter, dpiece), _ = route(x[at], writes, tuple(weights))
    dx[at] += dpiece
    gradients.append(drouter)
  return y, dx, gradients
