"""Keep a finished run as one file in this folder: `python -m results.record OUTPUT_DIR NAME ["a remark"] [--eval]`.

The record is the run's summary.json (with its whole config), its accuracy matrix and, where prompts are chosen, how
often each was chosen in each evaluation, over all its test sets. Folders are cut off the paths in it, so that a record
says which file was used and nothing of whose machine it lay on; nothing else is changed. A record is never edited: a
run that is made again is another record.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from records import without_folders


def make_record(output_dir: Path, remark: str = "", prefix: str = "") -> dict[str, Any]:
    """The record of a run, or, with the prefix `eval_`, of its evaluation by --eval."""
    summary = json.loads((output_dir / f"{prefix}summary.json").read_text())
    summary["config"] = without_folders(summary["config"])
    with open(output_dir / f"{prefix}accuracy_matrix.csv") as file:
        tasks = list(csv.reader(file))[1:]
    matrix = [[float(cell) if cell else None for cell in task[1:]] for task in tasks]
    log = output_dir / f"{prefix}log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    chosen = [[sum(counts) for counts in zip(*row["prompts"], strict=True)] for row in rows if "prompts" in row]
    return {"remark": remark, "accuracy_matrix": matrix, **({"prompts_chosen": chosen} if chosen else {}), **summary}


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--eval"]
    prefix = "eval_" if "--eval" in sys.argv else ""
    output_dir, name, remark = [*words, ""][:3]
    path = Path(__file__).with_name(f"{name}.json")
    if path.exists():
        sys.exit(f"{path} exists, and a record is never edited: choose another name.")
    path.write_text(json.dumps(make_record(Path(output_dir), remark, prefix), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
