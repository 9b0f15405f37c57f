"""What an evaluation finds beside accuracy: where images go, and how near the prompts' keys are to what asks for them.

Shapes: K classes, M prompts in the pool, D width, B batch, R test sets.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prompt import l2_normalise
from utils import sum_over_processes


@dataclass(frozen=True)
class Found:
    """The sums over all processes. Arrays are on the CPU; what was not asked for is absent or None."""

    confusion: dict[str, np.ndarray] = field(default_factory=dict)
    """`counts`, and `counts_per_image` where the choice per image was evaluated too: how many test images of each true
    class (rows) were given each class (columns), int64 [K, K]."""
    keys_MM: np.ndarray | None = None
    """Cosine similarity of each prompt's key with each other's."""
    keys_to_queries_RM: np.ndarray | None = None
    """Mean cosine similarity of each key with the queries of a test set."""


class Diagnosis:
    """Gathers it during one evaluation. Adding waits for nothing; `over_processes` does.

    Args:
        num_classes: K, to count where images go; 0 leaves that out.
        keys_MD: the keys that queries are compared with, or None.
    """

    def __init__(self, num_classes: int, keys_MD: Tensor | None, device: torch.device):
        self.num_classes, self.device = num_classes, device
        self.keys_MD = None if keys_MD is None else l2_normalise(keys_MD.detach().float())
        self._counts: dict[str, Tensor] = {}
        self._name = "counts"
        self._queries: list[Tensor] = []
        self._images: list[Tensor] = []

    def begin_test_set(self, per_image: bool) -> bool:
        """Make room for a test set, in every process: one may get none of its images.

        Args:
            per_image: prompts are chosen for each image alone, beside a batch vote.

        Returns:
            Whether to add queries, which are the same in both ways to choose.
        """
        self._name = "counts_per_image" if per_image else "counts"
        if self.num_classes and self._name not in self._counts:
            self._counts[self._name] = torch.zeros(self.num_classes**2, dtype=torch.long, device=self.device)
        if self.keys_MD is None or per_image:
            return False
        self._queries.append(torch.zeros(self.keys_MD.shape[1], device=self.device))
        self._images.append(torch.zeros((), device=self.device))
        return True

    def add_queries(self, query_BD: Tensor) -> None:
        """The queries of some images of the test set that began last. Their mean direction is all that is needed."""
        self._queries[-1] += l2_normalise(query_BD.float()).sum(0)
        self._images[-1] += len(query_BD)

    def add_predictions(self, labels_B: Tensor, predicted_B: Tensor) -> None:
        """Count images of the test set that began last by true and predicted class."""
        if self.num_classes:
            cells_B = labels_B * self.num_classes + predicted_B
            self._counts[self._name].scatter_add_(0, cells_B, torch.ones_like(cells_B))

    def over_processes(self) -> Found:
        """Call it once, in every process."""
        shape = self.num_classes, self.num_classes
        confusion = {name: sum_over_processes(self._counts[name]).cpu().numpy().reshape(shape)
                     for name in sorted(self._counts)}
        if self.keys_MD is None:
            return Found(confusion)
        queries_RD = sum_over_processes(torch.stack(self._queries))
        images_R = sum_over_processes(torch.stack(self._images))
        nearness_RM = queries_RD @ self.keys_MD.T / images_R[:, None]
        return Found(confusion, (self.keys_MD @ self.keys_MD.T).cpu().numpy(), nearness_RM.cpu().numpy())
