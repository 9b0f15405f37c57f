"""Prompt modules: a query goes in, `Prompts` come out. The ViT does not know which method it serves.

Shapes: B batch, D width, M pool size, N = top_k, L prompt length, P = N·L inserted vectors.
Source: Wang et al., Learning to Prompt for Continual Learning, CVPR 2022, section 4 (eq. 1 to 5).
A new method is one class here with the interface of `PromptPool`, and one row in the test tables.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Prompts:
    """What a prompt module asks the ViT to do for one batch, and what it adds to the loss."""

    tokens_BPD: Tensor
    """Vectors to put among the embedded tokens, before the first block."""
    aux_loss: Tensor
    """Scalar to add to the classification loss; 0 where the method has none."""
    selected_BN: Tensor | None = None
    """Index in the pool of each chosen prompt, per image; None where nothing is chosen."""


def l2_normalise(x: Tensor, eps: float = 1e-12) -> Tensor:
    """x / |x| over the last dimension; `eps` bounds the *squared* norm from below, as in both reference codes."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp_min(eps))


def initialise_(tensor: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Fill in place: `uniform` U(-1, 1), `flax_uniform` U(0, 0.01) (flax's default scale), `zero`, `normal` N(0, 1)."""
    if how == "uniform":
        return nn.init.uniform_(tensor, -1.0, 1.0, generator=generator)
    if how == "flax_uniform":
        return nn.init.uniform_(tensor, 0.0, 0.01, generator=generator)
    if how == "normal":
        return nn.init.normal_(tensor, generator=generator)
    if how == "zero":
        return nn.init.zeros_(tensor)
    raise ValueError(f"unknown initialiser {how!r}")


class FixedPrompt(nn.Module):
    """One prompt of L vectors for every image (`prompt_pool=False`): prompt tuning without a query."""

    needs_query = False
    pool_size = 0

    def __init__(self, dim: int, length: int, *, initializer: str, generator: torch.Generator):
        super().__init__()
        self.num_tokens = length
        self.prompt_LD = nn.Parameter(initialise_(torch.empty(length, dim), initializer, generator))

    def forward(self, query_BD: Tensor | None, batch_size: int, task: int | None = None,
                per_image: bool = False) -> Prompts:
        return Prompts(self.prompt_LD.expand(batch_size, -1, -1), self.prompt_LD.new_zeros(()))

    def begin_task(self, task: int) -> None:
        """Nothing moves between tasks."""


class PromptPool(nn.Module):
    """L2P's pool: M prompts of L vectors, each with a key; an image uses the N prompts whose keys are nearest.

    Args:
        dim: width D of the ViT.
        size, length, top_k: M, L and N of the paper; top_k <= size.
        initializer, key_initializer: see `initialise_`.
        trained_key: keys are parameters; otherwise a prompt's key is the mean of its vectors (differentiable).
        batchwise: in one batch all images use the N prompts that most of them picked (`batchwise_prompt`).
        task_mask: in training, task t uses prompts tN … (t+1)N-1 (`use_prompt_mask`).
        share_prompts, share_keys: at the start of task t, copy slots (t-1)N … tN-1 into the next N
            (`shared_prompt_pool`, `shared_prompt_key`); skipped past the end of the pool.
        pull_coefficient: λ of eq. 5; 0 leaves the keys without a gradient.
    """

    needs_query = True

    def __init__(self, dim: int, size: int, length: int, top_k: int, *, initializer: str, key_initializer: str,
                 trained_key: bool, batchwise: bool, task_mask: bool, share_prompts: bool, share_keys: bool,
                 pull_coefficient: float, generator: torch.Generator):
        super().__init__()
        self.pool_size, self.length, self.top_k, self.num_tokens = size, length, top_k, top_k * length
        self.batchwise, self.task_mask = batchwise, task_mask
        self.share_prompts, self.share_keys = share_prompts, share_keys
        self.pull_coefficient = pull_coefficient
        self.prompts_MLD = nn.Parameter(initialise_(torch.empty(size, length, dim), initializer, generator))
        self.keys_MD = nn.Parameter(initialise_(torch.empty(size, dim), key_initializer, generator)) \
            if trained_key else None

    def forward(self, query_BD: Tensor, batch_size: int, task: int | None = None, per_image: bool = False) -> Prompts:
        """Choose prompts for a batch.

        Args:
            query_BD: the query of each image; carries no gradient.
            batch_size: B.
            task: the task in training; None in evaluation, where task identity is unknown.
            per_image: choose for each image alone even when the pool votes by batch.
        """
        keys_MD = self.prompts_MLD.mean(1) if self.keys_MD is None else self.keys_MD
        similarity_BM = l2_normalise(query_BD) @ l2_normalise(keys_MD).T
        if self._masked(task):
            first = task * self.top_k
            selected_BN = torch.arange(first, first + self.top_k, device=query_BD.device).expand(batch_size, -1)
        else:
            # A stable sort, not topk: equal keys (all of them, when they start at zero) go by the lower index.
            ranking_BM = similarity_BM.detach().sort(dim=1, descending=True, stable=True).indices
            selected_BN = ranking_BM[:, :self.top_k]
            if self.batchwise and not per_image:
                selected_BN = self._vote(selected_BN).expand(batch_size, -1)
        pull = similarity_BM.gather(1, selected_BN).sum() / batch_size
        tokens_BPD = self.prompts_MLD[selected_BN].flatten(1, 2)
        return Prompts(tokens_BPD, -self.pull_coefficient * pull, selected_BN)

    def _vote(self, picks_BN: Tensor) -> Tensor:
        """The N most picked prompts of the batch, ties to the lower index; every shape is known beforehand."""
        size = self.pool_size
        counts_M = torch.zeros(size, dtype=torch.long, device=picks_BN.device)
        counts_M = counts_M.scatter_add(0, picks_BN.flatten(), torch.ones_like(picks_BN.flatten()))
        # Distinct ranks, so that the result does not hang on how topk orders equal values.
        rank_M = counts_M * size + torch.arange(size - 1, -1, -1, device=picks_BN.device)
        return rank_M.topk(self.top_k).indices

    def _masked(self, task: int | None) -> bool:
        if not self.task_mask or task is None:
            return False
        if (task + 1) * self.top_k > self.pool_size:
            # Python's filter shows this warning once.
            warnings.warn(f"use_prompt_mask: task {task + 1} has no prompts of its own in a pool of {self.pool_size}; "
                          "from here on the nearest keys are used.", stacklevel=2)
            return False
        return True

    @torch.no_grad()
    def begin_task(self, task: int) -> None:
        """Let task `task` (0-based) start from what the one before it learned, where so configured."""
        first, n = task * self.top_k, self.top_k
        if task == 0 or first + n > self.pool_size:
            return
        if self.share_prompts:
            self.prompts_MLD[first:first + n] = self.prompts_MLD[first - n:first].clone()
        if self.share_keys and self.keys_MD is not None:
            self.keys_MD[first:first + n] = self.keys_MD[first - n:first].clone()
