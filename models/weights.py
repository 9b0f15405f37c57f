"""Backbones by name: which timm ViT, with which weights, or one sentence that says why not."""

import difflib
import functools
import hashlib
import itertools
import warnings
from contextlib import suppress

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models.vision_transformer import VisionTransformer

from errors import InputError
from models.weight_files import first_line, load_weights, weight_file

# Both reference implementations start from the original ViT-B_16.npz; timm's default tag under this name is another.
REFERENCE_TAGS = {"vit_base_patch16_224": "orig_in21k"}
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_model_name(name: str) -> tuple[str, str | None]:
    """The timm name with its tag made explicit, and one line of warning if the weights behind it deserve one.

    `vit_base_patch16_224` alone is the ImageNet-21k model of the L2P references; another name without a tag gets
    timm's default tag, a deprecated alias what it stands for now. Models registered without any tag pass as written.

    Raises InputError for a name or a tag that timm does not know.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() prints those there are."
        raise InputError(f"--model {name} is not a model that timm {timm.__version__} knows: {hint}")
    if not timm.list_models(architecture):  # not listed although known: a deprecated alias
        current = build_without_weights(architecture).pretrained_cfg
        architecture, tag = current["architecture"], tag or current["tag"]
    tag = tag or REFERENCE_TAGS.get(architecture) or _default_tag(architecture)
    if not tag:
        return architecture, None

    resolved = f"{architecture}.{tag}"
    known = timm.list_models(architecture, include_tags=True)
    if resolved not in known:
        tags = ", ".join(each.partition(".")[2] for each in known if "." in each) or "none"
        raise InputError(f"--model {name}: timm {timm.__version__} has no tag {tag} of {architecture}; it has: {tags}.")
    if "in1k" not in tag:
        return resolved, None
    return resolved, (
        f"The weights {resolved} were trained on ImageNet-1k, whose labels overlap with those of benchmarks such as "
        "CIFAR-100 and ImageNet-R: accuracies do not compare with those of ImageNet-21k weights."
    )


def build_backbone(
    name: str,
    *,
    input_size: int,
    pretrained: bool,
    init_checkpoint: str | None,
    drop: float,
    drop_path: float,
    needs_cls: bool,
    needs_for: str,
) -> VisionTransformer:
    """The timm ViT `name` without a classifier, float32, on the CPU, in eval mode.

    Weights come from the file `init_checkpoint` if one is given (nothing is downloaded then), else from timm's hub if
    `pretrained`, else from timm's initialisation under torch's global seed. Position embeddings of another grid are
    resampled by timm. `drop` is the dropout rate in [0, 1) after the position embedding and in every block (MLP and
    attention projection), `drop_path` the stochastic depth rate of the last block. `needs_cls` says that the caller
    reads the cls token, `needs_for` names the option that makes it so. The model's attribute `left_out` is one line of
    warning about what the file holds besides a backbone, or None.

    Raises InputError, before any weight is read, for a model that is no timm VisionTransformer, lacks a needed cls
    token or has patches that do not tile `input_size` pixels; afterwards for weights that are absent or do not fit.
    """
    name, _ = resolve_model_name(name)
    _refuse_unsupported(name, input_size, needs_cls, needs_for)
    options = {
        "num_classes": 0,
        "img_size": input_size,
        "pos_drop_rate": drop,
        "proj_drop_rate": drop,
        "drop_path_rate": drop_path,
    }
    left_out = None
    if init_checkpoint:
        path = weight_file(init_checkpoint)
        model = timm.create_model(name, **options)
        left_out = load_weights(model, path, name)
    elif pretrained:
        model = _create_pretrained(name, options)
    else:
        model = timm.create_model(name, **options)
    model.left_out = left_out
    return model.float().eval()


def model_normalisation(backbone_or_name: VisionTransformer | str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel (mean, std) of [0, 1] pixels that the model's weights were trained with (`--input_norm model`)."""
    model = backbone_or_name
    if isinstance(model, str):
        model = build_without_weights(resolve_model_name(model)[0])
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def backbone_fingerprint(backbone: torch.nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers, to tell one backbone from another."""
    digest = hashlib.sha256()
    for key, tensor in itertools.chain(backbone.named_parameters(), backbone.named_buffers()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _default_tag(architecture: str) -> str | None:
    cfg = timm.get_pretrained_cfg(architecture)
    return cfg.tag if cfg else None


@functools.cache
def build_without_weights(name: str) -> torch.nn.Module:
    """The model on the meta device: its class and sizes in a moment, whatever its size, and no random number drawn."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's remark that a name is deprecated: we record the current one
        return timm.create_model(name)


def _refuse_unsupported(name: str, input_size: int, needs_cls: bool, needs_for: str) -> None:
    model = build_without_weights(name)
    if not isinstance(model, VisionTransformer):
        raise InputError(
            f"--model {name} is a {type(model).__name__}, and only models of timm's class VisionTransformer are "
            "accepted (vit_*, deit_*, deit3_*, also with the weights of dinov2, clip or mae)."
        )
    if needs_cls and not model.has_class_token:
        raise InputError(
            f"--model {name} has no cls token, which {needs_for} reads: take a model that has one, or options that "
            "need none (--embedding_key mean|max|mean_max and --head_type prompt|gap)."
        )
    patch = max(model.patch_embed.feat_ratio(as_scalar=False))
    if input_size < patch or input_size % patch:
        below = max(patch, input_size // patch * patch)
        raise InputError(
            f"--input_size {input_size} is not a multiple of the {patch}-pixel patches of --model {name}: "
            f"take {below} or {below + patch}."
        )


def _create_pretrained(name: str, options: dict) -> VisionTransformer:
    if not timm.is_model_pretrained(name):
        raise InputError(
            f"timm has no pretrained weights of {name}: give a weight file with --init_checkpoint FILE, "
            "or --pretrained false for random weights."
        )
    try:
        _refuse_unreachable_hub(timm.get_pretrained_cfg(name).hf_hub_id)
        return timm.create_model(name, pretrained=True, **options)
    # Network, proxy, hub, disk and file format each raise their own class, none of them timm's.
    except Exception as error:
        raise InputError(
            f"The pretrained weights of {name} could not be obtained ({first_line(error)}): give a weight file with "
            "--init_checkpoint FILE (.npz, .safetensors or .pth), or --pretrained false for random weights."
        ) from error


def _refuse_unreachable_hub(hub_id: str | None) -> None:
    """Raise within 10 seconds if weights that are not cached cannot be asked for.

    huggingface_hub itself repeats every failing request for half a minute or more, and has no setting for that.
    """
    if not hub_id or any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in HUB_FILES):
        return
    with suppress(HfHubHTTPError):  # an answer, if not a good one: timm tries the other file name, then reports
        get_hf_file_metadata(hf_hub_url(hub_id, HUB_FILES[0]), timeout=10)
