"""Weight files: official JAX .npz, safetensors and PyTorch state dicts, checked name by name and shape by shape."""

import math
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from errors import InputError
from models.weight_names import SeveralViTsError, extract_vit, named_tensors, without_head
from paths import outside_path

PROGRAM_FOLDER = Path(__file__).parent.parent
WEIGHT_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin")
# The head of the weights' own classes: a backbone has none, so these may be in a file and are not read.
JAX_HEADS = ("head/", "pre_logits/")
# What a pickled numpy number is made of: an accuracy beside the tensors is no code. numpy 1 and 2 name it differently.
NUMPY_SCALARS = [np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd")]
NUMPY_SCALARS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
PATCHES = "patch_embed.proj.weight"
LISTED = 10

# Modules of the official JAX files, which hold plain ViTs, and timm's: of the whole model, and of one encoder block.
JAX_MODULES = {"embedding": "patch_embed.proj", "Transformer/encoder_norm": "norm"}
JAX_BLOCK_MODULES = {
    "LayerNorm_0": "norm1",
    "MultiHeadDotProductAttention_1/query": "attn.qkv",
    "MultiHeadDotProductAttention_1/key": "attn.qkv",
    "MultiHeadDotProductAttention_1/value": "attn.qkv",
    "MultiHeadDotProductAttention_1/out": "attn.proj",
    "LayerNorm_2": "norm2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
JAX_POSITIONS = "Transformer/posembed_input/pos_embedding"


def load_weights(model: VisionTransformer, path: Path, name: str) -> str | None:
    """Fill `model` from a file that `weight_file` let pass; names and shapes must be exactly the model's.

    Returns one line that says what was left out of the file, such as a classifier or a decoder; None if nothing was.

    Raises InputError for an unreadable file, one that says which keys are missing, unexpected or misshapen, or one with
    values that are not finite.
    """
    load = _load_jax if path.suffix.lower() == ".npz" else _load_state_dict
    left_out = load(model, path, name)
    not_finite = [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if not_finite:
        raise InputError(
            f"--init_checkpoint {path} holds values that are NaN or infinite, or too large for float32, in "
            f"{_listing(not_finite)}: take another copy of the weights."
        )
    if not left_out:
        return None
    return f"--init_checkpoint {path} holds more than a backbone; left out: {_listing(left_out)}."


def weight_file(init_checkpoint: str) -> Path:
    """The file to read, looked for from the working directory and then from the program's folder.

    Raises InputError where there is none, or none of a known format.
    """
    path = outside_path("--init_checkpoint", init_checkpoint)
    if not path.exists() and (PROGRAM_FOLDER / path).exists():
        path = PROGRAM_FOLDER / path  # the demo's weights, from whatever folder the demo is started
    if path.is_dir():
        raise InputError(f"--init_checkpoint {path} is a directory: name the weight file in it.")
    if not path.exists():
        raise InputError(f"--init_checkpoint {path} does not exist: check the path.")
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise InputError(f"--init_checkpoint {path} must be one of {', '.join(WEIGHT_SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise InputError(f"--init_checkpoint {path} is empty: copy or download it again.")
    return path


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A damaged file makes its reader raise nearly anything; whatever it is, the file is what has to change."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"--init_checkpoint {path} cannot be read as {path.suffix} ({first_line(error)}): it is damaged or of "
            "another format."
        ) from error


def _load_state_dict(model: VisionTransformer, path: Path, name: str) -> list[str]:
    """Load a PyTorch or safetensors file whose names, after conversion, are exactly the model's."""
    source, left_out = _read_state_dict(path)
    try:
        # The copy is for timm's converters, which pop from what they are given.
        found = checkpoint_filter_fn(dict(source), model, adapt_layer_scale=True)
    except (RuntimeError, KeyError, IndexError, ValueError):
        found = source  # weights that timm cannot convert are of another model: the comparison below says where
    wanted = model.state_dict()
    found = {key: found[key] for key in without_head(found)}

    wrong = []
    for key in filter(found.__contains__, wanted):
        # Shown as in the file, before timm resampled it.
        given, target = source.get(key, found[key]), wanted[key]
        if found[key].shape != target.shape or found[key].is_floating_point() != target.is_floating_point():
            wrong.append((key, _size(given.shape, given.dtype), _size(target.shape, target.dtype)))
    kernels = {tuple(tensor.shape[-2:]) for tensor in source.values() if tensor.ndim == 4}
    kernel = tuple(wanted[PATCHES].shape[-2:]) if PATCHES in wanted else None
    # timm would resample the patches of another size without a word, but that is another model.
    if kernel and kernels and kernel not in kernels:
        wrong.append((PATCHES, _size(kernels.pop(), "float"), _size(kernel, "float")))
    _refuse_misfit(path, name, wanted, found, wrong)
    with _reading(path):  # of a sparse tensor, for example, nothing can be copied
        model.load_state_dict(found)
    return left_out


def _read_state_dict(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the ViT in the file by timm's names, and what else there is."""
    with _reading(path):
        content = load_file(path) if path.suffix.lower() == ".safetensors" else _unpickle_tensors(path)
        tensors = named_tensors(content)
    if not tensors:
        raise InputError(f"--init_checkpoint {path} is no dictionary of tensors by name: save a model's state_dict().")
    try:
        vit, left_out = extract_vit(tensors)
    except SeveralViTsError as error:
        raise InputError(
            f"--init_checkpoint {path} holds several ViTs ({error}): save the state_dict() of the one to use alone."
        ) from error
    if not vit:
        raise InputError(
            f"--init_checkpoint {path} holds no ViT of a known layout, for none of its tensors belongs to a patch "
            f"embedding; there are {_listing(list(tensors))}."
        )
    return vit, left_out


def _unpickle_tensors(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "argparse.Namespace" in str(error):
            raise InputError(
                f"--init_checkpoint {path} is a training checkpoint with its argparse options inside, such as "
                "task1_checkpoint.pth of the PyTorch L2P code: give the weights of the backbone alone, or make a run "
                "of its folder with import_run.py."
            ) from error
        if "GLOBAL" in str(error):
            raise InputError(
                f"--init_checkpoint {path} carries pickled code, which is never run here: save the model's "
                "state_dict() alone, best as .safetensors."
            ) from error
        # torch's own text would advise to switch the check off.
        raise ValueError("not a pickle of tensors") from error


def _load_jax(model: VisionTransformer, path: Path, name: str) -> list[str]:
    """Load an official JAX ViT (github.com/google-research/vision_transformer) with timm's loader.

    That loader takes what it looks for and says nothing of the rest, so names and shapes are compared here first.
    """
    wanted = _jax_shapes(model, path, name)
    found = _read_jax(path)
    left_out = list(dict.fromkeys(key.split("/")[0] for key in found if key.startswith(JAX_HEADS)))
    found = {key: value for key, value in found.items() if not key.startswith(JAX_HEADS)}

    blocks = {key.split("/")[1] for key in found if key.startswith("Transformer/encoderblock_")}
    if len(blocks) != len(model.blocks):
        raise InputError(
            f"--init_checkpoint {path} does not fit --model {name}: it holds {len(blocks)} encoder blocks of the "
            f"official JAX layout, and the model has {len(model.blocks)}."
        )
    wrong = []
    for key in filter(found.__contains__, wanted):
        shape, dtype = found[key]
        fits = shape == wanted[key] or (key == JAX_POSITIONS and _is_square_grid(shape, model))
        if not fits or dtype.kind != "f":
            wrong.append((key, _size(shape, dtype), _size(wanted[key], "float32")))
    _refuse_misfit(path, name, wanted, found, wrong)
    with np.errstate(over="ignore"):  # of float64: what became infinite is refused by the caller
        model.load_pretrained(str(path))
    return left_out


def _jax_shapes(model: VisionTransformer, path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """The arrays that fill the model, with their shapes in JAX's order of axes."""
    modules = JAX_MODULES | {
        f"Transformer/encoderblock_{index}/{theirs}": f"blocks.{index}.{ours}"
        for index in range(len(model.blocks))
        for theirs, ours in JAX_BLOCK_MODULES.items()
    }
    keys = {"cls": "cls_token", JAX_POSITIONS: "pos_embed"}
    for theirs, ours in modules.items():
        keys[f"{theirs}/{'scale' if 'norm' in ours else 'kernel'}"] = f"{ours}.weight"
        keys[f"{theirs}/bias"] = f"{ours}.bias"
    state = model.state_dict()
    differing = sorted(state.keys() ^ set(keys.values()))
    if differing:
        raise InputError(
            f"--init_checkpoint {path}: the official .npz files hold plain ViTs, and --model {name} differs from "
            f"one in {_listing(differing)}; give .safetensors or .pth."
        )
    heads, head_dim = model.blocks[0].attn.num_heads, model.blocks[0].attn.head_dim
    return {array: _jax_shape(key, state[key].shape, heads, head_dim) for array, key in keys.items()}


def _jax_shape(key: str, shape: torch.Size, heads: int, head_dim: int) -> tuple[int, ...]:
    if key.endswith("qkv.weight"):
        return (shape[1], heads, head_dim)
    if key.endswith("qkv.bias"):
        return (heads, head_dim)
    if key.endswith("attn.proj.weight"):
        return (heads, head_dim, shape[0])
    if key == PATCHES:
        out, channels, height, width = shape
        return (height, width, channels, out)
    return tuple(reversed(shape)) if len(shape) == 2 else tuple(shape)


def _read_jax(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of every weight array of the file; each is read once, so that damage shows before loading."""
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        prefix = "opt/target/" if "opt/target/embedding/kernel" in arrays else ""
        return {
            key.removeprefix(prefix): (arrays[key].shape, arrays[key].dtype) for key in arrays if key.startswith(prefix)
        }


def _is_square_grid(shape: tuple[int, ...], model: VisionTransformer) -> bool:
    """Whether timm can resample position embeddings of this shape to the model's grid."""
    if len(shape) != 3 or shape[0] != 1 or shape[2] != model.embed_dim:
        return False
    patches = shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def _refuse_misfit(
    path: Path, name: str, wanted: Iterable[str], found: Iterable[str], wrong: list[tuple[str, str, str]]
) -> None:
    """`wanted` are the model's names, `found` the file's, `wrong` holds (name, size in the file, size in the model)."""
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    sizes = [f"{key} ({in_file} in the file, {in_model} in the model)" for key, in_file, in_model in wrong]
    complaints = [
        f"{title} {_listing(keys)}"
        for title, keys in (("missing keys:", missing), ("unexpected keys:", unexpected), ("wrong shapes:", sizes))
        if keys
    ]
    if complaints:
        raise InputError(f"--init_checkpoint {path} does not fit --model {name}: {'; '.join(complaints)}.")


def _listing(entries: list[str]) -> str:
    shown = ", ".join(entries[:LISTED])
    return f"{shown} ... and {len(entries) - LISTED} more" if len(entries) > LISTED else shown


def _size(shape: Iterable[int], dtype: object) -> str:
    """For example '1x197x768', with the type where it is none of floating point."""
    text = "x".join(map(str, shape)) or "scalar"
    return text if "float" in str(dtype) else f"{text} {dtype}"


def first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
