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
from models.trunk import run_trunk
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
        self.autocasts_to: torch.dtype | None = None
        self._compiled_for, self._compiled_trunk = 0, None  # a batch size and what runs it

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

    # ---- how fast ----
    def use_bfloat16(self) -> None:
        """Let the ViT compute in bfloat16; what trains, the query, the head and the loss stay in float32.

        A frozen backbone's weights are rounded once and kept in half the memory; one that trains keeps its float32
        weights and is cast on the way (autocast). Call it after `.to(device)` and after fingerprints were taken.
        """
        if self.backbone_trains:
            self.autocasts_to = torch.bfloat16
        else:
            self.backbone.to(torch.bfloat16)
        if self._query_copy[0] is not None:
            self._query_copy[0].to(torch.bfloat16)

    def compile(self, batch_size: int) -> None:
        """Let torch.compile make kernels of the blocks for batches of `batch_size`; others run as before.

        Shapes are static, so that a GPU replays CUDA graphs: at small batches launching kernels takes longer than
        running them.

        Raises:
            InputError: torch cannot compile here; found by a pass over a blank batch.
        """
        vit = self.query_network
        images_BCHW = torch.zeros(batch_size, 3, *vit.patch_embed.img_size, device=next(vit.parameters()).device)
        self._compiled_for = batch_size
        self._compiled_trunk = torch.compile(run_trunk, dynamic=False,
                                             mode="reduce-overhead" if images_BCHW.is_cuda else None)
        try:
            with torch.no_grad():
                self._run(vit, vit._pos_embed(embed(vit, images_BCHW)), 0, 1)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise InputError(f"--compile: torch cannot compile here ({first_line(error)}); install a C++ compiler such "
                             "as g++ (for a GPU also triton), or leave --compile out.") from error

    def _run(self, vit: VisionTransformer, tokens_BTD: Tensor, start: int, stop: int) -> Tensor:
        if self._compiled_trunk is None or len(tokens_BTD) != self._compiled_for:
            return run_trunk(vit, tokens_BTD, start, stop)
        # A CUDA graph writes its next result where this one lies: it is copied out, and none is waited for.
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled_trunk(vit, tokens_BTD, start, stop).clone()

    # ---- what is computed ----
    @torch.no_grad()
    def query(self, images_BCHW: Tensor, patches: Tensor | None = None) -> Tensor:
        """q(x) [B, D]: what the frozen, pretrained ViT makes of the images, in eval mode and without gradient."""
        vit = self.query_network
        if patches is None or vit is not self.backbone:
            patches = embed(vit, images_BCHW)
        if self.embedding_key != "cls":
            patches_BTD = at_least_float32(patches.flatten(1, -2))
            mean, peak = patches_BTD.mean(1), patches_BTD.amax(1)
            return {"mean": mean, "max": peak, "mean_max": peak + 2 * mean}[self.embedding_key]
        drops = vit.training  # only a backbone with dropout, in training
        if drops:
            vit.eval()
        query_BD = vit.fc_norm(self._run(vit, vit._pos_embed(patches), 0, 1)[:, 0])
        if drops:
            vit.train()
        return at_least_float32(query_BD)

    def query_weights(self) -> tuple[tuple[int, int], ...]:
        """Tells whether the query network is still the same: changes with any weight that is replaced or written to."""
        return tuple((p.data_ptr(), p._version) for p in self.query_network.parameters())

    def forward(self, images_BCHW: Tensor, *, task: int | None = None, query_BD: Tensor | None = None,
                per_image: bool = False) -> Output:
        """Logits over all K classes.

        Args:
            images_BCHW: normalised pixels.
            task: the current task in training; None in evaluation.
            query_BD: the images' query when it is already known.
            per_image: each image chooses its prompts alone, whatever the pool's setting.
        """
        with self._autocast(images_BCHW):
            patches = embed(self.backbone, images_BCHW)  # serves both passes
        if self.prompt is None:
            return Output(self.head(self._features(patches)))
        if self.uses_query and query_BD is None:
            query_BD = self.query(images_BCHW, patches)
        prompts: Prompts = self.prompt(query_BD, len(images_BCHW), task=task, per_image=per_image)
        logits_BK = self.head(self._features(patches, prompts.tokens_BPD))
        return Output(logits_BK, prompts.aux_loss, prompts.selected_BN)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the head reads [B, D], for a head that learns without gradient (no prompts)."""
        with self._autocast(images_BCHW):
            patches = embed(self.backbone, images_BCHW)
        return self._features(patches)

    def _features(self, patches: Tensor, prompts_BPD: Tensor | None = None) -> Tensor:
        """Embedded patches and prompts to what the head reads [B, D]."""
        vit, n = self.backbone, self.backbone.num_prefix_tokens
        with self._autocast(patches):
            tokens_BTD = vit._pos_embed(patches)
            p = 0
            if prompts_BPD is not None:
                tokens_BTD, p = self._insert(tokens_BTD, prompts_BPD), prompts_BPD.shape[1]
            start, stop = {"token": (0, 1), "gap": (0, tokens_BTD.shape[1]), "prompt": (n, n + p),
                           "token+prompt": (0, n + p)}[self.head_type]
            read_BRD = self._run(vit, tokens_BTD, start, stop)
            if self.head_type == "token+prompt":  # between them lie the registers
                read_BRD = torch.cat([read_BRD[:, :1], read_BRD[:, n:]], dim=1)
            pooled_BD = at_least_float32(read_BRD).mean(1).to(read_BRD.dtype)
            return at_least_float32(vit.fc_norm(pooled_BD))

    def _insert(self, tokens_BTD: Tensor, prompts_BPD: Tensor) -> Tensor:
        """Prompts go behind the cls token and the registers; attention does not know of order."""
        vit = self.backbone
        prompts_BPD = prompts_BPD.to(tokens_BTD.dtype)
        if self.prompt_pos_embed == "cls":
            prompts_BPD = prompts_BPD + vit.pos_embed[:, :1]
        prompts_BPD = vit.pos_drop(prompts_BPD)
        n = vit.num_prefix_tokens
        return torch.cat([tokens_BTD[:, :n], prompts_BPD, tokens_BTD[:, n:]], dim=1)

    def _autocast(self, where: Tensor):
        return torch.autocast(where.device.type, self.autocasts_to, enabled=self.autocasts_to is not None)

    # ---- what is learned ----
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


def embed(vit: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """Images to patches, [B, T, D] or [B, H, W, D], in the precision of the ViT's weights."""
    return vit.patch_embed(images_BCHW.to(next(vit.patch_embed.parameters()).dtype))


def compilation_cache() -> str:
    """The folder in which torch.compile keeps its kernels from one run to the next (TORCHINDUCTOR_CACHE_DIR)."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def freeze_parameters(model: PromptedViT, words: tuple[str, ...]) -> None:
    """Stop the gradient of each parameter whose name, with or without `backbone.`, begins with one of `words`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name.startswith(words) or name.removeprefix("backbone.").startswith(words)))
