"""Losses of routers as loops over tokens and experts, from the papers."""


def variation(values):
  """Returns the squared coefficient of variation, 0 where the mean is 0."""
  mean = sum(values) / len(values)
  if not mean:
    return 0.0
  return sum((v - mean) ** 2 for v in values) / len(values) / mean**2


def counted(gates, choices, mask):
  """Returns the number of real tokens, and c_e and m_e of every expert."""
  n, pairs = max(sum(mask), 1), []
  for e in range(gates.shape[1]):
    c = sum(choices[t, e] for t in range(len(gates)) if mask[t])
    m = sum(gates[t, e] for t in range(len(gates)) if mask[t]) / n
    pairs.append((c, m))
  return n, pairs


def switch(gates, choices, mask):
  n, pairs = counted(gates, choices, mask)
  return len(pairs) * sum(c / n * m for c, m in pairs)
