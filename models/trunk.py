"""The transformer blocks of a timm ViT, which compute in the last block only what somebody reads.

Shapes: B batch, T tokens, R tokens that are read, D width, H heads, E = D/H.
"""

import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


def run_trunk(vit: VisionTransformer, tokens_BTD: Tensor, start: int, stop: int) -> Tensor:
    """Embedded tokens [B, T, D] to the outputs of tokens `start` … `stop - 1` after the final norm [B, R, D].

    Computes timm's `forward_features` from behind the position embedding on, cut to those tokens. The outputs of the
    other tokens would be thrown away (the head reads prompts, the query the cls token), so a standard last block
    spends keys and values on them and nothing else; a block of another kind runs whole.
    """
    tokens_BTD = vit.norm_pre(vit.patch_drop(tokens_BTD))
    *blocks, last = vit.blocks
    for block in blocks:
        tokens_BTD = block(tokens_BTD)
    if stop - start < tokens_BTD.shape[1] and is_standard(last):
        return vit.norm(run_block_for(last, tokens_BTD, start, stop))
    return vit.norm(last(tokens_BTD)[:, start:stop])


def is_standard(block: nn.Module) -> bool:
    """Whether `run_block_for` computes what `block` does: timm's pre-norm `Block` and `Attention`, nothing dropped.

    Dropout is left to timm: cut to fewer tokens it would draw other numbers.
    """
    if type(block) is not Block or type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        return False
    dropped = [module.p if isinstance(module, nn.Dropout) else getattr(module, "drop_prob", 0.0)
               for module in block.modules()]
    return not (block.training and any(dropped))


def run_block_for(block: Block, tokens_BTD: Tensor, start: int, stop: int) -> Tensor:
    """`block(tokens_BTD)[:, start:stop]`: keys and values of all tokens; queries, projection and MLP of those read."""
    read_BRD = tokens_BTD[:, start:stop]
    read_BRD = read_BRD + block.drop_path1(block.ls1(attend(block.attn, block.norm1(tokens_BTD), start, stop)))
    return read_BRD + block.drop_path2(block.ls2(block.mlp(block.norm2(read_BRD))))


def attend(attention: Attention, tokens_BTD: Tensor, start: int, stop: int) -> Tensor:
    """What tokens `start` … `stop - 1` gather from all tokens [B, R, D]."""
    batch, width = len(tokens_BTD), attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias  # rows: queries, then keys and values

    def project(tokens: Tensor, rows: slice, parts: int) -> list[Tensor]:
        out = F.linear(tokens, weight[rows], None if bias is None else bias[rows])
        out = out.view(batch, tokens.shape[1], parts, attention.num_heads, attention.head_dim)
        return list(out.permute(2, 0, 3, 1, 4).unbind(0))

    [q_BHRE] = project(tokens_BTD[:, start:stop], slice(None, width), 1)
    k_BHTE, v_BHTE = project(tokens_BTD, slice(width, None), 2)
    read_BHRE = F.scaled_dot_product_attention(attention.q_norm(q_BHRE), attention.k_norm(k_BHTE), v_BHTE)
    return attention.proj(attention.norm(read_BHRE.transpose(1, 2).reshape(batch, stop - start, width)))
