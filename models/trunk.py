"""The transformer blocks of a timm ViT: with prompts between and inside them, and in the last block only what is read.

Shapes: B batch, T tokens, R tokens that the head reads, P prompt vectors of a layer, D width, H heads, E = D/H.
"""

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

Prefix = tuple[Tensor, Tensor]
"""Keys and values [B, P, H, E] of a layer."""


def run_trunk(vit: VisionTransformer, tokens_BTD: Tensor, start: int, stop: int,
              tokens: dict[int, Tensor] | None = None, prefixes: dict[int, Prefix] | None = None) -> Tensor:
    """Embedded tokens [B, T, D] to the outputs of tokens `start` … `stop - 1` after the final norm [B, R, D].

    Computes timm's `forward_features` from behind the position embedding on, cut to those tokens. The outputs of the
    other tokens would be thrown away (the head reads prompts, the query the cls token), so a standard last block
    spends keys and values on them and nothing else; a block of another kind runs whole.

    Args:
        start, stop: positions among all tokens that reach the last block.
        tokens: layer -> vectors [B, P, D] that join the others before that block, behind the cls token and registers.
        prefixes: layer -> keys and values that all tokens attend to in that block; it must be standard (`is_plain`).
    """
    tokens, prefixes = tokens or {}, prefixes or {}
    tokens_BTD = vit.norm_pre(vit.patch_drop(tokens_BTD))
    last = len(vit.blocks) - 1
    for layer, block in enumerate(vit.blocks):
        if layer in tokens:
            tokens_BTD = insert(tokens_BTD, tokens[layer], vit.num_prefix_tokens)
        part = layer == last and stop - start < tokens_BTD.shape[1]
        if part and is_plain(block) and not drops(block):
            return vit.norm(run_block(block, tokens_BTD, start, stop, prefixes.get(layer)))
        if layer in prefixes or (is_plain(block) and takes_matrix_products(tokens_BTD, block.attn.qkv.weight)
                                 and not drops(block)):
            tokens_BTD = run_block(block, tokens_BTD, 0, tokens_BTD.shape[1], prefixes.get(layer))
        else:
            tokens_BTD = block(tokens_BTD)
    return vit.norm(tokens_BTD[:, start:stop])


def insert(tokens_BTD: Tensor, vectors_BPD: Tensor, position: int) -> Tensor:
    """The tokens with vectors put before token `position`; attention does not know of order."""
    vectors_BPD = vectors_BPD.to(tokens_BTD.dtype)
    return torch.cat([tokens_BTD[:, :position], vectors_BPD, tokens_BTD[:, position:]], dim=1)


def is_plain(block: nn.Module) -> bool:
    """Whether `run_block` computes what `block` does: timm's pre-norm `Block` with its `Attention`."""
    return type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None


def drops(block: nn.Module) -> bool:
    """Whether the block drops anything now. Cut to fewer tokens it would draw other numbers."""
    dropped = [module.p if isinstance(module, nn.Dropout) else getattr(module, "drop_prob", 0.0)
               for module in block.modules()]
    return block.training and any(dropped)


def takes_matrix_products(*operands: Tensor) -> bool:
    """Whether attention on these, some of which train, is computed as plain matrix products: in bfloat16 on a CPU,
    where the backward pass of torch's fused attention is slow."""
    if operands[0].device.type != "cpu" or not torch.is_grad_enabled() or not any(x.requires_grad for x in operands):
        return False
    casts = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if casts else operands[0].dtype) == torch.bfloat16


def run_block(block: Block, tokens_BTD: Tensor, start: int, stop: int, prefix: Prefix | None = None) -> Tensor:
    """`block(tokens_BTD)[:, start:stop]`, attending to a prefix besides.

    Keys and values are of all tokens; queries, projection and MLP of those read.
    """
    read_BRD = tokens_BTD[:, start:stop]
    attended_BRD = attend(block.attn, block.norm1(tokens_BTD), start, stop, prefix)
    read_BRD = read_BRD + block.drop_path1(block.ls1(attended_BRD))
    return read_BRD + block.drop_path2(block.ls2(block.mlp(block.norm2(read_BRD))))


def attend(attention: Attention, tokens_BTD: Tensor, start: int, stop: int, prefix: Prefix | None = None) -> Tensor:
    """What tokens `start` … `stop - 1` gather from all tokens, and from the prefix [B, R, D].

    A prefix is joined as it is: behind the projection to keys and values, and behind a norm of the keys.
    """
    batch, width = len(tokens_BTD), attention.num_heads * attention.head_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias  # rows: queries, then keys and values

    def project(tokens: Tensor, rows: slice, parts: int) -> list[Tensor]:
        out = F.linear(tokens, weight[rows], None if bias is None else bias[rows])
        out = out.view(batch, tokens.shape[1], parts, attention.num_heads, attention.head_dim)
        return list(out.permute(2, 0, 3, 1, 4).unbind(0))

    if stop - start == tokens_BTD.shape[1]:
        q_BHRE, k_BHTE, v_BHTE = project(tokens_BTD, slice(None), 3)
    else:
        [q_BHRE] = project(tokens_BTD[:, start:stop], slice(None, width), 1)
        k_BHTE, v_BHTE = project(tokens_BTD, slice(width, None), 2)
    q_BHRE, k_BHTE = attention.q_norm(q_BHRE), attention.k_norm(k_BHTE)
    if prefix is not None:
        k_BHTE, v_BHTE = (torch.cat([own_BPHE.transpose(1, 2).to(all_BHTE.dtype), all_BHTE], dim=2)
                          for own_BPHE, all_BHTE in zip(prefix, (k_BHTE, v_BHTE), strict=True))
    dropped = attention.attn_drop.p if attention.training else 0.0
    if takes_matrix_products(q_BHRE, k_BHTE, v_BHTE) and not dropped:
        weights_BHRT = (q_BHRE * attention.scale @ k_BHTE.mT).softmax(-1)
        read_BHRE = weights_BHRT @ v_BHTE
    else:
        read_BHRE = F.scaled_dot_product_attention(q_BHRE, k_BHTE, v_BHTE, dropout_p=dropped)
    read_BRD = attention.norm(read_BHRE.transpose(1, 2).reshape(batch, stop - start, width))
    return attention.proj_drop(attention.proj(read_BRD))
