"""Ridge regression onto the classes, on random features or plain ones (RanPAC: McDonnell et al., NeurIPS 2023).

Shapes: B batch, N images of a task, D width, M random features (or D plain ones), K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import ClosedFormHead, LinearHead, in_float64
from utils import random_generator

RIDGES = tuple(10.0**power for power in range(-8, 9))
VALIDATION_SHARE = 5  # one image in so many chooses lambda
LEAST = 1e-12
"""λ is at least this part of the trace of G. float64 keeps G to about 1e-16 of its trace: a smaller λ would leave the
directions that no image has to rounding, and give them large weights made of noise."""
UNSEEN = 100.0  # exp(-100) is nothing beside other classes, and the loss of such a class's image stays a number
CHUNK = 4096  # images whose random features are in memory at once


class RidgeHead(ClosedFormHead):
    """Logits h (G + λI)⁻¹ C with h = ReLU(f W) of the feature f, or h = f.

    W ~ N(0, 1) is drawn once. G = Σ hᵀh and C = Σ hᵀy grow over all tasks, so the order of tasks changes neither as
    long as features stay. λ is chosen anew at every task, from 10⁻⁸ … 10⁸, by the mean squared error on the last fifth
    of its images (which come in shuffled order) of what the others give, and is never below `LEAST` of G's trace.
    Classes not seen yet are `UNSEEN` below the lowest logit of the others.

    Features may move while later tasks train. h is not linear in f, so G and C cannot follow; instead what all features
    have moved by since the first task is taken from each before W.

    G and C are summed and the equations solved in float64, on the CPU where the device has none (`in_float64`).

    Args:
        random_features: M; 0 takes the features as they are.
        seed: draws W.
        classifier: see `ClosedFormHead`.
        follows: whether it will be told that features have moved.
    """

    def __init__(self, dim: int, num_classes: int, random_features: int, *, seed: int,
                 classifier: LinearHead | None = None, follows: bool = False):
        super().__init__(classifier)
        self.num_classes = num_classes
        self.register_buffer("moved_D", torch.zeros(dim) if follows else None)
        width = random_features or dim
        projection_DM = None
        if random_features:
            projection_DM = torch.randn(dim, random_features, generator=random_generator(seed, "random features"))
        self.register_buffer("projection_DM", projection_DM, persistent=False)  # drawn again from the seed
        self.register_buffer("weights_MK", torch.zeros(width, num_classes))
        self.register_buffer("seen_K", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("ridge", torch.zeros(()))
        self.register_buffer("gram_MM", None, persistent=False)  # made when there is something to add
        self.register_buffer("class_sums_MK", None, persistent=False)
        self._observed: list[tuple[Tensor, Tensor]] = []
        self.note = (f"ridge regression on {width:,} {'random ' if random_features else ''}features keeps "
                     f"{8 * width * (width + num_classes) / 1e6:,.0f} MB, and needs about three times as much while it "
                     "solves")

    def expand(self, features_BD: Tensor) -> Tensor:
        """h [B, M]."""
        if self.moved_D is not None:
            features_BD = features_BD - self.moved_D
        return features_BD if self.projection_DM is None else F.relu(features_BD @ self.projection_DM)

    def logits(self, features_BD: Tensor) -> Tensor:
        logits_BK = self.expand(features_BD) @ self.weights_MK
        lowest_B1 = logits_BK.masked_fill(~self.seen_K, float("inf")).amin(1, keepdim=True)
        return torch.where(self.seen_K, logits_BK, lowest_B1 - UNSEEN)

    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        self._observed.append((features_BD, labels_B))

    def move(self, shift_D: Tensor) -> None:
        self.moved_D += shift_D

    @torch.no_grad()
    def settle(self, task: int) -> None:
        features_ND, labels_N = (torch.cat(parts) for parts in zip(*self._observed, strict=True))
        self._observed = []
        one_hot_NK = F.one_hot(labels_N, self.num_classes)
        targets_NK = in_float64(one_hot_NK)
        statistics = self.statistics()
        for start in range(0, len(features_ND), CHUNK):
            hidden_NM = in_float64(self.expand(features_ND[start:start + CHUNK]))
            statistics["gram_MM"].addmm_(hidden_NM.T, hidden_NM)
            statistics["class_sums_MK"].addmm_(hidden_NM.T, targets_NK[start:start + CHUNK])
        best = self._best_ridge(features_ND, targets_NK)
        found_MK, ridge = solve(statistics["gram_MM"], best, statistics["class_sums_MK"])
        self.weights_MK.copy_(found_MK.float())
        self.ridge.fill_(ridge)
        self.seen_K |= one_hot_NK.any(0)

    def statistics(self) -> dict[str, Tensor]:
        if self.gram_MM is None:
            width, zero = len(self.weights_MK), in_float64(torch.zeros_like(self.ridge))
            self.gram_MM = zero.new_zeros(width, width)
            self.class_sums_MK = zero.new_zeros(width, self.num_classes)
        return {"gram_MM": self.gram_MM, "class_sums_MK": self.class_sums_MK}

    def _best_ridge(self, features_ND: Tensor, targets_NK: Tensor) -> float:
        """λ with the least mean squared error on the last fifth of the images, of weights that the others give."""
        fitted = len(features_ND) - len(features_ND) // VALIDATION_SHARE
        if fitted == len(features_ND):  # fewer than five images: nothing to choose by
            return 1.0
        hidden_NM = in_float64(self.expand(features_ND))
        errors = squared_errors(hidden_NM[:fitted], targets_NK[:fitted], hidden_NM[fitted:], targets_NK[fitted:])
        return RIDGES[int(torch.stack(errors).argmin())]


def solve(gram_MM: Tensor, ridge: float, class_sums_MK: Tensor) -> tuple[Tensor, float]:
    """(G + λI)⁻¹ C, and the λ that it took: the one asked for, or the least that float64 can tell from rounding."""
    trace = float(gram_MM.trace())
    ridge = max(ridge, LEAST * trace)
    while True:
        regular_MM = gram_MM.clone()
        regular_MM.diagonal().add_(ridge)
        factor_MM, failed = torch.linalg.cholesky_ex(regular_MM)
        if not failed or not ridge < trace:  # what is no matrix of sums at all has no finite solution either
            return torch.cholesky_solve(class_sums_MK, factor_MM), ridge
        ridge *= 10  # rounding has left G with an eigenvalue that is negative and larger


def squared_errors(hidden_NM: Tensor, targets_NK: Tensor, tested_VM: Tensor, expected_VK: Tensor) -> list[Tensor]:
    """For each of `RIDGES` the mean squared error on V images of the ridge regression on N others.

    One decomposition serves all: of the smaller of HᵀH and HHᵀ, whose regressions are the same.
    """
    small = len(hidden_NM) < hidden_NM.shape[1]
    values, vectors = torch.linalg.eigh(hidden_NM @ hidden_NM.T if small else hidden_NM.T @ hidden_NM)
    values, least = values.clamp_min(0), LEAST * float(values.sum())
    tested = tested_VM @ hidden_NM.T if small else tested_VM
    targets = targets_NK if small else hidden_NM.T @ targets_NK
    left, right = tested @ vectors, vectors.T @ targets
    return [(left @ (right / (values + max(ridge, least))[:, None]) - expected_VK).square().mean() for ridge in RIDGES]
