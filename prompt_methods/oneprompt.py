"""OnePrompt (Huang et al., OVOR, ICLR 2024): DualPrompt's shape with one prompt in the place of a pool.

No query, no choice, no pull: the ViT runs once, so that a step costs two thirds of L2P's. What it reaches is what any
claim about a pool has to be held against.
"""

from torch import Tensor

from prompt import Host, NothingChosen, Prompts
from prompt_methods.prefixes import SharedPrefixes, layers_apart


class OnePrompt(NothingChosen):
    """Keys and values for every image: some layers have `general`'s, others `special`'s, which are more."""

    uses_prefixes = True

    def __init__(self, general: SharedPrefixes, special: SharedPrefixes):
        super().__init__()
        self.general, self.special = general, special
        self.layers = frozenset(general.layers + special.layers)

    def forward(self, query_BD: Tensor | None, batch_size: int, task: int | None = None,
                per_image: bool = False) -> Prompts:
        return Prompts(prefixes=self.general(batch_size) | self.special(batch_size))


def build(host: Host, *, g_prompt_layers: list[int], g_prompt_length: int, prompt_layers: list[int], length: int,
          initializer: str) -> OnePrompt:
    """`g_prompt_length` keys and values in the layers `g_prompt_layers`, `length` of them in `prompt_layers`."""
    shape, generator = host.head_shape("oneprompt"), host.generator()
    general, special = layers_apart(host, g_prompt_layers, prompt_layers)
    return OnePrompt(SharedPrefixes(general, g_prompt_length, shape, initializer=initializer, generator=generator),
                     SharedPrefixes(special, length, shape, initializer=initializer, generator=generator))
