"""The model: a frozen timm ViT, prompts and a head, put together from plain options."""

import functools
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import models.glyph_vit  # noqa: F401 -- registers the demo's backbone with timm
from errors import InputError
from models.alignment import AlignedHead
from models.heads import Head, LinearHead, NearestMeanHead
from models.prompted_vit import PromptedViT
from models.query_cache import QueryCache
from models.ridge import RidgeHead
from models.trunk import is_plain
from models.weights import (
    backbone_fingerprint,
    build_backbone,
    build_without_weights,
    model_normalisation,
    resolve_model_name,
)
from prompt import Host, PromptMethod
from prompt_methods import build_prompt_method, options_of, untaken_options
from utils import random_generator

__all__ = ["PromptedViT", "QueryCache", "backbone_fingerprint", "build_model", "model_normalisation",
           "resolve_model_name", "untaken_options"]


# What `build_model` reads besides the options of the prompt method.
MODEL_OPTIONS = ("model", "input_size", "pretrained", "init_checkpoint", "drop", "drop_path", "freeze", "head",
                 "random_features", "align", "align_samples", "align_epochs", "align_lr", "align_covariance",
                 "head_type", "head_init", "adapt", "drift", "seed", "prompt_method", "prompt_pos_embed",
                 "embedding_key")


def build_model(options: dict[str, Any], num_classes: int, num_tasks: int | None) -> PromptedViT:
    """The model that the options describe, on the CPU, every parameter in place.

    Args:
        options: by the names of main.py's; `configs.command.default_options()` has all of them.
        num_tasks: how many tasks training goes through; None where it is not told of tasks.

    Raises:
        InputError: options that are missing; a model that is not a timm VisionTransformer or lacks what the options
            need; unusable weights.
    """
    o = options
    check_nothing_is_missing(o)
    shape = build_without_weights(resolve_model_name(o["model"])[0])
    prompt = build_prompt(o, shape, num_tasks) if isinstance(shape, VisionTransformer) else None
    reads_cls = options_that_read_cls(o, prompt)
    torch.manual_seed(o["seed"])  # timm draws random weights, where none are loaded, from the global generator
    backbone = build_backbone(o["model"], input_size=o["input_size"], pretrained=o["pretrained"],
                              init_checkpoint=o["init_checkpoint"], drop=o["drop"], drop_path=o["drop_path"],
                              needs_cls=bool(reads_cls), needs_for=" and ".join(reads_cls))
    if 0 in prompt.layers and o["prompt_pos_embed"] == "cls" and (
            backbone.pos_embed is None or backbone.no_embed_class or not backbone.has_class_token):
        raise InputError(f"--prompt_pos_embed cls: {o['model']} has no position embedding for a cls token; "
                         "use --prompt_pos_embed none.")
    if backbone.attn_pool is not None:
        backbone.reset_classifier(0, "")  # the head reads tokens, so a pooling layer of the backbone's own goes
    model = PromptedViT(backbone, prompt, build_head(o, backbone.embed_dim, num_classes), head_type=o["head_type"],
                        embedding_key=o["embedding_key"], prompt_pos_embed=o["prompt_pos_embed"],
                        freeze=EVERYTHING if o["adapt"] == "none" else tuple(o["freeze"]))
    check_freeze_words(model, o["freeze"])
    check_what_trains(model, o)
    return model


def check_nothing_is_missing(o: dict[str, Any]) -> None:
    missing = [name for name in MODEL_OPTIONS if name not in o]
    if "prompt_method" in o:
        missing += [name for name in options_of(o["prompt_method"]) if name not in o]
    if missing:
        raise InputError(f"a model cannot be built without the options {', '.join(missing)}: add them, as by "
                         "configs.command.default_options() | {...}.")


def options_that_read_cls(o: dict[str, Any], prompt: PromptMethod | None) -> list[str]:
    reading = []
    if o["head_type"] in ("token", "token+prompt"):
        reading.append(f"--head_type {o['head_type']}")
    if prompt is not None and prompt.needs_query and o["embedding_key"] == "cls":
        reading.append("--embedding_key cls")
    return reading


def build_prompt(o: dict[str, Any], shape: VisionTransformer, num_tasks: int | None) -> PromptMethod:
    """The prompt method, its values drawn by the seed alone.

    Args:
        shape: a ViT of the backbone's kind; its weights do not matter.

    Raises:
        InputError: it does not go with the ViT, the head or the run.
    """
    takes_prefixes = all(is_plain(block) for block in shape.blocks)
    attention = shape.blocks[0].attn if takes_prefixes else None
    host = Host(dim=shape.embed_dim, depth=len(shape.blocks), num_heads=attention.num_heads if attention else None,
                head_dim=attention.head_dim if attention else None, num_tasks=num_tasks, model_name=o["model"],
                generator=functools.partial(random_generator, o["seed"], "prompt"))
    prompt = build_prompt_method(o["prompt_method"], o, host)
    if "prompt" in o["head_type"] and not prompt.num_tokens:
        raise InputError(f"--head_type {o['head_type']} reads prompt outputs, which --prompt_method "
                         f"{o['prompt_method']} has not: use --head_type token.")
    return prompt


def build_head(o: dict[str, Any], dim: int, num_classes: int) -> Head:
    if o["head"] != "linear":
        # While something is learned by gradient, a linear head stands in for one that learns in closed form.
        trains = o["adapt"] == "first" or (o["adapt"] == "all" and o["drift"] is not None)
        classifier = start_linear(LinearHead(dim, num_classes), o) if trains else None
        if o["head"] == "ncm":
            return NearestMeanHead(dim, num_classes, classifier)
        return RidgeHead(dim, num_classes, o["random_features"], seed=o["seed"], classifier=classifier,
                         follows=o["drift"] == "shift")
    if o["align"]:
        return start_linear(AlignedHead(dim, num_classes, samples=o["align_samples"], epochs=o["align_epochs"],
                                        lr=o["align_lr"], full=o["align_covariance"] == "full", seed=o["seed"]), o)
    return start_linear(LinearHead(dim, num_classes), o)


def start_linear(head: LinearHead, o: dict[str, Any]) -> LinearHead:
    nn.init.zeros_(head.bias)
    if o["head_init"] == "zero":
        nn.init.zeros_(head.weight)
    else:
        nn.init.trunc_normal_(head.weight, std=0.02, generator=random_generator(o["seed"], "head"))
    return head


def check_what_trains(model: PromptedViT, o: dict[str, Any]) -> None:
    trains = sum(parameter.numel() for _, parameter in model.trained_parameters())
    if not model.head.learns_by_gradient and o["adapt"] == "all" and o["drift"] is None and trains:
        raise InputError(f"--head {o['head']} needs features that stay, but {trains} values train in every task: use "
                         "--adapt first or none, or --drift shift.")
    if o["drift"] is not None and all(name.startswith("head.") for name, _ in model.trained_parameters()):
        raise InputError(f"--drift {o['drift']}: no feature moves here, as neither prompts nor the ViT train; leave it "
                         "out.")
    must_train = model.head.learns_by_gradient or o["adapt"] == "first"
    if o["adapt"] != "none" and not trains and must_train:
        raise InputError("--freeze leaves nothing to train: take a word out.")


EVERYTHING = ("",)  # every name begins so

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
