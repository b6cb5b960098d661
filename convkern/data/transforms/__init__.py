"""Transforms of whole batches of images: what to do to them at random while training, and how to standardise them.

Names and meanings are those of ``torchvision.transforms.v2``, but a transform takes a batch (B, C, H, W) and treats every
image by numbers of its own, drawn from seed, epoch and the image's position in the dataset: what happens to an image
depends neither on the batch that it is in nor on the thread that loads it.

>>> import numpy as np
>>> from convkern.data import transforms
>>> augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
>>> augment(np.zeros((8, 3, 32, 32), np.uint8), seed=0, epoch=3).shape
(8, 3, 32, 32)
"""

from .base import Compose, Transform
from .color import ColorJitter, Normalize
from .spatial import Cutout, RandomCrop, RandomErasing, RandomHorizontalFlip
from .vocabulary import augmentation, parse

__all__ = [
    "ColorJitter", "Compose", "Cutout", "Normalize", "RandomCrop", "RandomErasing", "RandomHorizontalFlip", "Transform",
    "augmentation", "parse",
]  # fmt: skip
