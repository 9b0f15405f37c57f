"""Names in weight files: where in a file the ViT is, and what timm calls the tensors of Hugging Face's transformers."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

# Every ViT that timm can convert has one of these modules; what stands before it stands before all of its names.
_VIT = re.compile(
    r"(?P<root>|.*?\.)"
    r"(patch_embed|embeddings\.patch_embeddings|visual\.conv1|beit3|preprocessor\.patchifier|radio_model)\."
)
# Of several ViTs in one file the one to use: averaged weights, as in timm's own loader, then what the methods that
# train two networks evaluate: the teacher of DINO, the base encoder of MoCo v3, the context encoder of I-JEPA.
_PREFERRED = ("state_dict_ema", "model_ema", "ema_model", "ema", "teacher", "base_encoder", "encoder")
# A backbone has neither a classifier nor the decoder of a masked autoencoder. The mask token is of training alone.
_NOT_OF_A_BACKBONE = re.compile(
    r"(head|head_dist|pre_logits|fc|classifier|cls_classifier|distillation_classifier|pooler)\.|decoder_|mask_token$"
)
_MASK = "mask_token"
# Hugging Face's ViT, DeiT, ViT-MAE and DINOv2 in two layouts: of transformers before 5, which 5 still saves, and of 5.
_HUGGING_FACE = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.", ""),
        (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
    )
]


class SeveralViTsError(ValueError):
    """A file holds more than one ViT, and nothing says which is meant; its text lists them."""


def named_tensors(content: object) -> dict[str, Tensor]:
    """All tensors in dictionaries within dictionaries, by keys joined with dots; a dictionary met again is skipped."""
    found, seen = {}, set()

    def visit(mapping: dict, prefix: str) -> None:
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, dict) and id(value) not in seen:
                visit(value, f"{prefix}{key}.")

    if isinstance(content, dict):
        visit(content, "")
    return found


def extract_vit(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the one ViT in a file, named from that ViT on, and the names of the rest, shortened.

    Wrappers of training scripts (`state_dict`, `model.`, `module.`, `backbone.` ...) go. What a backbone has no use for
    is left out, but for a mask token: timm knows DINOv2 by it. No tensors at all if there is no ViT.

    Raises:
        SeveralViTsError: there are several, and none that is to be preferred.
    """
    roots = {match["root"] for match in map(_VIT.match, tensors) if match}
    if not roots:
        return {}, []
    root = _choose(sorted(roots))
    beside = [_shortened(name, root) for name in tensors if not name.startswith(root)]
    vit = _from_hugging_face({name.removeprefix(root): tensors[name] for name in tensors if name.startswith(root)})
    unused = [name for name in vit if _NOT_OF_A_BACKBONE.match(name)]
    for name in unused:
        if name != _MASK:
            del vit[name]
    return vit, list(dict.fromkeys([name.partition(".")[0] for name in unused] + beside))


def without_head(names: Iterable[str]) -> list[str]:
    """The names that are not of a classifier or a decoder."""
    return [name for name in names if not _NOT_OF_A_BACKBONE.match(name)]


def _choose(roots: list[str]) -> str:
    for word in _PREFERRED:
        chosen = [root for root in roots if word in root.split(".")]
        if len(chosen) == 1:
            return chosen[0]
        roots = chosen or roots
    if len(roots) > 1:
        raise SeveralViTsError(", ".join(root.removesuffix(".") or "one without a prefix" for root in roots))
    return roots[0]


def _shortened(name: str, root: str) -> str:
    """The first parts of a name up to where it leaves the root: `model.projector` of `model.projector.0.weight`."""
    parts = name.split(".")
    for count, (own, of_root) in enumerate(zip(parts, root.split("."), strict=False), start=1):
        if own != of_root:
            return ".".join(parts[:count])
    return name


def _from_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by timm's names; as given where no name is of that layout."""
    if not any(name.startswith("embeddings.patch_embeddings.") for name in tensors):
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in _HUGGING_FACE:
            name = pattern.sub(ours, name)
        renamed[name] = tensor
    for query in [name for name in renamed if ".attn.q." in name]:
        names = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        shapes = {renamed[name].shape if name in renamed else None for name in names}
        if len(shapes) == 1 and renamed[query].ndim:  # else the check of names says what is wrong
            parts = [renamed.pop(name) for name in names]
            renamed[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return renamed
