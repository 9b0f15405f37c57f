"""The order in which classes come, as `--class_order` and `--shuffle` say it."""

import difflib
import re
import unicodedata
from collections import Counter

import numpy as np

from continual_datasets.scenario import class_order
from errors import InputError
from paths import outside_path, read_text

LONGEST = 64 * 2**20  # bytes of a file
SEED_LIMITS = {"seed": 2**63, "numpy": 2**32}


def is_drawn(text: str) -> bool:
    """Whether a `--class_order` is drawn, and not read from a file."""
    return text == "seed" or re.fullmatch("(seed|numpy):[0-9]+", text) is not None


def read_class_order(text: str | None, class_names: tuple[str, ...], shuffle: bool, seed: int) -> list[int]:
    """A permutation of 0 … K-1.

    Args:
        text: `seed` or `seed:N` (shuffled); `numpy:N` (what numpy.random.seed(N) and numpy.random.permutation(K) give,
            as other programs of the field order their classes); a file with one class on each line (its name, or its
            number); or None.

    Raises:
        InputError: no such file, lines that are not each class once, or a seed that is too large.
    """
    count = len(class_names)
    if text is None or text == "seed":
        return class_order(count, shuffle or text == "seed", seed)
    if is_drawn(text):
        return _drawn(text, count)
    name = f"--class_order {text}"
    try:
        lines = [_plain(line) for line in read_text(outside_path("--class_order", text), name, LONGEST).splitlines()]
    except FileNotFoundError as error:
        how = text.partition(":")[0]
        if how in SEED_LIMITS:  # `seed` alone was understood before
            raise InputError(f"{name}: behind {how}: comes the seed of the shuffle, a whole number from 0, as in "
                             f"--class_order {how}:1993.") from error
        raise InputError(f"{name}: there is no such file; give a file with one class on each line, seed, seed:N, or "
                         "numpy:N.") from error
    numbers = {_plain(name): number for number, name in reversed(list(enumerate(class_names)))}
    order = []
    for position, line in enumerate(lines, start=1):
        if not line:
            continue
        if line not in numbers and not (line.isdecimal() and len(line) < 20 and int(line) < count):
            near = difflib.get_close_matches(line[:100], class_names, n=1)
            raise InputError(f"{name}: line {position}, {line[:100]!r}, is no class of the data"
                             + (f"; did you mean {near[0]}?" if near else f" and no number from 0 to {count - 1}."))
        order.append(numbers[line] if line in numbers else int(line))
    if sorted(order) != list(range(count)):
        times = Counter(order)
        twice = [class_names[c] for c in range(count) if times[c] > 1]
        lacking = [class_names[c] for c in range(count) if not times[c]]
        raise InputError(f"{name} must name each of the {count} classes once, but "
                         + (f"{twice[0]} is there {times[class_names.index(twice[0])]} times." if twice else
                            f"{', '.join(lacking[:5])} {'is' if len(lacking) == 1 else 'are'} missing."))
    return order


def _drawn(text: str, count: int) -> list[int]:
    how, _, digits = text.partition(":")
    if len(digits) > 20 or int(digits) >= SEED_LIMITS[how]:
        raise InputError(f"--class_order {text[:40]}: the seed must be below {SEED_LIMITS[how]}.")
    if how == "numpy":
        return np.random.RandomState(int(digits)).permutation(count).tolist()
    return class_order(count, True, int(digits))


def _plain(name: str) -> str:
    """Without blanks around it, accents in one of the two ways of writing them: files from a Mac have the other."""
    return unicodedata.normalize("NFC", name.strip())
