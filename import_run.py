"""Make a run of this program from one of the PyTorch re-implementation of L2P.

    python import_run.py REFERENCE_DIR OUTPUT_DIR --data-path DIR [--dataset NAME] [--input_norm imagenet] [...]
    python main.py --eval --output_dir OUTPUT_DIR

REFERENCE_DIR is its --output_dir, with checkpoint/task1_checkpoint.pth and so on. The images are read because a run
records which they are; nothing is trained or evaluated here. The first --eval writes the run's summary.json, too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.checks import check
from configs.command import build_parser
from configs.importing import ABOUT, PROGRAM, WORDS, Import, read_import, translated
from errors import InputError
from paths import outside_path

if TYPE_CHECKING:
    from torch import Tensor

    from models import PromptedViT

BACKBONE = "backbone.safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Import one run. Returns the exit code: 0; 1 where it cannot be written; 2 for bad input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "-h" in argv or "--help" in argv:
            build_parser(None, program=PROGRAM, words=WORDS, about=ABOUT).print_help()
            return 0
        import_run(read_import(argv))
        return 0
    except InputError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def import_run(asked: Import) -> None:
    """Read everything, then write the run."""
    import run_folder

    reference = outside_path("REFERENCE_DIR", asked.reference_dir)
    folder = outside_path("OUTPUT_DIR", asked.output_dir)
    run_folder.check_writable(asked.output_dir)
    if run_folder.holds_run(asked.output_dir):
        raise InputError(f"{folder} already holds a run: name another folder.")

    import torch  # late, so that a mistyped option is answered at once

    from build import read_scenario
    from continual_datasets.readers import OWN_FOLDER, names_of
    from distributed import Processes
    from models import build_model
    from models.reference_files import learned_and_backbone, read_reference_file, reference_files
    from records import describe_run

    files = [read_reference_file(path) for path in reference_files(reference).values()]
    options, unknown = translated(files[-1].args, asked.command.given)
    if unknown:
        warn(f"options of the reference that mean nothing here: {', '.join(unknown)}.")
    if not any(name.startswith("prompt.") for name in files[-1].tensors):
        options |= {"prompt_method": "none"}
    options["output_dir"] = str(folder)
    for warning in check(options):
        warn(warning)

    processes = Processes()
    # The reference turns no photo by its EXIF.
    turn_photos = OWN_FOLDER not in names_of(options["dataset"])
    scenario = read_scenario(options | {"download": asked.command.options["download"]}, turn_photos)
    check_tasks(len(files), len(scenario.tasks), options)
    model = build_model(options | {"pretrained": False}, scenario.num_classes, scenario.tasks_known_in_training)
    states = [learned_and_backbone(file, model) for file in files]
    take_backbone(model, [backbone for _, backbone in states], options, folder)

    config = describe_run(asked.command.experiment, options, model, scenario, processes, torch.device("cpu"), "fp32")
    config["imported_from"] = reference.name
    write_run(folder, config, scenario, [learned for learned, _ in states], model)
    print(f"{len(files)} of {len(scenario.tasks)} tasks, {scenario.num_classes} classes: python main.py --eval "
          f"--output_dir {folder}")


def check_tasks(found: int, expected: int, options: dict[str, Any]) -> None:
    if found > expected:
        raise InputError(f"the files are of {found} tasks, and --num_tasks {options['num_tasks']} makes {expected} of "
                         "these data: give the --num_tasks and the --data-path of the reference's run.")
    if found < expected:
        warn(f"{found} of {expected} tasks have files: main.py --eval needs them all, predict.py takes what is there.")


def take_backbone(model: "PromptedViT", backbones: list[dict[str, "Tensor"]], options: dict[str, Any],
                  folder: Path) -> None:
    """Let the model, and `options`, have the backbone that the files have in common.

    With --init_checkpoint and the same weights in it, that file stays the source; otherwise they go into a file of the
    run. Of a backbone that trained, what did is in each task's state, and the query needs it as it was before.

    Raises:
        InputError: backbones of the files, or of --init_checkpoint, that ought to be one differ.
    """
    import torch

    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    frozen = backbones[0].keys() - trained
    for number, backbone in enumerate(backbones, start=1):
        if not all(torch.equal(backbone[name], backbones[0][name]) for name in frozen):
            raise InputError(f"the frozen backbones of task 1 and task {number} differ: the files are of several runs.")
    own = model.backbone.state_dict()
    same = options["init_checkpoint"] and all(torch.equal(own[name], backbones[0][name]) for name in frozen)
    if trained and model.prompt.needs_query:
        if not same:
            raise InputError("--init_checkpoint is missing, or has other weights than the reference began with: its "
                             "ViT was trained, and its files do not hold the pretrained one that reads images for the "
                             "choice of prompts.")
        return
    if same:
        return
    if options["init_checkpoint"]:
        warn(f"the weights in {options['init_checkpoint']} are not those of the files, which go into "
             f"{folder / BACKBONE}.")
    model.backbone.load_state_dict(backbones[0])
    options["init_checkpoint"] = str((folder / BACKBONE).absolute())


def write_run(folder: Path, config: dict[str, Any], scenario: Any, states: list[dict[str, "Tensor"]],
              model: "PromptedViT") -> None:
    from safetensors.torch import save

    from continual_datasets import manifest_bytes
    from kept_files import KeptFiles
    from output_lock import OutputLock
    from utils import save_checkpoint, write_atomically

    files = KeptFiles(folder, warn)
    lock = OutputLock(str(folder))
    try:
        if config["options"]["init_checkpoint"] == str((folder / BACKBONE).absolute()):
            tensors = {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}
            write_atomically(folder / BACKBONE, save(tensors))
        made_by = config["model"] | {name: config[name] for name in ("world_size", "data_sha256")}
        for task, state in enumerate(states):
            save_checkpoint(folder / "checkpoint" / f"{scenario.name_of(task)}.pth",
                            {"model": state, "task": task, "made_by": made_by})
        if scenario.record:
            files.write_json("scenario.json", scenario.record)
        if (manifest := manifest_bytes(scenario)) is not None:
            files.write("manifest.json.gz", manifest)
        files.write_json("config.json", config)
    finally:
        lock.release()


def warn(text: str) -> None:
    print(f"{PROGRAM}: warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
