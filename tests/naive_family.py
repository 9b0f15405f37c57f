"""Naive DualPrompt, CODA-Prompt, OnePrompt and deep L2P: loops over images, layers, heads and prompts.

Like `naive_l2p.py`, of which it uses the pieces, it shares no code with the program. A method is a function that says
for each image what joins the tokens and what joins the keys and values; `forward` is the same for all.

Shapes: B images, T tokens, D width, M prompts, N of them chosen, L vectors of a prompt, P vectors of a layer, H heads,
E = D / H, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import naive_l2p as naive
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

Prefix = tuple[Tensor, Tensor]
"""Keys and values [P, H, E] of one layer, for one image."""


@dataclass
class ForOneImage:
    """What one image gets."""

    tokens: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> vectors [P, D] that join the tokens before that block."""
    prefixes: dict[int, Prefix] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------- the ViT


def attention(tokens_TD: Tensor, layer: Attention, prefix: Prefix | None) -> Tensor:
    """softmax(q [own keys, k]^T / sqrt E) [own values, v], one head after the other; a prefix has no queries."""
    q_TD, k_TD, v_TD = naive.linear(tokens_TD, layer.qkv).chunk(3, dim=-1)
    width = q_TD.shape[-1] // layer.num_heads
    outputs = []
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        q = naive.layer_norm(q_TD[:, part], layer.q_norm)
        k = naive.layer_norm(k_TD[:, part], layer.k_norm)
        v = v_TD[:, part]
        if prefix is not None:
            own_keys, own_values = prefix
            k = torch.cat([k, own_keys[:, head]])
            v = torch.cat([v, own_values[:, head]])
        weights = torch.exp(naive.log_softmax(q @ k.T / math.sqrt(width)))
        outputs.append(weights @ v)
    return naive.linear(naive.layer_norm(torch.cat(outputs, dim=-1), layer.norm), layer.proj)


def block(tokens_TD: Tensor, layer: Block, prefix: Prefix | None) -> Tensor:
    attended = attention(naive.layer_norm(tokens_TD, layer.norm1), layer.attn, prefix)
    tokens_TD = tokens_TD + naive.layer_scale(attended, layer.ls1)
    return tokens_TD + naive.layer_scale(naive.mlp(naive.layer_norm(tokens_TD, layer.norm2), layer.mlp), layer.ls2)


def encode(vit: VisionTransformer, image_CHW: Tensor, given: ForOneImage, prompt_pos_embed: str) -> tuple[Tensor, int]:
    """All tokens after the final norm, those that joined first; and how many these are.

    A position is added only to vectors that join before the first block.
    """
    patches_TD = naive.embed_patches(vit, image_CHW)
    special = [token[0] for token in (vit.cls_token, vit.reg_token) if token is not None]
    if vit.pos_embed is None:
        tokens_TD = torch.cat([*special, patches_TD])
    elif vit.no_embed_class:
        tokens_TD = torch.cat([*special, patches_TD + vit.pos_embed[0]])
    else:
        tokens_TD = torch.cat([*special, patches_TD]) + vit.pos_embed[0]
    joined = 0
    for number, layer in enumerate(vit.blocks):
        if number in given.tokens:
            vectors_PD = given.tokens[number]
            if number == 0:
                vectors_PD = naive.place_prompts(vit, vectors_PD, prompt_pos_embed)
            tokens_TD = torch.cat([vectors_PD, tokens_TD])
            joined += len(vectors_PD)
        if number == 0:
            tokens_TD = naive.layer_norm(tokens_TD, vit.norm_pre)
        tokens_TD = block(tokens_TD, layer, given.prefixes.get(number))
    return naive.layer_norm(tokens_TD, vit.norm), joined


def forward(vit: VisionTransformer, images_BCHW: Tensor, given: Sequence[ForOneImage], head: nn.Linear, head_type: str,
            prompt_pos_embed: str = "none") -> Tensor:
    """Logits [B, K]."""
    logits = []
    for image_CHW, for_image in zip(images_BCHW, given, strict=True):
        tokens_TD, joined = encode(vit, image_CHW, for_image, prompt_pos_embed)
        logits.append(head.weight @ naive.pool_tokens(vit, tokens_TD, joined, head_type) + head.bias)
    return torch.stack(logits)


# ------------------------------------------------------------------------------------------------------ the methods


def dualprompt(query_BD: Tensor, general: dict[int, Prefix], special: Sequence[dict[int, Prefix]], keys_MD: Tensor,
               task: int | None, batchwise: bool) -> tuple[list[ForOneImage], Tensor]:
    """G-prompt for all, and one E-prompt: in training that of the task, in a test that of the nearest key.

    Returns what each image gets, and the pull: the mean over images of the cosine between query and chosen key.
    """
    if task is None:
        chosen = [pick[0] for pick in naive.choose(query_BD, keys_MD, 1, batchwise)]
    else:
        chosen = [task] * len(query_BD)
    similarity_BM = naive.cosine(query_BD, keys_MD)
    pull = sum(similarity_BM[b, m] for b, m in enumerate(chosen)) / len(chosen)
    given = []
    for m in chosen:
        prefixes = dict(general)
        for layer, prefix in special[m].items():
            assert layer not in prefixes
            prefixes[layer] = prefix
        given.append(ForOneImage(prefixes=prefixes))
    return given, pull


def oneprompt(images: int, general: dict[int, Prefix], special: dict[int, Prefix]) -> list[ForOneImage]:
    return [ForOneImage(prefixes={**general, **special}) for _ in range(images)]


def coda(query_BD: Tensor, components: dict[int, tuple[Tensor, Tensor, Tensor]], first: int, end: int, heads: int
         ) -> tuple[list[ForOneImage], Tensor]:
    """A sum of components m < end in each layer, weighted by cosine(q ⊙ A_m, K_m); those before `first` are frozen.

    Args:
        components: layer -> prompts [M, L, D], keys [M, D], attention vectors [M, D].

    Returns what each image gets, and the sum over layers and over X = P, K, A of mean((X X^T - I)^2).
    """
    given = [ForOneImage() for _ in query_BD]
    penalty = query_BD.new_zeros(())
    for layer, tensors in components.items():
        prompts, keys, attentions = (
            [values[m].detach() if m < first else values[m] for m in range(end)] for values in tensors)
        for query_D, for_image in zip(query_BD, given, strict=True):
            prompt_LD = 0.0
            for prompt, key, attended in zip(prompts, keys, attentions, strict=True):
                weight = (naive.normalise(query_D * attended) * naive.normalise(key)).sum()
                prompt_LD = prompt_LD + weight * prompt
            half = len(prompt_LD) // 2
            own_keys, own_values = (torch.stack([torch.stack(vector.split(len(vector) // heads)) for vector in part])
                                    for part in (prompt_LD[:half], prompt_LD[half:]))
            for_image.prefixes[layer] = own_keys, own_values
        for values in (prompts, keys, attentions):
            total = 0.0
            for i, one in enumerate(values):
                for j, other in enumerate(values):
                    total = total + ((one * other).sum() - (1.0 if i == j else 0.0)) ** 2
            penalty = penalty + total / end**2
    return given, penalty


def deep_l2p(chosen: Sequence[Sequence[int]], prompts: Sequence[dict[int, Tensor]]) -> list[ForOneImage]:
    """L2P with vectors of each prompt for several layers.

    Args:
        chosen: the prompts of each image.
        prompts: for each prompt, layer -> vectors [L, D].
    """
    given = []
    for picks in chosen:
        layers = prompts[picks[0]]
        given.append(ForOneImage({layer: torch.cat([prompts[m][layer] for m in picks]) for layer in layers}))
    return given


def ranked(scores_BM: Tensor, top_k: int) -> list[list[int]]:
    """The prompts of the highest scores of each image, ties to the lower index."""
    return [sorted(range(len(scores)), key=lambda m: (-scores[m], m))[:top_k] for scores in scores_BM.tolist()]


def most_picked(picks: Sequence[Sequence[int]], size: int, top_k: int) -> list[int]:
    counts = [sum(m in pick for pick in picks) for m in range(size)]
    return sorted(range(size), key=lambda m: (-counts[m], m))[:top_k]
