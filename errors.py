"""The one exception that means "the user gave something the program cannot use"."""


class InputError(Exception):
    """Bad input: its text is one clear sentence naming the option and the fix. `main.py` prints it and exits with 2."""


class DamagedFileError(InputError):
    """Bad input that one process found on the way, in its share of the data, and must tell of, whichever it is; or
    what its machine has too little of.

    `main.py` exits with 1: what was saved before is good.
    """
