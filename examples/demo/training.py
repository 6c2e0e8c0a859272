"""A small network, and one step of training it."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Int64Array: TypeAlias = npt.NDArray[np.int64]


class Model:
    """Three convolutions and a linear layer, with the optimiser that trains them."""

    def __init__(self, class_count: int) -> None:
        torch.manual_seed(0)
        self._network = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, class_count),
        )
        self._optimiser = torch.optim.Adam(self._network.parameters(), lr=3e-3)
        self._recent: deque[tuple[int, int]] = deque(maxlen=8)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Train on one batch; returns the loss and the accuracy on it before."""
        scores = self._network(images)
        loss = nn.functional.cross_entropy(scores, labels)
        right = int((scores.argmax(1) == labels).sum())
        self._recent.append((right, len(labels)))
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.item(), right / len(labels)

    @property
    def recent(self) -> int:
        """Images that ``recent_accuracy`` is about."""
        return sum(count for _, count in self._recent)

    def recent_accuracy(self) -> float:
        """Share of the last few batches that was classified right, before training on them."""
        return sum(right for right, _ in self._recent) / max(self.recent, 1)


def warm_model(class_count: int, batch_size: int, side: int) -> Model:
    """A fresh model, after another one has made torch allocate what it allocates once.

    Otherwise torch's own growth in the first steps would look like the loader's.
    """
    # For a network this small, threads that wait for each other cost more than they bring, the more so on a
    # machine that has other things to do; and the loader's decoding wants a core as well.
    torch.set_num_threads(1)
    another = Model(class_count)
    for _ in range(3):
        another.step(torch.zeros(batch_size, 3, side, side), torch.zeros(batch_size, dtype=torch.int64))
    return Model(class_count)
