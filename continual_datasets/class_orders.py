"""The order in which classes come, as `--class_order` and `--shuffle` say it."""

import difflib
import unicodedata
from pathlib import Path

from continual_datasets.scenario import class_order
from errors import InputError


def read_class_order(text: str | None, class_names: tuple[str, ...], shuffle: bool, seed: int) -> list[int]:
    """A permutation of 0 … K-1.

    Args:
        text: `seed` or `seed:N` (shuffled), a file with one class on each line (its name, or its number), or None.

    Raises:
        InputError: no such file, or lines that are not each class once.
    """
    count = len(class_names)
    if text is None or text == "seed":
        return class_order(count, shuffle or text == "seed", seed)
    word, _, number = text.partition(":")
    if word == "seed" and number.isdecimal():
        return class_order(count, True, int(number))
    path = Path(text).expanduser()
    try:
        lines = [_plain(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class_order {text} cannot be read as a text file; give a file with one class on each "
                         "line, seed, or seed:N.") from error
    numbers = {_plain(name): number for number, name in reversed(list(enumerate(class_names)))}
    order = []
    for position, line in enumerate(lines, start=1):
        if not line:
            continue
        if line not in numbers and not (line.isdecimal() and int(line) < count):
            near = difflib.get_close_matches(line, class_names, n=1)
            raise InputError(f"--class_order {text}: line {position}, {line!r}, is no class of the data"
                             + (f"; did you mean {near[0]}?" if near else f" and no number from 0 to {count - 1}."))
        order.append(numbers[line] if line in numbers else int(line))
    if sorted(order) != list(range(count)):
        twice = [class_names[c] for c in range(count) if order.count(c) > 1]
        lacking = [class_names[c] for c in range(count) if c not in order]
        raise InputError(f"--class_order {text} must name each of the {count} classes once, but "
                         + (f"{twice[0]} is there {order.count(class_names.index(twice[0]))} times."
                            if twice else f"{', '.join(lacking[:5])} {'is' if len(lacking) == 1 else 'are'} missing."))
    return order


def _plain(name: str) -> str:
    """Without blanks around it, accents in one of the two ways of writing them: files from a Mac have the other."""
    return unicodedata.normalize("NFC", name.strip())
