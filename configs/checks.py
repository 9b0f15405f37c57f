"""Contradictions between options, refused before anything is loaded or written."""

from typing import Any

from configs.base import OPTIONS
from errors import InputError
from paths import check_file, outside_path

MOST_VECTORS = 1_000_000  # of a prompt pool: 3 GB for a ViT-B, and Adam keeps three times as much


def check(options: dict[str, Any]) -> list[str]:
    """Warnings about options that are allowed but hardly meant. Raises InputError at the first contradiction."""
    o = options
    _check_paths(o)
    uses_prompts = o["prompt_method"] != "none"
    uses_pool = uses_prompts and o["prompt_pool"]

    if uses_pool and o["top_k"] > o["size"]:
        raise InputError(f"--top_k {o['top_k']} is more than --size {o['size']}: a prompt cannot be chosen twice; "
                         f"use --top_k {o['size']} or less.")
    if not uses_prompts and "prompt" in o["head_type"]:
        raise InputError(f"--head_type {o['head_type']} reads prompt outputs, which --prompt_method none has not: "
                         "use --head_type token.")
    if uses_prompts and o["head"] == "ncm":
        raise InputError("--head ncm needs features that never change: use --prompt_method none with it.")
    if o["head"] == "ncm" and not o["freeze"]:
        raise InputError("--head ncm trains nothing: leave the backbone frozen (do not give an empty --freeze).")
    for switch in ("use_prompt_mask", "shared_prompt_pool", "shared_prompt_key"):
        if o[switch] and not uses_pool:
            raise InputError(f"--{switch} needs a prompt pool: remove it, or use "
                             f"{'--prompt_pool true' if uses_prompts else '--prompt_method l2p'}.")
    if o["shared_prompt_key"] and not o["prompt_key"]:
        raise InputError("--shared_prompt_key needs keys of their own: use --prompt_key true.")
    for name in ("scale", "ratio"):
        low, high = o[name]
        if low > high or low <= 0:
            raise InputError(f"--{name} {low:g} {high:g}: give a lower bound above 0, then an upper bound no smaller.")
    if o["decay_rate"] > 1 and o["sched"] in ("step", "multistep"):
        raise InputError(f"--decay_rate {o['decay_rate']:g} would raise the rate with every decay of --sched "
                         f"{o['sched']}: give a factor of at most 1.")
    if uses_prompts and o["size"] * o["length"] > MOST_VECTORS:
        raise InputError(f"--size {o['size']} --length {o['length']}: more than {MOST_VECTORS} vectors in a pool; "
                         "give fewer.")
    if o["lr_noise"] is not None and len(o["lr_noise"]) > 2:
        raise InputError("--lr_noise takes one or two numbers.")
    if o["shuffle"] and o["class_order"] is not None:
        raise InputError("--shuffle and --class_order exclude each other: give one of them.")
    if o["schedule"] == "gaussian":
        _check_stream(o)
    else:
        for name in ("gaussian_episodes", "gaussian_steps", "gaussian_width", "gaussian_eval_every"):
            if o[name] != OPTIONS[name].default:
                raise InputError(f"--{name} is of a stream: add --schedule gaussian.")
    if o["replay_per_class"] and o["head"] == "ncm":
        raise InputError("--replay_per_class: --head ncm forgets no class and needs no replay; leave it out.")
    if not o["output_dir"]:
        for mode in ("eval", "resume", "overwrite"):
            if o[mode]:
                raise InputError(f"--{mode} needs the run in --output_dir, which is empty.")
    modes = [f"--{mode}" for mode in ("eval", "resume", "overwrite", "speed_test_only") if o[mode]]
    if o["eval"] and o["speed_test"]:
        modes.append("--speed_test")
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other: give one of them.")
    restarts = o["reinit_optimizer"] and o["schedule"] == "tasks"
    if o["sched"] != "constant" and restarts and o["warmup_epochs"] >= o["epochs"]:
        return [f"--sched {o['sched']}: all {o['epochs']} epochs of a task are warm-up (--warmup_epochs "
                f"{o['warmup_epochs']}), so the schedule itself never begins."]
    return []


def _check_paths(o: dict[str, Any]) -> None:
    """Refuse pipes, devices and the like, before anything waits for them."""
    for name in ("data_path", "init_checkpoint", "class_order", "output_dir"):
        if o[name]:
            outside_path(f"--{name}", o[name])
    if o["dist_url"].startswith("file://"):
        check_file(outside_path("--dist_url", o["dist_url"].removeprefix("file://")), f"--dist_url {o['dist_url']}")


def _check_stream(o: dict[str, Any]) -> None:
    """Refuse what needs to know of tasks, of which a stream has none; all of it in one sentence."""
    switches = ("task_inc", "use_prompt_mask", "shared_prompt_pool", "shared_prompt_key")
    remedies = [f"--no-{name}" for name in switches if o[name]]
    remedies += [f"--{name} none" for name in ("num_tasks", "classes_per_task") if o[name] is not None]
    if o["replay_per_class"]:
        remedies.append("--replay_per_class 0")
    if o["head"] == "ncm":
        remedies.append("--head linear")
    if remedies:
        raise InputError(f"--schedule gaussian has no tasks, of which other options need to know: add "
                         f"{' '.join(remedies)}.")
