"""`PromptedViT`: a timm VisionTransformer, prompts and a head, put together without editing timm's code.

The backbone's own modules embed, transform and normalise; this file only decides what goes between them.
Shapes: B batch, T tokens, D width, P prompt vectors, K classes.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from errors import InputError
from prompt import FixedPrompt, PromptPool, Prompts


@dataclass
class Output:
    logits_BK: Tensor
    aux_loss: Tensor | None = None
    """What the prompt method adds to the loss; None without prompts."""
    selected_BN: Tensor | None = None
    """Chosen prompts per image; None where nothing is chosen."""


class NearestMeanHead(nn.Module):
    """Nearest class mean: logits are cosines to the mean feature of each class. Learns by counting, not by gradient."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.register_buffer("sums_KD", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("counts_K", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        """Take a batch of features into the means of their classes."""
        self.sums_KD.index_add_(0, labels_B, features_BD.double())
        self.counts_K.index_add_(0, labels_B, torch.ones_like(labels_B))

    def forward(self, features_BD: Tensor) -> Tensor:
        means_KD = nn.functional.normalize(self.sums_KD, dim=1).to(features_BD.dtype)
        logits_BK = nn.functional.normalize(features_BD, dim=1) @ means_KD.T
        return logits_BK.masked_fill(self.counts_K == 0, -1.0)  # the lowest cosine: a class never seen


class PromptedViT(nn.Module):
    """A ViT that reads an image twice: once for the query, once with the prompts that the query chose.

    Args:
        backbone: a timm ViT without classifier, in eval mode.
        prompt: a prompt module, or None: one plain pass.
        head: features [B, D] to logits [B, K].
        head_type: what the head reads: `prompt` (mean prompt output), `token` (cls), `gap` (mean over all tokens),
            `token+prompt` (mean over cls and prompts).
        embedding_key: the query: `cls` (cls output of the unprompted pass, paper section 4.1) or `mean`, `max`,
            `mean_max` = max + 2·mean over the embedded patches before position embedding.
        prompt_pos_embed: `cls` adds the cls token's position embedding to each prompt vector, `none` adds nothing.
        freeze: a parameter whose name begins with one of these words does not train.
    """

    def __init__(self, backbone: VisionTransformer, prompt: PromptPool | FixedPrompt | None, head: nn.Module, *,
                 head_type: str, embedding_key: str = "cls", prompt_pos_embed: str = "none",
                 freeze: tuple[str, ...] = ()):
        super().__init__()
        self.backbone, self.prompt, self.head = backbone, prompt, head
        self.head_type, self.embedding_key, self.prompt_pos_embed = head_type, embedding_key, prompt_pos_embed
        freeze_parameters(self, freeze)
        self.backbone_trains = any(p.requires_grad for p in backbone.parameters())
        self.backbone_drops = any((isinstance(m, nn.Dropout) and m.p > 0) or getattr(m, "drop_prob", None)
                                  for m in backbone.modules())
        # The query network is the pretrained ViT as it came. Only when the backbone trains does that take a copy,
        # kept outside the registered modules: it is neither trained nor saved.
        needs_copy = self.backbone_trains and self.uses_query
        self._query_copy = [copy.deepcopy(backbone).requires_grad_(False) if needs_copy else None]

    @property
    def uses_query(self) -> bool:
        return self.prompt is not None and self.prompt.needs_query

    @property
    def query_network(self) -> VisionTransformer:
        return self._query_copy[0] or self.backbone

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)  # .to(device) and the like reach the copy too
        if self._query_copy[0] is not None:
            self._query_copy[0]._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> "PromptedViT":
        super().train(mode)
        # A frozen backbone without dropout computes the same either way; one with it must drop in training only.
        self.backbone.train(mode and (self.backbone_trains or self.backbone_drops))
        return self

    @torch.no_grad()
    def query(self, images_BCHW: Tensor, patches: Tensor | None = None) -> Tensor:
        """q(x) [B, D]: what the frozen, pretrained ViT makes of the images, in eval mode and without gradient."""
        vit = self.query_network
        if patches is None or vit is not self.backbone:
            patches = vit.patch_embed(images_BCHW)
        if self.embedding_key != "cls":
            patches_BTD = patches.flatten(1, -2)
            mean, peak = patches_BTD.mean(1), patches_BTD.amax(1)
            return {"mean": mean, "max": peak, "mean_max": peak + 2 * mean}[self.embedding_key]
        drops = vit.training  # only a backbone with dropout, in training
        if drops:
            vit.eval()
        query_BD = self._transform(vit, vit._pos_embed(patches))[:, 0]
        if drops:
            vit.train()
        return vit.fc_norm(query_BD)

    def forward(self, images_BCHW: Tensor, *, task: int | None = None, query_BD: Tensor | None = None,
                per_image: bool = False) -> Output:
        """Logits over all K classes.

        Args:
            images_BCHW: normalised pixels.
            task: the current task in training; None in evaluation.
            query_BD: the images' query when it is already known.
            per_image: each image chooses its prompts alone, whatever the pool's setting.
        """
        patches = self.backbone.patch_embed(images_BCHW)  # serves both passes
        if self.prompt is None:
            tokens_BTD = self._transform(self.backbone, self.backbone._pos_embed(patches))
            return Output(self.head(self._pool(tokens_BTD, 0)))
        if self.uses_query and query_BD is None:
            query_BD = self.query(images_BCHW, patches)
        prompts: Prompts = self.prompt(query_BD, len(images_BCHW), task=task, per_image=per_image)
        tokens_BTD = self._insert(self.backbone._pos_embed(patches), prompts.tokens_BPD)
        tokens_BTD = self._transform(self.backbone, tokens_BTD)
        logits_BK = self.head(self._pool(tokens_BTD, prompts.tokens_BPD.shape[1]))
        return Output(logits_BK, prompts.aux_loss, prompts.selected_BN)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the head reads [B, D], for a head that learns without gradient (no prompts)."""
        patches = self.backbone.patch_embed(images_BCHW)
        return self._pool(self._transform(self.backbone, self.backbone._pos_embed(patches)), 0)

    def _insert(self, tokens_BTD: Tensor, prompts_BPD: Tensor) -> Tensor:
        """Prompts go behind the cls token and the registers; attention does not know of order."""
        vit = self.backbone
        if self.prompt_pos_embed == "cls":
            prompts_BPD = prompts_BPD + vit.pos_embed[:, :1]
        prompts_BPD = vit.pos_drop(prompts_BPD)
        n = vit.num_prefix_tokens
        return torch.cat([tokens_BTD[:, :n], prompts_BPD, tokens_BTD[:, n:]], dim=1)

    @staticmethod
    def _transform(vit: VisionTransformer, tokens_BTD: Tensor) -> Tensor:
        """Embedded tokens to outputs: timm's `forward_features` from behind the position embedding on."""
        return vit.norm(vit.blocks(vit.norm_pre(vit.patch_drop(tokens_BTD))))

    def _pool(self, tokens_BTD: Tensor, num_prompt_tokens: int) -> Tensor:
        n = self.backbone.num_prefix_tokens
        prompts_BPD = tokens_BTD[:, n:n + num_prompt_tokens]
        if self.head_type == "token":
            pooled = tokens_BTD[:, 0]
        elif self.head_type == "gap":
            pooled = tokens_BTD.mean(1)
        elif self.head_type == "prompt":
            pooled = prompts_BPD.mean(1)
        else:
            pooled = torch.cat([tokens_BTD[:, :1], prompts_BPD], dim=1).mean(1)
        return self.backbone.fc_norm(pooled)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def learned_state(self) -> dict[str, Tensor]:
        """Exactly what training changes: trained parameters and the counts of a head that learns by counting."""
        state = dict(self.trained_parameters()) | {f"head.{n}": b for n, b in self.head.named_buffers()}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `learned_state` gave. Raises InputError naming what does not fit."""
        own = dict(self.trained_parameters()) | {f"head.{n}": b for n, b in self.head.named_buffers()}
        wrong = sorted(own.keys() ^ state.keys()) + sorted(
            name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
        if wrong:
            raise InputError(f"the checkpoint is of another model: {', '.join(wrong[:5] + ['…'] * (len(wrong) > 5))} "
                             "differ in name or shape; give the --output_dir of a run of this model.")
        for name, tensor in own.items():
            tensor.copy_(state[name])


def freeze_parameters(model: PromptedViT, words: tuple[str, ...]) -> None:
    """Stop the gradient of each parameter whose name, with or without `backbone.`, begins with one of `words`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name.startswith(words) or name.removeprefix("backbone.").startswith(words)))
