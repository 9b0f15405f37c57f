"""`PromptedViT`: a timm VisionTransformer, prompts and a head, put together without editing timm's code.

The backbone's own modules embed, transform and normalise; this file only decides what goes between them.
Shapes: B batch, T tokens, R tokens that the head reads, D width, P prompt vectors, K classes.
"""

import contextlib
import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from errors import InputError
from models.heads import Head
from models.trunk import Prefix, insert, run_trunk
from prompt import PromptMethod, Prompts


@dataclass
class Reading:
    """What the head reads of a batch, and how it came about."""

    features_BD: Tensor
    aux_loss: Tensor | None = None
    selected_BN: Tensor | None = None


@dataclass
class Output:
    logits_BK: Tensor
    aux_loss: Tensor | None = None
    """What the prompt method adds to the loss; None without prompts."""
    selected_BN: Tensor | None = None
    """Chosen prompts per image; None where nothing is chosen."""


class PromptedViT(nn.Module):
    """A ViT that reads an image twice: once for the query, once with the prompts that the query chose.

    Args:
        backbone: a timm ViT without classifier, in eval mode.
        prompt: a prompt method; `NoPrompts` for one plain pass.
        head: features [B, D] to logits [B, K].
        head_type: what the head reads: `prompt` (mean prompt output), `token` (cls), `gap` (mean over all tokens),
            `token+prompt` (mean over cls and prompts).
        embedding_key: the query: `cls` (cls output of the unprompted pass, paper section 4.1) or `mean`, `max`,
            `mean_max` = max + 2·mean over the embedded patches before position embedding.
        prompt_pos_embed: `cls` adds the cls token's position embedding to each vector that joins the tokens before the
            first block, `none` adds nothing.
        freeze: a parameter whose name begins with one of these words does not train.
    """

    def __init__(self, backbone: VisionTransformer, prompt: PromptMethod, head: Head, *, head_type: str,
                 embedding_key: str = "cls", prompt_pos_embed: str = "none", freeze: tuple[str, ...] = ()):
        super().__init__()
        self.backbone, self.prompt, self.head = backbone, prompt, head
        self.head_type, self.embedding_key, self.prompt_pos_embed = head_type, embedding_key, prompt_pos_embed
        freeze_parameters(self, freeze)
        self.backbone_trains = any(p.requires_grad for p in backbone.parameters())
        self.backbone_drops = any((isinstance(m, nn.Dropout) and m.p > 0) or getattr(m, "drop_prob", None)
                                  for m in backbone.modules())
        # The query network is the pretrained ViT as it came. Only when the backbone trains does that take a copy.
        needs_copy = self.backbone_trains and prompt.needs_query
        self._query_copy = Unregistered(copy.deepcopy(backbone).requires_grad_(False)) if needs_copy else None
        self.autocasts_to: torch.dtype | None = None
        self._compiled_for, self._compiled_trunk = 0, None  # a batch size and what runs it

    @property
    def query_network(self) -> VisionTransformer:
        return self.backbone if self._query_copy is None else self._query_copy.module

    @property
    def draws(self) -> bool:
        """Whether training draws from torch's global generator: dropout, or a prompt method that does."""
        return self.backbone_drops or self.prompt.draws

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)  # .to(device) and the like reach the copy too
        if self._query_copy is not None:
            self._query_copy.module._apply(fn, recurse)
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
        if self._query_copy is not None:
            self._query_copy.module.to(torch.bfloat16)

    def compile(self, batch_size: int) -> None:
        """Let torch.compile make kernels of the blocks for batches of `batch_size`; others run as before.

        Shapes are static, so that a GPU replays CUDA graphs: at small batches launching kernels takes longer than
        running them.

        Raises:
            InputError: torch cannot compile here; found by a step on a blank batch.
        """
        vit = self.query_network
        images_BCHW = torch.zeros(batch_size, 3, *vit.patch_embed.img_size, device=next(vit.parameters()).device)
        self._compiled_for = batch_size
        self._compiled_trunk = torch.compile(run_trunk, dynamic=False,
                                             mode="reduce-overhead" if images_BCHW.is_cuda else None)
        try:
            self._step_on(images_BCHW)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            raise InputError(f"--compile: torch cannot compile here ({first_line(error)}); install a C++ compiler such "
                             "as g++ (for a GPU also triton), or leave --compile out.") from error

    def _step_on(self, images_BCHW: Tensor) -> None:
        """All that a run computes, once: query, prompted pass, its gradients, and a test; nothing of it stays."""
        was_training = self.training
        with torch.random.fork_rng(devices=[images_BCHW.device] if images_BCHW.is_cuda else []):
            output = self.train()(images_BCHW, task=0)
            if output.logits_BK.requires_grad:
                output.logits_BK.sum().backward()
            self.zero_grad(set_to_none=True)
            with torch.no_grad():
                self.eval()(images_BCHW)
        self.train(was_training)

    def _run(self, vit: VisionTransformer, tokens_BTD: Tensor, start: int, stop: int,
             tokens: dict[int, Tensor] | None = None, prefixes: dict[int, Prefix] | None = None) -> Tensor:
        if self._compiled_trunk is None or len(tokens_BTD) != self._compiled_for:
            return run_trunk(vit, tokens_BTD, start, stop, tokens, prefixes)
        # A CUDA graph writes its next result where this one lies: it is copied out, and none is waited for.
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled_trunk(vit, tokens_BTD, start, stop, tokens, prefixes).clone()

    # ---- what is computed ----
    @torch.no_grad()
    def query(self, images_BCHW: Tensor, patches: Tensor | None = None) -> Tensor:
        """q(x) [B, D]: what the frozen, pretrained ViT makes of the images, in eval mode and without gradient."""
        vit = self.query_network
        if patches is None or vit is not self.backbone:
            patches = embed(vit, images_BCHW)
        if self.embedding_key != "cls":
            return patch_statistics(at_least_float32(patches.flatten(1, -2)), self.embedding_key)
        drops = vit.training  # only a backbone with dropout, in training
        if drops:
            vit.eval()
        query_BD = vit.fc_norm(self._run(vit, vit._pos_embed(patches), 0, 1)[:, 0])
        if drops:
            vit.train()
        return at_least_float32(query_BD)

    @property
    def query_is_kept(self) -> bool:
        """Whether a test saves a pass through the ViT when it knows the query of its images."""
        return (self.prompt.needs_query and self.embedding_key == "cls") or self.reads_query

    @property
    def reads_query(self) -> bool:
        """Whether the query is what the head reads: the cls output of a frozen ViT without prompts."""
        return (not self.prompt.layers and self.head_type == "token" and self.embedding_key == "cls"
                and not self.backbone_trains)

    def query_weights(self) -> tuple[tuple[int, int], ...]:
        """Tells whether the query network is still the same: changes with any weight that is replaced or written to."""
        return versions(self.query_network)

    def read_weights(self) -> tuple[tuple[int, int], ...]:
        """The same of all that makes what the head reads: query network, backbone and prompts."""
        copied = versions(self.backbone) if self.query_network is not self.backbone else ()
        return versions(self.query_network) + copied + versions(self.prompt)

    def forward(self, images_BCHW: Tensor, *, task: int | None = None, query_BD: Tensor | None = None,
                per_image: bool = False) -> Output:
        """Logits over all K classes.

        Args:
            images_BCHW: normalised pixels.
            task: the current task in training; None in evaluation.
            query_BD: the images' query when it is already known.
            per_image: each image chooses its prompts alone, whatever the pool's setting.
        """
        return self.answer(self.read(images_BCHW, task=task, query_BD=query_BD, per_image=per_image))

    def answer(self, reading: Reading) -> Output:
        """What the head makes of what it reads."""
        return Output(self.head(reading.features_BD), reading.aux_loss, reading.selected_BN)

    @torch.no_grad()
    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the head reads [B, D], for a head that observes; each image chooses its prompts alone."""
        return self.read(images_BCHW, per_image=True).features_BD

    def read(self, images_BCHW: Tensor, *, task: int | None = None, query_BD: Tensor | None = None,
             per_image: bool = False) -> Reading:
        """What the head reads of a batch; arguments as of `forward`."""
        if query_BD is not None and self.reads_query:
            return Reading(query_BD)
        with self._autocast(images_BCHW):
            patches = embed(self.backbone, images_BCHW)  # serves both passes
        if self.prompt.needs_query and query_BD is None:
            query_BD = self.query(images_BCHW, patches)
        prompts = self.prompt(query_BD, len(images_BCHW), task=task, per_image=per_image)
        return Reading(self._features(patches, prompts, self.head_type, self.prompt_pos_embed), prompts.aux_loss,
                       prompts.selected_BN)

    @torch.no_grad()
    def likeness_behind_prompts(self, images_BCHW: Tensor, position: str) -> float:
        """How much of what the ViT makes of an image stays behind the prompts: the mean cosine of its cls output with
        and without them.

        Args:
            position: the position embedding to give to prompts, as `prompt_pos_embed`.
        """
        training = self.training
        self.eval()
        patches = embed(self.backbone, images_BCHW)
        query_BD = self.query(images_BCHW, patches) if self.prompt.needs_query else None
        prompts = self.prompt(query_BD, len(images_BCHW), per_image=True)
        cls_BD, plain_BD = (self._features(patches, each, "token", position) for each in (prompts, Prompts()))
        self.train(training)
        return F.cosine_similarity(cls_BD, plain_BD).mean().item()

    def _features(self, patches: Tensor, prompts: Prompts, head_type: str, position: str) -> Tensor:
        """Embedded patches and prompts, with this position embedding, to what a head of this type reads [B, D]."""
        vit, n = self.backbone, self.backbone.num_prefix_tokens
        with self._autocast(patches):
            tokens_BTD = vit._pos_embed(patches)
            first_BPD = prompts.tokens.get(0)
            if first_BPD is not None:
                tokens_BTD = insert(tokens_BTD, self._placed(first_BPD.to(tokens_BTD.dtype), position), n)
            later = {layer: vectors_BPD for layer, vectors_BPD in prompts.tokens.items() if layer > 0}
            count = tokens_BTD.shape[1] + sum(vectors_BPD.shape[1] for vectors_BPD in later.values())
            start, stop = self._tokens_read(count, head_type)
            read_BRD = self._run(vit, tokens_BTD, start, stop, later, prompts.prefixes)
            if head_type == "token+prompt":  # between them lie the registers
                read_BRD = torch.cat([read_BRD[:, :1], read_BRD[:, n:]], dim=1)
            pooled_BD = at_least_float32(read_BRD).mean(1).to(read_BRD.dtype)
            return at_least_float32(vit.fc_norm(pooled_BD))

    def _tokens_read(self, count: int, head_type: str) -> tuple[int, int]:
        """The first and the end of the tokens that the head reads, among the `count` that reach the last block.

        They are the cls token, registers, prompts and patches, in this order.
        """
        n = self.backbone.num_prefix_tokens
        if head_type == "token":
            return 0, 1
        if head_type == "gap":
            return 0, count
        if head_type == "prompt":
            return n, n + self.prompt.num_tokens
        return 0, n + self.prompt.num_tokens

    def _placed(self, vectors_BPD: Tensor, position: str) -> Tensor:
        """Vectors that join the tokens before the first block, with their position and dropout."""
        vit = self.backbone
        if position == "cls":
            vectors_BPD = vectors_BPD + vit.pos_embed[:, :1]
        return vit.pos_drop(vectors_BPD)

    def _autocast(self, where: Tensor):
        if self.autocasts_to is None:
            return contextlib.nullcontext()
        return torch.autocast(where.device.type, self.autocasts_to)

    # ---- what is learned ----
    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def learned_state(self) -> dict[str, Tensor]:
        """Exactly what training changes: trained parameters, and the buffers of prompts and head."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._learned().items()}

    @torch.no_grad()
    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `learned_state` gave. Raises InputError naming what does not fit."""
        own = self._learned()
        wrong = sorted(own.keys() ^ state.keys()) + sorted(
            name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
        if wrong:
            raise InputError(f"the checkpoint is of another model: {', '.join(wrong[:5] + ['…'] * (len(wrong) > 5))} "
                             "differ in name or shape; give the --output_dir of a run of this model.")
        for name, tensor in own.items():
            value = state[name].to(tensor)
            if not torch.equal(tensor, value):  # what is written to makes caches forget what they know
                tensor.copy_(value)

    def _learned(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(self.trained_parameters())
        for part, module in (("prompt", self.prompt), ("head", self.head)):
            parameters = dict(module.named_parameters())
            tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()
                        if name not in parameters}
        return tensors


class Unregistered:
    """Holds a module that is no part of another's: neither trained nor saved with it."""

    def __init__(self, module: VisionTransformer):
        self.module = module


def embed(vit: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """Images to patches, [B, T, D] or [B, H, W, D], in the precision of the ViT's weights."""
    return vit.patch_embed(images_BCHW.to(next(vit.patch_embed.parameters()).dtype))


def versions(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes with every parameter or buffer that is replaced or written to."""
    return tuple((t.data_ptr(), t._version) for t in itertools.chain(module.parameters(), module.buffers()))


def patch_statistics(patches_BTD: Tensor, which: str) -> Tensor:
    """`mean`, `max` or `mean_max` = max + 2·mean over the embedded patches [B, D]."""
    if which == "mean":
        return patches_BTD.mean(1)
    if which == "max":
        return patches_BTD.amax(1)
    return patches_BTD.amax(1) + 2 * patches_BTD.mean(1)


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
