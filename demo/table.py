"""Print the summaries of finished runs side by side: `python -m demo.table output/demo_l2p output/demo_finetune`."""

import json
import sys
from pathlib import Path


def row(folder: str) -> list[str]:
    summary = json.loads((Path(folder) / "summary.json").read_text())
    seconds = summary["train_seconds"] + summary["eval_seconds"]
    numbers = [summary.get(name) for name in ("acc@1", "forgetting", "learning_acc")]
    return [summary["config"]["experiment"], *("" if x is None else f"{x:.2f}" for x in numbers), f"{seconds:.1f}",
            f"{summary['trainable_parameters']:,}"]


def main(folders: list[str]) -> None:
    header = ["experiment", "Acc@1", "forgetting", "just learned", "seconds", "trained values"]
    rows = [header, *map(row, folders)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(header))]
    print()
    for r in rows:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                        for i, (cell, w) in enumerate(zip(r, widths, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
