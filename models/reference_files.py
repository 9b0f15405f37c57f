"""What the PyTorch re-implementation of L2P writes after each task: `taskN_checkpoint.pth`, and what is in it.

A dictionary of `model` (the state of the whole ViT with prompts and head), `optimizer`, `epoch` and `args` (its options
in an argparse.Namespace). Its `pos_embed` is longer than a ViT's: the position of the cls token comes once for that
token and once for each prompt vector, then those of the patches.

Shapes: D width, G patches.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from errors import InputError
from models.prompted_vit import PromptedViT

FILE_NAME = re.compile(r"task(\d+)_checkpoint\.pth")
# The reference's names -> ours, of what is learned besides the backbone.
LEARNED = {"prompt.prompt_key": "prompt.keys_MD", "head.weight": "head.weight", "head.bias": "head.bias"}
PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class ReferenceFile:
    """The content of one file."""

    path: Path
    args: dict[str, Any]
    tensors: dict[str, Tensor]


def reference_files(folder: Path) -> dict[int, Path]:
    """Task, from 1 -> its file, in `folder/checkpoint` or `folder`. Raises InputError where there is none."""
    for place in (folder / "checkpoint", folder):
        found = {int(name[1]): path for path in sorted(place.glob("*.pth")) if (name := FILE_NAME.fullmatch(path.name))}
        if found:
            if missing := set(range(1, max(found) + 1)) - found.keys():
                raise InputError(f"{place} lacks task{min(missing)}_checkpoint.pth: put it back.")
            return dict(sorted(found.items()))
    raise InputError(f"{folder} holds no task1_checkpoint.pth, nor does a folder checkpoint in it: give the "
                     "--output_dir of a run of the PyTorch re-implementation.")


def read_reference_file(path: Path) -> ReferenceFile:
    """Read tensors and plain values; whatever else a pickle may carry is not run.

    Raises:
        InputError: another file, a damaged one, or one that carries code.
    """
    try:
        # Options come in an argparse.Namespace, which is read as a plain one.
        with torch.serialization.safe_globals([(SimpleNamespace, "argparse.Namespace")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} carries more than tensors, plain values and an argparse.Namespace, and such code is "
                         "never run here, or it is damaged: take the file that the reference wrote.") from error
    except Exception as error:  # whatever damaged bytes make of torch
        raise InputError(f"{path} cannot be read as a file of torch.save: it is damaged or of another kind; copy it "
                         "anew.") from error
    if not isinstance(content, dict) or not isinstance(content.get("args"), SimpleNamespace):
        raise InputError(f"{path} is no checkpoint of the PyTorch re-implementation: it has no args.")
    args, tensors = vars(content["args"]), content.get("model")
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise InputError(f"{path} is no checkpoint of the PyTorch re-implementation: it has no model of tensors.")
    if strange := [name for name, value in args.items() if not _is_plain(value)]:
        raise InputError(f"{path} has options that are no plain values: {', '.join(strange[:5])}.")
    return ReferenceFile(path, args, tensors)


def _is_plain(value: Any) -> bool:
    return all(isinstance(part, PLAIN) for part in (value if isinstance(value, list | tuple) else [value]))


def learned_and_backbone(file: ReferenceFile, model: PromptedViT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state that `model.load_learned_state` takes, and the state of the backbone.

    Raises:
        InputError: the file is of another model; the text names what differs.
    """
    prompt = "prompt.prompts_MLD" if model.prompt.pool_size else "prompt.prompt_LD"
    names = LEARNED | {"prompt.prompt": prompt}
    ours = {names[name]: tensor for name, tensor in file.tensors.items() if name in names}
    wanted = model.backbone.state_dict()
    backbone = {name: tensor for name, tensor in file.tensors.items() if name not in names}
    if "pos_embed" in backbone and wanted.get("pos_embed") is not None:
        backbone["pos_embed"] = _without_prompt_positions(file.path, backbone["pos_embed"], wanted["pos_embed"],
                                                          model.prompt.num_tokens)
    learned = model.learned_state()
    everything = ours | {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    expected = learned | {f"backbone.{name}": tensor for name, tensor in wanted.items()}
    differing = sorted(everything.keys() ^ expected.keys()) + sorted(
        name for name in everything.keys() & expected.keys() if everything[name].shape != expected[name].shape)
    if differing:
        shown = ", ".join(differing[:5] + ["…"] * (len(differing) > 5))
        raise InputError(f"{file.path} does not fit the model of these options: {shown} differ in name or shape; give "
                         "--model, --input_size or the --data-path of the same classes.")
    return {name: everything[name] for name in learned}, backbone


def _without_prompt_positions(path: Path, given_1TD: Tensor, wanted_1TD: Tensor, inserted: int) -> Tensor:
    """[1, 1 + inserted + G, D] -> [1, 1 + G, D]; as it is where its shape is another."""
    _, wanted, width = wanted_1TD.shape
    if given_1TD.shape != (1, wanted + inserted, width):
        return given_1TD
    if not torch.equal(given_1TD[:, 1:1 + inserted], given_1TD[:, :1].expand(-1, inserted, -1)):
        raise InputError(f"{path} has position embeddings of prompts that differ from that of the cls token, as when "
                         "pos_embed is not in --freeze: this program has no such positions.")
    return torch.cat([given_1TD[:, :1], given_1TD[:, 1 + inserted:]], dim=1)
