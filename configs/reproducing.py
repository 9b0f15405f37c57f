"""The options of `reproduce.py`: which runs, where, and how many at a time."""

from configs.option import Option, boolean, integer, or_none, path, word

PROGRAM = "reproduce.py"
DEFAULT_PLACE = "./output/reproduce/TABLE"

_o = Option
REPRODUCING_GROUPS: dict[str, list[Option]] = {
    "which runs": [
        _o("methods", word, [], "methods of the table, by their names (left out: all of them)", nargs="+"),
        _o("seeds", integer(0, 2**63 - 1), [], "seeds (left out: the table's own)", nargs="+"),
        _o("class_orders", word, [], "an order of the classes for each seed, as --class_order takes it, or natural",
           nargs="+"),
    ],
    "how they run": [
        _o("output_dir", path, DEFAULT_PLACE, "folder in which every run has one of its own"),
        _o("dry_run", boolean, False, "print the commands and estimate their time and memory by a speed test of each; "
           "run nothing"),
        _o("jobs", or_none(integer(1, 1000)), None,
           "runs at a time; none: one on each GPU, without GPUs one, or of the demo as many as there are cores"),
        _o("slurm", boolean, False, "submit the runs as an array job of train.sh; sbatch's own variables say where: "
           "SBATCH_PARTITION, SBATCH_GPUS_PER_NODE …"),
    ],
}
