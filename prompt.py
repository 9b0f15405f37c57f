"""Prompt methods: what goes in is a query, what comes out are `Prompts`. The ViT does not know which method it serves.

This file holds the interface and L2P's own pool; other methods lie in `prompt_methods/`, a file each. A new method is a
class with the interface `PromptMethod`, and a function `build` whose arguments are named as the options that it takes.

Shapes: B batch, D width, M pool size, N = top_k, L prompt length, P inserted vectors of a layer, H heads, E = D/H.
Source: Wang et al., Learning to Prompt for Continual Learning, CVPR 2022, section 4 (eq. 1 to 5).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from errors import InputError


@dataclass
class Prompts:
    """What a prompt method asks the ViT to do for one batch, and what it adds to the loss."""

    tokens: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> vectors [B, P, D] that join the tokens before that block, and stay among them; layer 0 is the first."""
    prefixes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Layer -> keys and values [B, P, H, E] that every token attends to in that block, beside those of the tokens."""
    aux_loss: Tensor | None = None
    """Scalar to add to the classification loss; None where the method has none."""
    selected_BN: Tensor | None = None
    """Index in the pool of each chosen prompt, per image; None where nothing is chosen."""


class PromptMethod(Protocol):
    """What the model and the engine need of a prompt method, which is a torch module besides.

    Its parameters train. Buffers that it registers go into every checkpoint with them.
    """

    needs_query: bool
    """Whether the unprompted ViT has to read each image first."""
    pool_size: int
    """M, the number of prompts that images choose from; 0 where nothing is chosen."""
    top_k: int
    """N, how many of them an image uses."""
    votes: bool
    """Whether, in a test, the other images of a batch have a say in what an image gets."""
    draws: bool
    """Whether it draws from torch's global generator; the engine then ties that to the place in the run."""
    num_tokens: int
    """How many vectors join the tokens, over all layers: what `--head_type prompt` reads."""
    layers: frozenset[int]
    """The layers that get vectors or prefixes."""
    uses_prefixes: bool

    def __call__(self, query_BD: Tensor | None, batch_size: int, task: int | None = None,
                 per_image: bool = False) -> Prompts:
        """Prompts for a batch.

        Args:
            query_BD: the query of each image, without gradient; None where `needs_query` is false.
            batch_size: B.
            task: the task in training; None in a test, where task identity is unknown, and in a stream without tasks.
            per_image: choose for each image alone even when the method votes by batch.
        """
        ...

    def begin_task(self, task: int) -> None:
        """Make ready for task `task` (0-based). Not called in a stream, where training knows of no tasks."""
        ...

    def keys(self) -> Tensor | None:
        """What queries are compared with by cosine to choose prompts [M, D]; None where that is not how they are
        chosen."""
        ...

    def describe_choice(self, batch_size: int) -> str:
        """How prompts are chosen in a test: numbers with different answers do not compare."""
        ...


@dataclass(frozen=True)
class Host:
    """What a prompt method is told of the ViT that it will serve, and of the run."""

    dim: int
    depth: int
    num_heads: int | None
    """None where the blocks are of a kind that takes no prefixes."""
    head_dim: int | None
    num_tasks: int | None
    """None where training is not told of tasks."""
    generator: Callable[..., torch.Generator]
    """Draws the values that training starts from: `generator()`, or `generator("task", 3)` when a task begins."""
    model_name: str = "this model"

    def check_layers(self, option: str, layers: list[int], others: dict[str, tuple[int, ...]] | None = None
                     ) -> tuple[int, ...]:
        """The layers in order. Raises InputError for one that the ViT has not, or that is named twice.

        Args:
            others: option -> layers that are its own.
        """
        taken = [layer for own in (others or {}).values() for layer in own]
        if not layers or len({*layers, *taken}) < len(layers) + len(taken) or max(layers) >= self.depth:
            but = "".join(f" and none of --{name} {' '.join(map(str, own))}" for name, own in (others or {}).items())
            raise InputError(f"--{option} {' '.join(map(str, layers))}: name layers of {self.model_name} from 0 to "
                             f"{self.depth - 1}, each once{but}.")
        return tuple(sorted(layers))

    def head_shape(self, method: str) -> tuple[int, int]:
        """(H, E), which prefixes need. Raises InputError where the blocks take none."""
        if self.num_heads is None or self.head_dim is None:
            raise InputError(f"--prompt_method {method} adds keys and values to timm's plain attention, and the blocks "
                             f"of {self.model_name} are of another kind: use --prompt_method l2p, or another --model.")
        return self.num_heads, self.head_dim

    def known_tasks(self, method: str) -> int:
        """The number of tasks. Raises InputError where training is not told of tasks."""
        if self.num_tasks is None:
            raise InputError(f"--prompt_method {method} trains prompts of a task, of which --schedule gaussian and "
                             "--joint do not know: use --prompt_method l2p.")
        return self.num_tasks


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


def nearest(scores_BM: Tensor, top_k: int) -> Tensor:
    """The `top_k` highest scores of each image [B, N], best first, ties to the lower index."""
    # A stable sort, not topk: equal keys (all of them, when they start at zero) go by the lower index.
    return scores_BM.detach().sort(dim=1, descending=True, stable=True).indices[:, :top_k]


def vote(picks_BN: Tensor, pool_size: int) -> Tensor:
    """The N most picked prompts of the batch [N], ties to the lower index; every shape is known beforehand."""
    counts_M = torch.zeros(pool_size, dtype=torch.long, device=picks_BN.device)
    counts_M = counts_M.scatter_add(0, picks_BN.flatten(), torch.ones_like(picks_BN.flatten()))
    # Distinct ranks, so that the result does not hang on how topk orders equal values.
    rank_M = counts_M * pool_size + torch.arange(pool_size - 1, -1, -1, device=picks_BN.device)
    return rank_M.topk(picks_BN.shape[1]).indices


def describe_vote(votes: bool, batch_size: int) -> str:
    return f"batch vote over {batch_size}" if votes else "prompts chosen per image"


class NothingChosen(nn.Module):
    """What holds for every method that has no pool to choose from."""

    needs_query = False
    pool_size = top_k = num_tokens = 0
    votes = draws = uses_prefixes = False
    layers: frozenset[int] = frozenset()

    def begin_task(self, task: int) -> None:
        """Nothing moves between tasks."""

    def keys(self) -> Tensor | None:
        return None

    def describe_choice(self, batch_size: int) -> str:
        return "nothing to choose"


class NoPrompts(NothingChosen):
    """`--prompt_method none`: the ViT as it is."""

    def forward(self, query_BD: Tensor | None, batch_size: int, task: int | None = None,
                per_image: bool = False) -> Prompts:
        return Prompts()


class FixedPrompt(NothingChosen):
    """One prompt of L vectors for every image (`--no-prompt_pool`): prompt tuning without a query."""

    def __init__(self, dim: int, length: int, *, layers: tuple[int, ...] = (0,), initializer: str,
                 generator: torch.Generator):
        super().__init__()
        self.layers, self.layers_in_order, self.length = frozenset(layers), layers, length
        self.num_tokens = length * len(layers)
        self.prompt_LD = nn.Parameter(initialise_(torch.empty(self.num_tokens, dim), initializer, generator))

    def forward(self, query_BD: Tensor | None, batch_size: int, task: int | None = None,
                per_image: bool = False) -> Prompts:
        parts = self.prompt_LD.expand(batch_size, -1, -1).split(self.length, dim=1)
        return Prompts(dict(zip(self.layers_in_order, parts, strict=True)))


class PromptPool(nn.Module):
    """L2P's pool: M prompts of L vectors, each with a key; an image uses the N prompts whose keys are nearest.

    Args:
        dim: width D of the ViT.
        size, length, top_k: M, L and N of the paper; top_k <= size.
        layers: where the vectors join the tokens; a prompt has L vectors for each. The paper's L2P has the first only.
        choice: `nearest` key as in the paper; or, to see what the choice is worth, `random` prompts for every image, or
            `fixed`: the first N for all. Those two have no keys, no query and no pull.
        initializer, key_initializer: see `initialise_`.
        trained_key: keys are parameters; otherwise a prompt's key is the mean of its vectors (differentiable).
        batchwise: in one batch all images use the N prompts that most of them picked (`batchwise_prompt`).
        task_mask: in training, task t uses prompts tN … (t+1)N-1 (`use_prompt_mask`).
        share_prompts, share_keys: at the start of task t, copy slots (t-1)N … tN-1 into the next N
            (`shared_prompt_pool`, `shared_prompt_key`); skipped past the end of the pool.
        pull_coefficient: λ of eq. 5; 0 leaves the keys without a gradient.
    """

    uses_prefixes = False

    def __init__(self, dim: int, size: int, length: int, top_k: int, *, initializer: str, key_initializer: str,
                 trained_key: bool, batchwise: bool, task_mask: bool, share_prompts: bool, share_keys: bool,
                 pull_coefficient: float, generator: torch.Generator, layers: tuple[int, ...] = (0,),
                 choice: str = "nearest"):
        super().__init__()
        self.pool_size, self.length, self.top_k = size, length, top_k
        self.layers, self.layers_in_order = frozenset(layers), layers
        self.num_tokens = top_k * length * len(layers)
        self.choice, self.needs_query, self.draws = choice, choice == "nearest", choice == "random"
        self.batchwise, self.task_mask = batchwise, task_mask
        self.votes = batchwise and choice != "fixed"
        self.share_prompts, self.share_keys = share_prompts, share_keys
        self.pull_coefficient = pull_coefficient
        self.prompts_MLD = nn.Parameter(
            initialise_(torch.empty(size, length * len(layers), dim), initializer, generator))
        self.keys_MD = nn.Parameter(initialise_(torch.empty(size, dim), key_initializer, generator)) \
            if trained_key and self.needs_query else None

    def forward(self, query_BD: Tensor | None, batch_size: int, task: int | None = None,
                per_image: bool = False) -> Prompts:
        aux_loss = None
        if self.needs_query:
            similarity_BM = l2_normalise(query_BD) @ l2_normalise(self.keys()).T
            selected_BN = self._select(similarity_BM, task, per_image)
            aux_loss = -self.pull_coefficient * (similarity_BM.gather(1, selected_BN).sum() / batch_size)
        elif self.choice == "random":
            scores_BM = torch.rand(batch_size, self.pool_size, device=self.prompts_MLD.device)
            selected_BN = self._select(scores_BM, task, per_image)
        else:
            selected_BN = torch.arange(self.top_k, device=self.prompts_MLD.device).expand(batch_size, -1)
        vectors_BNLD = self.prompts_MLD[selected_BN]
        parts = vectors_BNLD.split(self.length, dim=2)
        tokens = {layer: part.flatten(1, 2) for layer, part in zip(self.layers_in_order, parts, strict=True)}
        return Prompts(tokens, aux_loss=aux_loss, selected_BN=selected_BN)

    def keys(self) -> Tensor | None:
        if not self.needs_query:
            return None
        return self.prompts_MLD.mean(1) if self.keys_MD is None else self.keys_MD

    def _select(self, scores_BM: Tensor, task: int | None, per_image: bool) -> Tensor:
        batch_size = len(scores_BM)
        if self._masked(task):
            first = task * self.top_k
            return torch.arange(first, first + self.top_k, device=scores_BM.device).expand(batch_size, -1)
        selected_BN = nearest(scores_BM, self.top_k)
        if self.batchwise and not per_image:
            selected_BN = vote(selected_BN, self.pool_size).expand(batch_size, -1)
        return selected_BN

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

    def describe_choice(self, batch_size: int) -> str:
        if self.choice == "fixed":
            return "the same prompts for all"
        how = describe_vote(self.votes, batch_size)
        return f"random prompts, {how}" if self.choice == "random" else how


WITHOUT_POOL = ("prompt_pool", "prompt_layers", "length", "initializer")
"""All that `build` reads where `prompt_pool` is false."""


def build(host: Host, *, prompt_pool: bool, prompt_layers: list[int], prompt_choice: str, size: int, length: int,
          top_k: int, initializer: str, prompt_key: bool, prompt_key_init: str, batchwise_prompt: bool,
          use_prompt_mask: bool, shared_prompt_pool: bool, shared_prompt_key: bool, pull_constraint: bool,
          pull_constraint_coeff: float) -> PromptPool | FixedPrompt:
    """L2P as the options of these names describe it."""
    layers = host.check_layers("prompt_layers", prompt_layers)
    if not prompt_pool:
        return FixedPrompt(host.dim, length, layers=layers, initializer=initializer, generator=host.generator())
    return PromptPool(
        host.dim, size, length, top_k, layers=layers, choice=prompt_choice, initializer=initializer,
        key_initializer=prompt_key_init, trained_key=prompt_key, batchwise=batchwise_prompt,
        task_mask=use_prompt_mask, share_prompts=shared_prompt_pool, share_keys=shared_prompt_key,
        pull_coefficient=pull_constraint_coeff if pull_constraint else 0.0, generator=host.generator())
