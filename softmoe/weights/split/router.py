"""A threshold router fitted to what each expert contributes.

Axes: `n` tokens, `d` width, `e` experts.
"""

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

_L2 = 1e-4  # so that the solution is one, and finite
_LIMITS = {'maxiter': 200, 'ftol': 1e-7}  # what is left is no better router


def fit(
  x: Float[np.ndarray, 'n d'], share: Float[np.ndarray, 'n e']
) -> Float[np.ndarray, 'd e']:
  """Returns the router's kernel: softmax(x kernel) is close to `share`.

  The cross-entropy is convex; L-BFGS goes down to its minimum, or nearly.

  Args:
    x: tokens as the router sees them.
    share: of each expert, adding up to 1 for a token.
  """
  x, share = x.astype(np.float64), share.astype(np.float64)
  shape = x.shape[1], share.shape[1]

  def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
    kernel = flat.reshape(shape)
    logs = special.log_softmax(x @ kernel, axis=1)
    loss = -np.sum(share * logs) / len(x) + _L2 / 2 * np.sum(flat**2)
    gradient = x.T @ (np.exp(logs) - share) / len(x) + _L2 * kernel
    return loss, gradient.ravel()

  start = np.zeros(shape).ravel()
  found = optimize.minimize(
    objective, start, jac=True, method='L-BFGS-B', options=_LIMITS
  )
  return found.x.reshape(shape)
