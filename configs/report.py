"""The options of `report.py`."""

from configs.option import Option, boolean, or_none, word

PROGRAM = "report.py"

_o = Option
REPORT_GROUPS: dict[str, list[Option]] = {
    "what is compared": [
        _o("over_orders", boolean, False, "average over orders of the classes too, and over what the seed draws of a "
           "stream; that the images are the same is then taken from the data set's name"),
    ],
    "what is written (- writes to the standard output)": [
        _o("html", or_none(word), "./report.html", "the report, one file that needs nothing else; none: no report"),
        _o("latex", or_none(word), None, "the tables, for the package booktabs"),
        _o("csv", or_none(word), None, "the tables' numbers, unrounded"),
        _o("markdown", or_none(word), None, "the tables"),
        _o("pdf", or_none(word), None, "the pictures, one on each page"),
        _o("csv_pictures", or_none(word), None, "a folder for the numbers of each picture"),
    ],
}
