"""The command line of `predict.py`: a run, images, and how to go about them."""

from dataclasses import dataclass, replace
from typing import Any

from configs.base import OPTIONS
from configs.command import words_and_options
from configs.option import Option
from errors import InputError

PROGRAM = "predict.py"
WORDS = "RUN_DIR IMAGE_OR_FOLDER ..."
ABOUT = ("What a run says of images that it has not seen: the five most probable classes of each, and the prompts that "
         "it chose.")

_path = OPTIONS["init_checkpoint"]
PREDICT_GROUPS: dict[str, list[Option]] = {
    "what is asked": [
        replace(OPTIONS["num_tasks"], name="task", help="the state after task N; none: the last that was saved"),
        replace(_path, help="the backbone's weights, where they no longer lie where the run found them"),
    ],
    "what comes out": [
        replace(_path, name="csv", help="a file for the answers, a line for each image"),
        replace(_path, name="json", help="a file for the answers, an object for each image"),
    ],
    "how": [
        OPTIONS["device"],
        replace(OPTIONS["batch_size"], help="images at a time; each chooses its prompts alone: it changes no answer"),
        replace(OPTIONS["num_workers"], help="processes that decode images"),
    ],
}


@dataclass(frozen=True)
class Question:
    """A command line of predict.py, read."""

    run_dir: str
    images: list[str]
    """Files and folders."""
    options: dict[str, Any]


def read_question(argv: list[str]) -> Question:
    """Read a command line of predict.py. Raises InputError for one that is not complete, or unknown options."""
    words, options = words_and_options(argv, PREDICT_GROUPS, PROGRAM)
    if len(words) < 2:
        raise InputError(f"{'an image or a folder of images' if words else 'the folder of a run'} is missing: the "
                         f"command is {PROGRAM} {WORDS}.")
    return Question(words[0], words[1:], options)
