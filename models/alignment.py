"""Alignment: a linear head retrained over all classes on samples of Gaussians (SLCA, Zhang et al., ICCV 2023).

Under a class mask a head learns each task's classes apart and never weighs tasks against each other. After each task
this head keeps mean and covariance of what it reads for every new class, and is then trained alone on samples of the
Gaussians of all classes seen. No image is kept.

Shapes: N images of a task, D width, K classes, S samples.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import LinearHead, in_float64
from utils import random_generator

TEMPERATURE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
BATCH = 256
JITTER = 1e-4  # of the mean variance, added to each: with fewer images than D a covariance is singular


class AlignedHead(LinearHead):
    """A linear head that trains by gradient, and is aligned when a task settles.

    Args:
        samples: drawn of each class and epoch.
        epochs, lr: of the alignment: SGD with momentum 0.9, weight decay 5e-4 and a cosine to 0.
        full: keep whole covariances, D² values for each class; otherwise their diagonals.
        seed: draws the samples.
    """

    observes = True

    def __init__(self, dim: int, num_classes: int, *, samples: int, epochs: int, lr: float, full: bool, seed: int):
        super().__init__(dim, num_classes)
        self.samples, self.epochs, self.lr, self.full, self.seed = samples, epochs, lr, full, seed
        spread = (num_classes, dim, dim) if full else (num_classes, dim)
        self.register_buffer("means_KD", torch.zeros(num_classes, dim), persistent=False)
        self.register_buffer("covariances", torch.zeros(spread), persistent=False)
        self.register_buffer("counts_K", torch.zeros(num_classes), persistent=False)
        self.register_buffer("task_of_K", torch.zeros(num_classes, dtype=torch.long), persistent=False)
        self._observed: list[tuple[Tensor, Tensor]] = []
        size = sum(buffer.nbytes for buffer in self.statistics().values())
        self.note = (f"alignment keeps {'covariances' if full else 'variances'} of {num_classes} classes, "
                     f"{size / num_classes / 1e6:.3g} MB each, {size / 1e6:,.1f} MB in all")

    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        self._observed.append((features_BD, labels_B))

    def settle(self, task: int) -> None:
        features_ND, labels_N = (torch.cat(parts) for parts in zip(*self._observed, strict=True))
        self._observed = []
        with torch.no_grad():
            for label in labels_N.unique().tolist():
                self._remember(features_ND[labels_N == label], label, task)
        with torch.enable_grad():
            self._align(task)

    def move(self, shift_D: Tensor) -> None:
        self.means_KD[self.counts_K > 0] += shift_D

    def statistics(self) -> dict[str, Tensor]:
        return {"means_KD": self.means_KD, "covariances": self.covariances, "counts_K": self.counts_K,
                "task_of_K": self.task_of_K}

    def _remember(self, features_ND: Tensor, label: int, task: int) -> None:
        """Mean and covariance of a class, joined with those of an earlier session that had it."""
        n, before = len(features_ND), float(self.counts_K[label])
        mean_D = features_ND.mean(0)
        centred_ND = features_ND - mean_D
        scatter = centred_ND.T @ centred_ND if self.full else centred_ND.square().sum(0)
        if before:
            shift_D = mean_D - self.means_KD[label]
            between = torch.outer(shift_D, shift_D) if self.full else shift_D.square()
            scatter = scatter + self.covariances[label] * before + between * (n * before / (n + before))
            mean_D = (mean_D * n + self.means_KD[label] * before) / (n + before)
        else:
            self.task_of_K[label] = task
        self.means_KD[label] = mean_D
        self.covariances[label] = scatter / (n + before)
        self.counts_K[label] = n + before

    def _align(self, task: int) -> None:
        """Retrain weights and biases of the classes seen; those of other classes stay."""
        device = self.weight.device
        generator = random_generator(self.seed, "alignment", task)
        seen = torch.nonzero(self.counts_K).flatten()
        factors = self._factors(seen)
        # The features of old classes have moved since; their means are trusted less the older they are.
        means_KD = self.means_KD[seen] * (0.9 + 0.1 * (self.task_of_K[seen] + 1) / (task + 1))[:, None]
        groups = [torch.nonzero(self.task_of_K[seen] == t).flatten() for t in self.task_of_K[seen].unique()]
        weight_KD, bias_K = (values.detach()[seen].clone().requires_grad_() for values in (self.weight, self.bias))
        optimizer = torch.optim.SGD([weight_KD, bias_K], lr=self.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            noise_KSD = torch.randn(len(seen), self.samples, means_KD.shape[1], generator=generator).to(device)
            spread_KSD = noise_KSD @ factors.mT if self.full else noise_KSD * factors[:, None]
            drawn_SD = (means_KD[:, None] + spread_KSD).flatten(0, 1)
            order_S = torch.randperm(len(drawn_SD), generator=generator).to(device)
            for chosen_S in order_S.split(BATCH):
                logits_SK = F.linear(drawn_SD[chosen_S], weight_KD, bias_K)
                loss = F.cross_entropy(normalised(logits_SK, groups) / TEMPERATURE, chosen_S // self.samples)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            self.weight[seen], self.bias[seen] = weight_KD.detach(), bias_K.detach()

    def _factors(self, seen: Tensor) -> Tensor:
        """What standard normal noise is multiplied by: Cholesky factors [K, D, D], or deviations [K, D]."""
        covariances = self.covariances[seen]
        if not self.full:
            return covariances.sqrt()
        return torch.stack([factor(covariance_DD) for covariance_DD in covariances])


def factor(covariance_DD: Tensor) -> Tensor:
    """Its Cholesky factor; in float64, as two images of a class give D variances of which all but one are jitter."""
    regular_DD = in_float64(covariance_DD)
    jitter = JITTER * float(regular_DD.diagonal().mean()) + 1e-12
    regular_DD = regular_DD + jitter * torch.eye(len(regular_DD), dtype=regular_DD.dtype, device=regular_DD.device)
    return torch.linalg.cholesky(regular_DD).to(covariance_DD)


def normalised(logits_SK: Tensor, groups: list[Tensor]) -> Tensor:
    """Logits divided by the mean over tasks of the length of their part: the scale of a sample, not of a task, goes."""
    lengths = [logits_SK[:, group].norm(dim=1, keepdim=True) for group in groups]
    return logits_SK / (torch.cat(lengths, dim=1).mean(1, keepdim=True) + 1e-7)
