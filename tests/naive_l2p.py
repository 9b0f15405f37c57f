"""A naive L2P (CVPR 2022, sections 4.1-4.3): slow, in loops, one image at a time; the program is tested against it.

It shares no code with the program. A timm `VisionTransformer` serves only as a bag of weights (and of eps, head counts
and activation functions): patch embedding, attention, normalisation, loss, clipping and Adam are written out below,
without dropout. The query and the prompted pass are two runs of the network that share nothing but weights.

Shapes: B images, C channels, H height, W width, T tokens, D width, M pool size, N top_k, L prompt length,
P = N * L inserted vectors (L without a pool), K classes, R registers.
"""

import math
from collections.abc import Sequence

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------- the ViT


def linear(tokens_TD: Tensor, layer: nn.Linear) -> Tensor:
    """x W^T + b for every token."""
    out = tokens_TD @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def layer_norm(x: Tensor, layer: nn.Module) -> Tensor:
    """LayerNorm over the last dimension (biased variance); an absent norm (`nn.Identity`) leaves `x` as it is."""
    if isinstance(layer, nn.Identity):
        return x
    if not isinstance(layer, nn.LayerNorm):
        raise TypeError(f"the naive ViT knows LayerNorm only, not {type(layer).__name__}")
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    out = (x - mean) / torch.sqrt(variance + layer.eps)
    if layer.weight is not None:
        out = out * layer.weight
    return out if layer.bias is None else out + layer.bias


def layer_scale(x: Tensor, layer: nn.Module) -> Tensor:
    """One learnt factor per channel; an absent LayerScale (`nn.Identity`) leaves `x` as it is."""
    return x if isinstance(layer, nn.Identity) else x * layer.gamma


def embed_patches(vit: VisionTransformer, image_CHW: Tensor) -> Tensor:
    """Patch tokens [T, D] in row order, before the position embedding."""
    weight_DCHW = vit.patch_embed.proj.weight
    height, width = weight_DCHW.shape[2:]
    windows = image_CHW.unfold(1, height, height).unfold(2, width, width)  # [C, rows, columns, height, width]
    rows, columns = windows.shape[1:3]
    tokens = []
    for row in range(rows):
        for column in range(columns):
            pixels = windows[:, row, column].reshape(-1)
            tokens.append(weight_DCHW.reshape(len(weight_DCHW), -1) @ pixels)
    tokens_TD = torch.stack(tokens)
    if vit.patch_embed.proj.bias is not None:
        tokens_TD = tokens_TD + vit.patch_embed.proj.bias
    return layer_norm(tokens_TD, vit.patch_embed.norm)


def attention(tokens_TD: Tensor, layer: Attention) -> Tensor:
    """softmax(q k^T / sqrt d) v, one head after the other."""
    q_TD, k_TD, v_TD = linear(tokens_TD, layer.qkv).chunk(3, dim=-1)
    width = q_TD.shape[-1] // layer.num_heads
    outputs = []
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        q = layer_norm(q_TD[:, part], layer.q_norm)
        k = layer_norm(k_TD[:, part], layer.k_norm)
        weights_TT = torch.exp(log_softmax(q @ k.T / math.sqrt(width)))
        outputs.append(weights_TT @ v_TD[:, part])
    return linear(layer_norm(torch.cat(outputs, dim=-1), layer.norm), layer.proj)


def log_softmax(x: Tensor) -> Tensor:
    """x - log sum exp(x) over the last dimension, the largest entry taken out first; entries may be -inf."""
    largest = x.max(dim=-1, keepdim=True).values.detach()
    return x - largest - torch.log(torch.exp(x - largest).sum(dim=-1, keepdim=True))


def mlp(tokens_TD: Tensor, layer: Mlp) -> Tensor:
    """Linear, activation, linear."""
    hidden = layer.act(linear(tokens_TD, layer.fc1))
    return linear(layer_norm(hidden, layer.norm), layer.fc2)


def block(tokens_TD: Tensor, layer: Block) -> Tensor:
    """One pre-norm transformer block."""
    if type(layer) is not Block or type(layer.attn) is not Attention or type(layer.mlp) is not Mlp:
        raise TypeError(f"the naive ViT knows timm's plain Block, Attention and Mlp only, not {layer}")
    tokens_TD = tokens_TD + layer_scale(attention(layer_norm(tokens_TD, layer.norm1), layer.attn), layer.ls1)
    return tokens_TD + layer_scale(mlp(layer_norm(tokens_TD, layer.norm2), layer.mlp), layer.ls2)


def encode(
    vit: VisionTransformer, image_CHW: Tensor, prompts_PD: Tensor | None = None, prompt_pos_embed: str = "none"
) -> Tensor:
    """Tokens [P + 1 + R + T, D] after the final norm, in the order prompts, cls, registers, patches.

    The prompts stand beside the embedded tokens after the position embedding and before `norm_pre`, like every other
    token; `prompt_pos_embed="cls"` adds the position embedding of the cls token to every prompt vector.
    """
    patches_TD = embed_patches(vit, image_CHW)
    prefix = [token[0] for token in (vit.cls_token, vit.reg_token) if token is not None]
    if vit.pos_embed is None:
        tokens_TD = torch.cat([*prefix, patches_TD])
    elif vit.no_embed_class:
        tokens_TD = torch.cat([*prefix, patches_TD + vit.pos_embed[0]])
    else:
        tokens_TD = torch.cat([*prefix, patches_TD]) + vit.pos_embed[0]
    if prompts_PD is not None:
        tokens_TD = torch.cat([place_prompts(vit, prompts_PD, prompt_pos_embed), tokens_TD])
    tokens_TD = layer_norm(tokens_TD, vit.norm_pre)
    for layer in vit.blocks:
        tokens_TD = block(tokens_TD, layer)
    return layer_norm(tokens_TD, vit.norm)


def place_prompts(vit: VisionTransformer, prompts_PD: Tensor, prompt_pos_embed: str) -> Tensor:
    """The prompt vectors with their position: "none", or "cls", the position embedding of the cls token."""
    if prompt_pos_embed == "none":
        return prompts_PD
    if prompt_pos_embed != "cls":
        raise ValueError(f"prompt_pos_embed {prompt_pos_embed!r} is neither 'none' nor 'cls'")
    if vit.pos_embed is None or vit.no_embed_class or vit.cls_token is None:
        raise ValueError("this ViT has no position embedding for its cls token")
    return torch.stack([vector + vit.pos_embed[0, 0] for vector in prompts_PD])


# --------------------------------------------------------------------------------------------------------- the pool


@torch.no_grad()
def query(vit: VisionTransformer, images_BCHW: Tensor, embedding_key: str = "cls") -> Tensor:
    """q(x) [B, D], without gradient: the cls token after the final norm of the ViT without prompts ("cls"), or, over
    the embedded patch tokens before the position embedding, "mean", "max" or "mean_max" (max + 2 * mean)."""
    queries = []
    for image_CHW in images_BCHW:
        patches_TD = embed_patches(vit, image_CHW)
        if embedding_key == "cls":
            if vit.cls_token is None:
                raise ValueError("this ViT has no cls token")
            queries.append(encode(vit, image_CHW)[0])
        elif embedding_key == "mean":
            queries.append(patches_TD.mean(dim=0))
        elif embedding_key == "max":
            queries.append(patches_TD.max(dim=0).values)
        elif embedding_key == "mean_max":
            queries.append(patches_TD.max(dim=0).values + 2 * patches_TD.mean(dim=0))
        else:
            raise ValueError(f"embedding_key {embedding_key!r} is none of cls, mean, max, mean_max")
    return torch.stack(queries)


def normalise(x: Tensor) -> Tensor:
    """One vector [D] to length 1, with eps 1e-12 on the squared length."""
    return x * torch.rsqrt(torch.clamp((x * x).sum(), min=1e-12))


def cosine(a_BD: Tensor, b_MD: Tensor) -> Tensor:
    """Cosine of every row of `a` with every row of `b`, [B, M]."""
    return torch.stack([torch.stack([(normalise(a) * normalise(b)).sum() for b in b_MD]) for a in a_BD])


def choose(
    query_BD: Tensor, keys_MD: Tensor, top_k: int, batchwise: bool, mask_task: int | None = None
) -> list[list[int]]:
    """The `top_k` prompts of every image, best first, ties to the lower index.

    `batchwise`: every image gets the prompts picked most often in the batch. `mask_task` = t: prompts
    t * top_k ... (t + 1) * top_k - 1 for all, unless that runs past the pool.
    """
    images, size = len(query_BD), len(keys_MD)
    if mask_task is not None and (mask_task + 1) * top_k <= size:
        return [list(range(mask_task * top_k, (mask_task + 1) * top_k)) for _ in range(images)]
    picks = []
    for similarities in cosine(query_BD.detach(), keys_MD.detach()).tolist():
        ranked = sorted(range(size), key=lambda m: (-similarities[m], m))
        picks.append(ranked[:top_k])
    if not batchwise:
        return picks
    counts = [0] * size
    for pick in picks:
        for m in pick:
            counts[m] += 1
    most_picked = sorted(range(size), key=lambda m: (-counts[m], m))[:top_k]
    return [list(most_picked) for _ in range(images)]


def transfer(
    prompts_MLD: Tensor, keys_MD: Tensor | None, task: int, top_k: int, shared_pool: bool, shared_key: bool
) -> tuple[Tensor, Tensor | None]:
    """Prompts and keys at the start of `task`: slots (t-1)N ... tN-1 copied to tN ... (t+1)N-1, skipped past the pool.

    Returns copies without gradient history; `shared_pool` moves prompts, `shared_key` keys, each on its own.
    """
    prompts_MLD = prompts_MLD.detach().clone()
    keys_MD = None if keys_MD is None else keys_MD.detach().clone()
    if task == 0 or (task + 1) * top_k > len(prompts_MLD):
        return prompts_MLD, keys_MD
    for target in range(task * top_k, (task + 1) * top_k):
        if shared_pool:
            prompts_MLD[target] = prompts_MLD[target - top_k]
        if shared_key and keys_MD is not None:
            keys_MD[target] = keys_MD[target - top_k]
    return prompts_MLD, keys_MD


# -------------------------------------------------------------------------------------------------------- the model


def pool_tokens(vit: VisionTransformer, tokens_TD: Tensor, prompt_vectors: int, head_type: str) -> Tensor:
    """What the head reads, [D], from tokens in the order of `encode`, the first `prompt_vectors` being prompts.

    "prompt": mean of the prompt outputs; "token": cls; "gap": mean of all tokens; "token+prompt": mean of cls and
    prompts together.
    """
    if head_type in ("token", "token+prompt") and vit.cls_token is None:
        raise ValueError("this ViT has no cls token")
    if head_type == "prompt":
        return tokens_TD[:prompt_vectors].mean(dim=0)
    if head_type == "token":
        return tokens_TD[prompt_vectors]
    if head_type == "gap":
        return tokens_TD.mean(dim=0)
    if head_type == "token+prompt":
        return tokens_TD[: prompt_vectors + 1].mean(dim=0)
    raise ValueError(f"head_type {head_type!r} is none of prompt, token, gap, token+prompt")


def forward(
    vit: VisionTransformer,
    images_BCHW: Tensor,
    prompts_MLD: Tensor,
    keys_MD: Tensor | None,
    head_weight: Tensor,
    head_bias: Tensor,
    *,
    top_k: int,
    batchwise: bool,
    head_type: str,
    prompt_pos_embed: str,
    embedding_key: str = "cls",
    mask_task: int | None = None,
    pool: bool = True,
    query_vit: VisionTransformer | None = None,
) -> dict:
    """L2P on a batch, differentiable with respect to prompts, keys and head (and the ViT's weights where they train).

    `keys_MD=None` is prompt_key=False: the key of a prompt is the mean of its vectors. `pool=False`: `prompts_MLD` is
    one prompt [L, D], always inserted. `query_vit`: the frozen copy that answers queries where `vit` itself trains.

    Returns `logits` [B, K]; `pull`, (1/B) * the sum of the chosen cosines over the batch (0 without a pool);
    `selected`, a list of prompt indices per image (empty without a pool); `features` [B, P + 1 + R + T, D], all tokens
    after the final norm (order of `encode`); `pooled` [B, D], what the head read.
    """
    images = len(images_BCHW)
    if pool:
        if keys_MD is None:
            keys_MD = torch.stack([prompt_LD.mean(dim=0) for prompt_LD in prompts_MLD])
        query_BD = query(vit if query_vit is None else query_vit, images_BCHW, embedding_key)
        selected = choose(query_BD, keys_MD, top_k, batchwise, mask_task)
        similarity_BM = cosine(query_BD, keys_MD)
        pull = sum(similarity_BM[b, m] for b in range(images) for m in selected[b]) / images
    else:
        selected = [[] for _ in range(images)]
        pull = torch.zeros((), dtype=prompts_MLD.dtype, device=prompts_MLD.device)
    features, pooled, logits = [], [], []
    for b in range(images):
        prompts_PD = torch.cat([prompts_MLD[m] for m in selected[b]]) if pool else prompts_MLD
        tokens_TD = encode(vit, images_BCHW[b], prompts_PD, prompt_pos_embed)
        pooled_D = pool_tokens(vit, tokens_TD, len(prompts_PD), head_type)
        features.append(tokens_TD)
        pooled.append(pooled_D)
        logits.append(head_weight @ pooled_D + head_bias)
    return {
        "logits": torch.stack(logits),
        "pull": pull,
        "selected": selected,
        "features": torch.stack(features),
        "pooled": torch.stack(pooled),
    }


# ----------------------------------------------------------------------------------------------------- the training


def loss(
    logits_BK: Tensor, labels_B: Tensor, current_classes: Sequence[int] | None, pull: Tensor | float, coefficient: float
) -> Tensor:
    """Cross-entropy, mean over the batch, minus `coefficient` * `pull`; classes outside `current_classes` count as
    logit -inf (None: no class does), so a label outside them makes the loss infinite."""
    total = 0.0
    for logits_K, label in zip(logits_BK, labels_B.tolist(), strict=True):
        if current_classes is not None:
            minus_infinity = torch.full_like(logits_K[0], -math.inf)
            allowed = {int(k) for k in current_classes}
            logits_K = torch.stack([logits_K[k] if k in allowed else minus_infinity for k in range(len(logits_K))])
        total = total - log_softmax(logits_K)[label]
    return total / len(logits_BK) - coefficient * pull


def clip_gradients(gradients: Sequence[Tensor], max_norm: float = 1.0) -> list[Tensor]:
    """The gradients, all scaled by max_norm / (norm + 1e-6) where that is below 1; norm runs over all of them."""
    norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))
    factor = min(1.0, max_norm / (norm + 1e-6))
    return [gradient * factor for gradient in gradients]


def adam_start(parameters: Sequence[Tensor]) -> dict:
    """The state of Adam before its first step."""
    return {
        "step": 0,
        "first": [torch.zeros_like(parameter) for parameter in parameters],
        "second": [torch.zeros_like(parameter) for parameter in parameters],
    }


def adam_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: dict,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[list[Tensor], dict]:
    """One step of Adam (arXiv 1412.6980, algorithm 1), without weight decay; returns new parameters and state."""
    step = state["step"] + 1
    updated, firsts, seconds = [], [], []
    for parameter, gradient, first, second in zip(parameters, gradients, state["first"], state["second"], strict=True):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        unbiased_first = first / (1 - betas[0] ** step)
        unbiased_second = second / (1 - betas[1] ** step)
        updated.append((parameter - lr * unbiased_first / (torch.sqrt(unbiased_second) + eps)).detach())
        firsts.append(first)
        seconds.append(second)
    return updated, {"step": step, "first": firsts, "second": seconds}


# ------------------------------------------------------------------------------------------------------ the metrics
# matrix[i][t]: accuracy on the test set of task i after training task t (0 where i > t). t counts from 0.


def acc_at_1(matrix: Sequence[Sequence[float]], t: int) -> float:
    """Mean accuracy of tasks 0...t after task t (mean of tasks, not of images)."""
    total = 0.0
    for i in range(t + 1):
        total += float(matrix[i][t])
    return total / (t + 1)


def forgetting(matrix: Sequence[Sequence[float]], t: int) -> float:
    """Mean over i < t of the best accuracy task i ever had up to task t, minus what it has after t. Needs t > 0."""
    if t == 0:
        raise ValueError("forgetting is defined from the second task on")
    total = 0.0
    for i in range(t):
        best = float(matrix[i][0])
        for column in range(1, t + 1):
            best = max(best, float(matrix[i][column]))
        total += best - float(matrix[i][t])
    return total / t


def backward_transfer(matrix: Sequence[Sequence[float]], t: int) -> float:
    """Mean over i < t of accuracy on task i after task t minus right after task i. Needs t > 0."""
    if t == 0:
        raise ValueError("backward transfer is defined from the second task on")
    total = 0.0
    for i in range(t):
        total += float(matrix[i][t]) - float(matrix[i][i])
    return total / t


def learning_accuracy(matrix: Sequence[Sequence[float]], t: int) -> float:
    """Mean over i <= t of the accuracy on task i right after training it."""
    total = 0.0
    for i in range(t + 1):
        total += float(matrix[i][i])
    return total / (t + 1)


def average_incremental_accuracy(matrix: Sequence[Sequence[float]], t: int) -> float:
    """Mean of Acc@1 after each of the tasks 0...t."""
    total = 0.0
    for s in range(t + 1):
        total += acc_at_1(matrix, s)
    return total / (t + 1)
