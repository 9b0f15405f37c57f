"""The model: a frozen timm ViT, prompts and a head, put together from plain options."""

from typing import Any

import torch
from torch import nn

import models.glyph_vit  # noqa: F401 -- registers the demo's backbone with timm
from errors import InputError
from models.prompted_vit import NearestMeanHead, PromptedViT
from models.query_cache import QueryCache
from models.weights import backbone_fingerprint, build_backbone, model_normalisation, resolve_model_name
from prompt import FixedPrompt, PromptPool
from utils import random_generator

__all__ = ["PromptedViT", "QueryCache", "backbone_fingerprint", "build_model", "model_normalisation",
           "resolve_model_name"]


def build_model(options: dict[str, Any], num_classes: int) -> PromptedViT:
    """The model that the options describe, on the CPU, every parameter in place.

    Raises:
        InputError: a model that is not a timm VisionTransformer or lacks what the options need; unusable weights.
    """
    o = options
    needs_cls = [f"--{name} {o[name]}" for name, needed in (
        ("head_type", o["head_type"] in ("token", "token+prompt")),
        ("embedding_key", o["prompt_method"] != "none" and o["prompt_pool"] and o["embedding_key"] == "cls")) if needed]
    torch.manual_seed(o["seed"])  # timm draws random weights, where none are loaded, from the global generator
    backbone = build_backbone(o["model"], input_size=o["input_size"], pretrained=o["pretrained"],
                              init_checkpoint=o["init_checkpoint"], drop=o["drop"], drop_path=o["drop_path"],
                              needs_cls=bool(needs_cls), needs_for=" and ".join(needs_cls))
    prompts = build_prompt(o, backbone.embed_dim)
    if prompts is not None and o["prompt_pos_embed"] == "cls" and (
            backbone.pos_embed is None or backbone.no_embed_class or not backbone.has_class_token):
        raise InputError(f"--prompt_pos_embed cls: {o['model']} has no position embedding for a cls token; "
                         "use --prompt_pos_embed none.")
    if backbone.attn_pool is not None:
        backbone.reset_classifier(0, "")  # the head reads tokens, so a pooling layer of the backbone's own goes
    model = PromptedViT(backbone, prompts, build_head(o, backbone.embed_dim, num_classes), head_type=o["head_type"],
                       embedding_key=o["embedding_key"], prompt_pos_embed=o["prompt_pos_embed"],
                       freeze=tuple(o["freeze"]))
    check_freeze_words(model, o["freeze"])
    trains = sum(p.numel() for _, p in model.trained_parameters())
    if o["head"] == "ncm" and trains:
        raise InputError(f"--head ncm learns without gradient, but --freeze leaves {trains} values to train: "
                         "use --freeze backbone.")
    if o["head"] != "ncm" and not trains:
        raise InputError("--freeze leaves nothing to train: take a word out.")
    return model


def build_prompt(o: dict[str, Any], dim: int) -> PromptPool | FixedPrompt | None:
    """The prompt module, its values drawn by the seed alone."""
    generator = random_generator(o["seed"], "prompt")
    if o["prompt_method"] == "none":
        return None
    if not o["prompt_pool"]:
        return FixedPrompt(dim, o["length"], initializer=o["initializer"], generator=generator)
    return PromptPool(
        dim, o["size"], o["length"], o["top_k"], initializer=o["initializer"], key_initializer=o["prompt_key_init"],
        trained_key=o["prompt_key"], batchwise=o["batchwise_prompt"], task_mask=o["use_prompt_mask"],
        share_prompts=o["shared_prompt_pool"], share_keys=o["shared_prompt_key"],
        pull_coefficient=o["pull_constraint_coeff"] if o["pull_constraint"] else 0.0, generator=generator)


def build_head(o: dict[str, Any], dim: int, num_classes: int) -> nn.Module:
    if o["head"] == "ncm":
        return NearestMeanHead(dim, num_classes)
    head = nn.Linear(dim, num_classes)
    nn.init.zeros_(head.bias)
    if o["head_init"] == "zero":
        nn.init.zeros_(head.weight)
    else:
        nn.init.trunc_normal_(head.weight, std=0.02, generator=random_generator(o["seed"], "head"))
    return head


# What the PyTorch re-implementation and its users freeze; a model need not have all of it.
FREEZE_WORDS = ("backbone", "blocks", "patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm",
                "norm_pre", "fc_norm", "head", "prompt")


def check_freeze_words(model: PromptedViT, words: list[str]) -> None:
    """A mistyped word would silently leave training on."""
    names = {part for name, _ in model.named_parameters() for part in (name, name.removeprefix("backbone."))}
    for word in words:
        if word not in FREEZE_WORDS and not any(name.startswith(word) for name in names):
            raise InputError(f"--freeze {word}: no parameter's name begins so; words that do are "
                             f"{', '.join(FREEZE_WORDS)}, or longer ones such as blocks.0.")
