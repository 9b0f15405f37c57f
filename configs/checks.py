"""Contradictions between options, refused before anything is loaded or written."""

from typing import Any

from configs.base import OPTIONS
from errors import InputError
from paths import check_file, outside_path

MOST_VECTORS = 1_000_000  # of a prompt pool: 3 GB for a ViT-B, and Adam keeps three times as much

Options = dict[str, Any]


def check_places(options: Options) -> None:
    """Refuse paths and modes that cannot be meant, before a folder is read for the options saved there."""
    _check_paths(options)
    _check_modes(options)


def check(options: Options) -> list[str]:
    """Warnings about options that are allowed but hardly meant. Raises InputError at the first contradiction."""
    check_places(options)
    for part in (_check_prompts, _check_pool, _check_head, _check_ranges, _check_scenario):
        part(options)
    return _warnings(options)


def _check_prompts(o: Options) -> None:
    if o["prompt_method"] == "none" and "prompt" in o["head_type"]:
        raise InputError(f"--head_type {o['head_type']} reads prompt outputs, which --prompt_method none has not: "
                         "use --head_type token.")
    if o["prompt_method"] == "coda" and (o["weight_decay"] or not o["reinit_optimizer"]):
        raise InputError("--prompt_method coda freezes the components of earlier tasks, which weight decay or an "
                         "optimizer that goes on would move: use --weight_decay 0 and --reinit_optimizer true.")
    if o["prompt_choice"] != OPTIONS["prompt_choice"].default and o["prompt_method"] != "l2p":
        raise InputError(f"--prompt_choice {o['prompt_choice']} is a control of L2P's choice: use --prompt_method l2p.")


def _check_pool(o: Options) -> None:
    is_l2p, has_pool = o["prompt_method"] == "l2p", o["prompt_method"] == "l2p" and o["prompt_pool"]
    if has_pool and o["top_k"] > o["size"]:
        raise InputError(f"--top_k {o['top_k']} is more than --size {o['size']}: a prompt cannot be chosen twice; "
                         f"use --top_k {o['size']} or less.")
    vectors = o["size"] * o["length"] * len(o["prompt_layers"])
    if o["prompt_method"] != "none" and vectors > MOST_VECTORS:
        raise InputError(f"--size {o['size']} --length {o['length']} in {len(o['prompt_layers'])} layer(s): more than "
                         f"{MOST_VECTORS} vectors in a pool; give fewer.")
    shares = has_pool or o["prompt_method"] == "dualprompt"
    for switch, has_what_it_needs in (("use_prompt_mask", has_pool), ("shared_prompt_pool", shares),
                                      ("shared_prompt_key", shares)):
        if o[switch] and not has_what_it_needs:
            remedy = "--prompt_pool true" if is_l2p else "--prompt_method l2p"
            raise InputError(f"--{switch} needs L2P's prompt pool: remove it, or use {remedy}.")
    if is_l2p and o["shared_prompt_key"] and not (o["prompt_key"] and o["prompt_choice"] == "nearest"):
        raise InputError("--shared_prompt_key needs keys of their own: use --prompt_key true and --prompt_choice "
                         "nearest.")
    if o["prompt_choice"] == "fixed" and o["use_prompt_mask"]:
        raise InputError("--use_prompt_mask gives each task prompts of its own, and --prompt_choice fixed the same to "
                         "all: leave one of them out.")
    if o["prompt_choice"] != "nearest" and not o["prompt_pool"]:
        raise InputError(f"--prompt_choice {o['prompt_choice']} needs a prompt pool: use --prompt_pool true.")


def _check_head(o: Options) -> None:
    linear = o["head"] == "linear"
    if not linear and o["replay_per_class"]:
        raise InputError(f"--replay_per_class: --head {o['head']} forgets no class and needs no replay; leave it out.")
    if not linear and o["align"]:
        raise InputError(f"--align retrains a linear head, which --head {o['head']} has not: use --head linear.")
    features_move = o["adapt"] == "all" and (o["prompt_method"] != "none" or not o["freeze"])
    if not linear and features_move and o["drift"] is None:
        raise InputError(f"--head {o['head']} needs features that stay, and with --adapt all prompts or backbone train "
                         "in every task: use --adapt first or none, or --drift shift; or --prompt_method none and a "
                         "frozen backbone (no empty --freeze).")
    if o["drift"] is not None and (o["adapt"] != "all" or (linear and not o["align"])):
        raise InputError(f"--drift {o['drift']} is for heads that keep statistics of features that move: use --head "
                         "ncm or ridge, or --align, with --adapt all; or --drift none.")
    if o["drift"] == "ignore" and linear:
        raise InputError("--drift ignore is what --align does without it: leave it out, or use --drift shift.")
    if linear and o["adapt"] == "none":
        raise InputError("--adapt none: a linear head learns by gradient alone; use --head ncm or ridge, or --adapt "
                         "all.")
    if linear and o["adapt"] == "first" and not o["align"]:
        raise InputError("--adapt first: a linear head would never learn the classes of later tasks; add --align, or "
                         "use --head ncm or ridge.")
    own = {"random_features": o["head"] == "ridge"}
    own |= dict.fromkeys(("align_samples", "align_epochs", "align_lr", "align_covariance"), o["align"])
    for name, matters in own.items():
        if not matters and o[name] != OPTIONS[name].default:
            needed = "--head ridge" if name == "random_features" else "--align"
            raise InputError(f"--{name} is of {needed}: add that, or leave it out.")


def _check_ranges(o: Options) -> None:
    for name in ("scale", "ratio"):
        low, high = o[name]
        if low > high or low <= 0:
            raise InputError(f"--{name} {low:g} {high:g}: give a lower bound above 0, then an upper bound no smaller.")
    if o["decay_rate"] > 1 and o["sched"] in ("step", "multistep"):
        raise InputError(f"--decay_rate {o['decay_rate']:g} would raise the rate with every decay of --sched "
                         f"{o['sched']}: give a factor of at most 1.")
    if o["lr_noise"] is not None and len(o["lr_noise"]) > 2:
        raise InputError("--lr_noise takes one or two numbers.")


def _check_scenario(o: Options) -> None:
    if o["shuffle"] and o["class_order"] is not None:
        raise InputError("--shuffle and --class_order exclude each other: give one of them.")
    if o["schedule"] == "gaussian":
        _check_stream(o)
        return
    if o["joint"]:
        _check_joint(o)
    for name in ("gaussian_episodes", "gaussian_steps", "gaussian_width", "gaussian_eval_every"):
        if o[name] != OPTIONS[name].default:
            raise InputError(f"--{name} is of a stream: add --schedule gaussian.")


def _check_modes(o: Options) -> None:
    if not o["output_dir"]:
        for mode in ("eval", "resume", "overwrite"):
            if o[mode]:
                raise InputError(f"--{mode} needs the run in --output_dir, which is empty.")
    modes = [f"--{mode}" for mode in ("eval", "resume", "overwrite", "speed_test_only") if o[mode]]
    if o["eval"] and o["speed_test"]:
        modes.append("--speed_test")
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other: give one of them.")


def _warnings(o: Options) -> list[str]:
    restarts = o["reinit_optimizer"] and o["schedule"] == "tasks"
    if o["sched"] not in ("constant", "quarter_cosine") and restarts and o["warmup_epochs"] >= o["epochs"]:
        return [f"--sched {o['sched']}: all {o['epochs']} epochs of a task are warm-up (--warmup_epochs "
                f"{o['warmup_epochs']}), so the schedule itself never begins."]
    return []


def _check_paths(o: Options) -> None:
    """Refuse pipes, devices and the like, before anything waits for them."""
    for name in ("data_path", "init_checkpoint", "class_order", "output_dir"):
        path = outside_path(f"--{name}", o[name]) if o[name] else None
        if name == "output_dir" and path and path.is_file():
            raise InputError(f"--output_dir {o[name]} is a file, and a run needs a folder: name another.")
    if o["dist_url"].startswith("file://"):
        check_file(outside_path("--dist_url", o["dist_url"].removeprefix("file://")), f"--dist_url {o['dist_url']}")


def _check_joint(o: Options) -> None:
    """Refuse what belongs to a sequence of tasks, which joint training has not; all of it in one sentence."""
    switches = [name for name in ("task_inc", "use_prompt_mask", "shared_prompt_pool", "shared_prompt_key", "align")
                if o[name]]
    set_otherwise, remedies = [f"--{name}" for name in switches], [f"--no-{name}" for name in switches]
    if o["replay_per_class"]:
        set_otherwise.append(f"--replay_per_class {o['replay_per_class']}")
        remedies.append("--replay_per_class 0")
    if o["head"] != "linear":
        set_otherwise.append(f"--head {o['head']}")
        remedies.append("--head linear")
    if o["drift"] is not None:
        set_otherwise.append(f"--drift {o['drift']}")
        remedies.append("--drift none")
    if remedies:
        raise InputError(f"--joint trains on all tasks at once, where {', '.join(set_otherwise)} has no meaning: take "
                         f"out what you gave of it, and for what the experiment sets add {' '.join(remedies)}.")


def _check_stream(o: Options) -> None:
    """Refuse what needs to know of tasks, of which a stream has none; all of it in one sentence."""
    switches = ("task_inc", "use_prompt_mask", "shared_prompt_pool", "shared_prompt_key")
    remedies = [f"--no-{name}" for name in switches if o[name]]
    remedies += [f"--{name} none" for name in ("num_tasks", "classes_per_task") if o[name] is not None]
    if o["replay_per_class"]:
        remedies.append("--replay_per_class 0")
    if o["head"] != "linear":
        remedies.append("--head linear")
    if o["prompt_method"] in ("dualprompt", "coda"):  # their prompts belong to tasks
        remedies.append("--prompt_method l2p")
    remedies += [f"--no-{name}" for name in ("align", "joint") if o[name]]
    if o["adapt"] != "all":
        remedies.append("--adapt all")
    if o["drift"] is not None:
        remedies.append("--drift none")
    if remedies:
        raise InputError(f"--schedule gaussian has no tasks, of which other options need to know: add "
                         f"{' '.join(remedies)}.")
