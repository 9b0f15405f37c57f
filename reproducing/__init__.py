"""A paper's table: which runs it takes, how they are started, and what was reported before.

`tables.py` holds the command lines, `published.py` the reported numbers, each with its source.
"""
