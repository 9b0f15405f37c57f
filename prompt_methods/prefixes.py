"""Keys and values of layers that are the same for every image: DualPrompt's G-prompt, all of OnePrompt.

Shapes: Y layers, P keys and as many values in each, H heads, E = D/H, B batch.
"""

import torch
from torch import Tensor, nn

from errors import InputError
from prompt import Host, initialise_


class SharedPrefixes(nn.Module):
    """P keys and P values for each of several layers.

    Args:
        layers: the blocks of the ViT, from 0.
        shape: (H, E).
        initializer: see `prompt.initialise_`.
    """

    def __init__(self, layers: tuple[int, ...], length: int, shape: tuple[int, int], *, initializer: str,
                 generator: torch.Generator):
        super().__init__()
        self.layers = layers
        self.keys_YPHE, self.values_YPHE = (
            nn.Parameter(initialise_(torch.empty(len(layers), length, *shape), initializer, generator))
            for _ in range(2))

    def forward(self, batch_size: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> keys and values [B, P, H, E]."""
        return {layer: (keys_PHE.expand(batch_size, -1, -1, -1), values_PHE.expand(batch_size, -1, -1, -1))
                for layer, keys_PHE, values_PHE in zip(self.layers, self.keys_YPHE, self.values_YPHE, strict=True)}


def layers_apart(host: Host, g_prompt_layers: list[int], prompt_layers: list[int]
                 ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both lists of layers, checked. Raises InputError where one has a layer of the other."""
    general = host.check_layers("g_prompt_layers", g_prompt_layers)
    if len(general) == host.depth:
        raise InputError(f"--g_prompt_layers {' '.join(map(str, general))} leaves no layer for --prompt_layers: give "
                         "fewer.")
    return general, host.check_layers("prompt_layers", prompt_layers, {"g_prompt_layers": general})
