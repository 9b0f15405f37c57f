"""DualPrompt (Wang et al., ECCV 2022): a G-prompt for everybody, and an E-prompt of each task, as keys and values.

Shapes: B batch, D width, M = number of tasks, Y layers of the E-prompt, P keys and as many values in each, H heads,
E = D/H.
"""

import torch
from torch import Tensor, nn

from prompt import Host, Prompts, describe_vote, initialise_, l2_normalise, nearest, vote
from prompt_methods.prefixes import SharedPrefixes, layers_apart


class DualPrompt(nn.Module):
    """Training uses the E-prompt of its task and pulls its key to the queries; a test takes the E-prompt of the nearest
    key (section 4.1 of the paper).

    Args:
        general: the G-prompt.
        dim: width D of the query.
        num_tasks: M; there is one E-prompt for each.
        layers, length, shape: Y blocks of the ViT, P, (H, E) of the E-prompts.
        initializer, key_initializer: see `prompt.initialise_`.
        batchwise: in a test, all images of a batch use the E-prompt that most of them picked.
        share_prompts, share_keys: at the start of task t, E-prompt or key begin as those of t-1.
        pull_coefficient: λ, the weight of the cosine between query and key in the loss.
    """

    needs_query, uses_prefixes, draws = True, True, False
    top_k, num_tokens = 1, 0

    def __init__(self, general: SharedPrefixes, dim: int, num_tasks: int, layers: tuple[int, ...], length: int,
                 shape: tuple[int, int], *, initializer: str, key_initializer: str, batchwise: bool,
                 share_prompts: bool, share_keys: bool, pull_coefficient: float, generator: torch.Generator):
        super().__init__()
        self.general, self.layers_in_order = general, layers
        self.layers = frozenset(general.layers + layers)
        self.pool_size, self.votes = num_tasks, batchwise
        self.share_prompts, self.share_keys, self.pull_coefficient = share_prompts, share_keys, pull_coefficient
        self.prompt_keys_MYPHE, self.prompt_values_MYPHE = (
            nn.Parameter(initialise_(torch.empty(num_tasks, len(layers), length, *shape), initializer, generator))
            for _ in range(2))
        self.keys_MD = nn.Parameter(initialise_(torch.empty(num_tasks, dim), key_initializer, generator))

    def forward(self, query_BD: Tensor, batch_size: int, task: int | None = None, per_image: bool = False) -> Prompts:
        similarity_BM = l2_normalise(query_BD) @ l2_normalise(self.keys_MD).T
        if task is not None:
            selected_BN = torch.full((batch_size, 1), task, device=query_BD.device)
        else:
            selected_BN = nearest(similarity_BM, 1)
            if self.votes and not per_image:
                selected_BN = vote(selected_BN, self.pool_size).expand(batch_size, -1)
        pull = similarity_BM.gather(1, selected_BN).sum() / batch_size
        selected_B = selected_BN[:, 0]
        # Each image indexes its own keys and values. (A reshape that mixes layers, keys and images, as in code that
        # has been copied much, would let them leak between the images of a batch.)
        keys_BYPHE, values_BYPHE = self.prompt_keys_MYPHE[selected_B], self.prompt_values_MYPHE[selected_B]
        prefixes = self.general(batch_size)
        for place, layer in enumerate(self.layers_in_order):
            prefixes[layer] = keys_BYPHE[:, place], values_BYPHE[:, place]
        return Prompts(prefixes=prefixes, aux_loss=-self.pull_coefficient * pull, selected_BN=selected_BN)

    @torch.no_grad()
    def begin_task(self, task: int) -> None:
        if task == 0:
            return
        if self.share_prompts:
            for prompts in (self.prompt_keys_MYPHE, self.prompt_values_MYPHE):
                prompts[task] = prompts[task - 1].clone()
        if self.share_keys:
            self.keys_MD[task] = self.keys_MD[task - 1].clone()

    def keys(self) -> Tensor:
        return self.keys_MD

    def describe_choice(self, batch_size: int) -> str:
        return describe_vote(self.votes, batch_size)


def build(host: Host, *, g_prompt_layers: list[int], g_prompt_length: int, prompt_layers: list[int], length: int,
          initializer: str, prompt_key_init: str, batchwise_prompt: bool, shared_prompt_pool: bool,
          shared_prompt_key: bool, pull_constraint: bool, pull_constraint_coeff: float) -> DualPrompt:
    """DualPrompt as the options of these names describe it; `length` is that of an E-prompt."""
    shape, generator = host.head_shape("dualprompt"), host.generator()
    general, special = layers_apart(host, g_prompt_layers, prompt_layers)
    return DualPrompt(
        SharedPrefixes(general, g_prompt_length, shape, initializer=initializer, generator=generator),
        host.dim, host.known_tasks("dualprompt"), special, length, shape, initializer=initializer,
        key_initializer=prompt_key_init, batchwise=batchwise_prompt, share_prompts=shared_prompt_pool,
        share_keys=shared_prompt_key, pull_coefficient=pull_constraint_coeff if pull_constraint else 0.0,
        generator=generator)
