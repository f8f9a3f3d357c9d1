"""The scripts that made the shipped weights; each can be run again, stopped, and continued to the same result.

    python -m stylemoments.train.autoencoder --out runs/autoencoder
    accelerate launch --cpu --num_processes 2 -m stylemoments.train.autoencoder --out runs/autoencoder

``--smoke`` makes any of them finish within a minute, to see that it works.
"""

from .. import _torchvision  # noqa: F401
