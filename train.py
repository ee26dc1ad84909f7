"""Trains the experiment of a config file.

python train.py --config=configs/quickstart.py:soft --workdir=runs/soft
"""

from softmoe.commands import train

if __name__ == '__main__':
  train.run()
