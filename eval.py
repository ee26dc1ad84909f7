"""Evaluates a run, and prints one JSON object as its last line.

python eval.py --workdir=runs/soft --step=best --split='test[:50%]'
"""

from softmoe.commands import evaluate

if __name__ == '__main__':
  evaluate.run()
