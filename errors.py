"""The one exception that means "the user gave something the program cannot use"."""


class InputError(Exception):
    """Bad input: its text is one clear sentence naming the option and the fix. `main.py` prints it and exits with 2."""
