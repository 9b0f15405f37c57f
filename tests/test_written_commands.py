"""Every command and option that a page or a docstring writes down is one that its program reads.

Commands are what stands in the blocks without a language, in `code` that begins with a program, an experiment or an
option, and in the indented lines of docstrings. test_commands.py runs those of the blocks.
"""

import contextlib
import importlib.util
import io
import re
import subprocess
from pathlib import Path

import pytest
from fixtures import ROOT
from packaging.requirements import Requirement

import report
import reproduce
from benchmarks import speed
from configs import experiment_names
from configs.base import OPTIONS
from configs.checks import check
from configs.command import parse, split_off, words_and_options
from configs.importing import read_import
from configs.launcher import LAUNCHER_GROUPS, read_submission
from configs.option import Option
from configs.predicting import PREDICT_GROUPS, read_question
from configs.report import REPORT_GROUPS
from configs.reproducing import REPRODUCING_GROUPS
from demo import pretrain
from errors import InputError

PROGRAMS = ("python", "torchrun", "bash", "sbatch", "salloc", "make", "pip")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("[!.]*/README.md")])
DOCSTRINGS = sorted([*ROOT.glob("*.py"), *(path for room in ("configs", "benchmarks", "demo", "reproducing", "results")
                                           for path in ROOT.glob(f"{room}/*.py")), ROOT / "train.sh"])
STANDS_FOR = {  # what a page writes for the reader to fill in, where a program does not take the word itself
    r"\bEXPERIMENT\b": "cifar100_l2p", r"\bTABLE\b": "cifar100", r"\b(N|SEED)\b": "1",
    r"\[--option value \.\.\.\]|\[options of main\.py\]|\.\.\.|…|[\[\]]": "",
}


# ---- what is written ----
def blocks(text: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for language, block in fenced if not language for line in block.splitlines() if line]


def code(text: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)]


def indented(path: Path) -> list[str]:
    """The commands of a docstring, or of the comment that begins a shell script; several may share a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        lines = re.findall(r"^#   (\w+ .*)$", text, re.MULTILINE)
    else:
        docstring = re.match(r'"""(.*?)"""', text, re.DOTALL)
        lines = re.findall(r"^    (\w+ .*)$", docstring[1] if docstring else "", re.MULTILINE)
    pieces = [re.split(r"\s{2,}", line) for line in lines]
    return [piece for line in pieces for number, piece in enumerate(line) if number == 0 or is_command(piece)]


def is_command(text: str) -> bool:
    first = re.sub(r"^([A-Z]+=\S+ )+", "", text).partition(" ")[0]
    return first in PROGRAMS or (first in experiment_names() and " --" in text)


def commands() -> dict[str, str]:
    """Every command, and where it stands."""
    found = [(line, path) for path in PAGES for line in blocks(path.read_text(encoding="utf-8"))]
    found += [(span, path) for path in PAGES for span in code(path.read_text(encoding="utf-8")) if is_command(span)]
    found += [(line, path) for path in DOCSTRINGS for line in indented(path)]
    return {line: str(path.relative_to(ROOT)) for line, path in found}


def options() -> dict[str, str]:
    """Every `--option …` of the pages, and where it stands."""
    return {span: str(path.relative_to(ROOT)) for path in PAGES for span in code(path.read_text(encoding="utf-8"))
            if span.startswith("-")}


def filled_in(text: str) -> list[str]:
    """The text with examples for what it leaves to the reader; one for each of a|b or {a,b}."""
    for pattern, example in STANDS_FOR.items():
        text = re.sub(pattern, example, text)
    alternatives = re.search(r"\{(\w+(?:,\w+)+)\}|(?<= )(\w+(?:\|\w+)+)", text)
    if not alternatives:
        return [text]
    return [text.replace(alternatives[0], word) for word in re.split(r"[,|]", alternatives[1] or alternatives[2])]


def as_the_shell_reads(text: str) -> list[list[str]]:
    """The words of each program that bash would start, loops and quotes and variables included."""
    programs = "\n".join(f"{program}() {{ printf '%s\\0' {program} \"$@\"; printf '\\n\\0'; }}" for program in PROGRAMS)
    done = subprocess.run(["/bin/bash", "-u", "-c", f"{programs}\n{text}"], env={"PATH": ""}, capture_output=True,
                          text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return [command.split("\0")[:-1] for command in done.stdout.split("\n\0") if command]


# ---- the programs, each by the code that reads its command line ----
def read_command(words: list[str]) -> None:
    program, *rest = words
    if program in experiment_names():
        read_main(words)
    elif program == "python":
        read_python(rest)
    elif program == "torchrun":
        read_torchrun("run", rest)
    elif program == "bash":
        read_script(rest)
    elif program in ("sbatch", "salloc"):
        after = read_slurm_options(rest)
        if after:
            read_command(after[1:]) if program == "salloc" and after[0] == "srun" else read_script(after)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    else:
        assert (program, rest[:2], len(rest)) == ("pip", ["install", "-r"], 3)
        assert [Requirement(line) for line in (ROOT / rest[2]).read_text().splitlines() if line[:1] not in ("#", "")]


def read_python(words: list[str]) -> None:
    if words[0] == "-c":
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()):
            exec(words[1], {})
    elif words[0] == "-m":
        if words[1] == "torch.distributed.launch":
            read_torchrun("launch", words[2:])
            return
        assert importlib.util.find_spec(words[1])
        MODULES[words[1]](words[2:])
    else:
        assert (ROOT / words[0]).is_file()
        if words[1:] != ["--help"]:
            SCRIPTS[words[0]](words[1:])


def read_torchrun(name: str, words: list[str]) -> None:
    module = importlib.import_module(f"torch.distributed.{name}")
    asked = module.parse_args(words)
    read_script([asked.training_script, *asked.training_script_args])


def read_script(words: list[str]) -> None:
    assert words[0] in ("main.py", "train.sh")
    in_a_file = words[0] == "train.sh" and words[1:] and words[1].startswith("@")  # then the experiment is, too
    read_main(words[2:] if in_a_file else words[1:])


def read_slurm_options(words: list[str]) -> list[str]:
    """What is left: the options of Slurm that the pages use are --array and those that train.sh tells of."""
    known = ["--array", *re.findall(r"^#+SBATCH (--[\w-]+)", (ROOT / "train.sh").read_text(), re.MULTILINE)]
    while words and words[0].startswith("-"):
        assert words[0].partition("=")[0] in known
        words = words[1:]
    return words


def read_main(words: list[str]) -> None:
    if not {"--list", "--help"} & set(words):
        check(parse(words).options)
    else:
        assert parse([word for word in words if word not in ("--list", "--help")])


def read_report(words: list[str]) -> None:
    report.check(*split_off(words, REPORT_GROUPS, "report.py"))


def read_record(words: list[str]) -> None:
    assert len(set(words) - {"--eval"}) in (2, 3)


SCRIPTS = {"main.py": read_main, "predict.py": read_question, "import_run.py": read_import, "report.py": read_report,
           "run_with_submitit.py": read_submission, "reproduce.py": reproduce.read}
MODULES = {"benchmarks.speed": speed.read, "benchmarks.prompt_features": read_main, "demo.pretrain": pretrain.parse,
           "reproducing.compared": list, "results.record": read_record}  # compared takes any folders


def read_all(line: str) -> int:
    """Read a line of commands. Returns how many they are."""
    found = [line.split()] if line.partition(" ")[0] in experiment_names() else as_the_shell_reads(line)
    for words in found:
        read_command(words)
    return len(found)


@pytest.mark.parametrize(("text", "place"), commands().items())
def test_a_command_is_read(text, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if set(variables := re.findall(r"\b([A-Z]+)=", text)):
        script = (ROOT / "train.sh").read_text()
        assert all(f"{name}=${{{name}:-" in script for name in variables), f"{place}: {text}"
    for line in filled_in(text):
        assert read_all(line), f"{place}: {text}"


@pytest.mark.parametrize(("text", "place"), options().items())
def test_an_option_is_one_of_a_program(text, place):
    """With the values that are written behind it."""
    for line in filled_in(text):
        words = line.split()
        names = {word.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_") for word in words
                 if word.startswith("--")}
        if names == {"array"}:
            assert not read_slurm_options(words)
            continue
        if names <= OPTIONS.keys():
            parse(with_value(words, OPTIONS))
            continue
        [groups] = [groups for groups in (REPORT_GROUPS, PREDICT_GROUPS, LAUNCHER_GROUPS, REPRODUCING_GROUPS)
                    if names <= {option.name for group in groups.values() for option in group}][:1]
        own = {option.name: option for group in groups.values() for option in group}
        assert words_and_options(with_value(words, own), groups, place)[0] == []


def with_value(words: list[str], known: dict[str, Option]) -> list[str]:
    """An option that is named alone, as pages do, with a value that it would take."""
    if len(words) > 1:
        return words
    option = known.get(words[0].removeprefix("--").replace("-", "_"))
    if option is None or accepts_alone(words, known):
        return words
    default = option.default if isinstance(option.default, list) else [option.default]
    return [*words, *("1" if value is None else str(value) for value in default)]


def accepts_alone(words: list[str], known: dict[str, Option]) -> bool:
    try:
        split_off(words, {"": list(known.values())}, "")
    except InputError:
        return False
    return True


@pytest.mark.parametrize("name", experiment_names())
def test_an_option_in_the_words_of_an_experiment_is_read(name):
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)  # the command, which is read above
    for option, value in re.findall(r"--([a-z][\w-]*)(?: (\d[\d.]*\d|\d))?", text):
        if value:
            parse([name, f"--{option}", value])
        else:
            assert option.replace("-", "_").removeprefix("no_") in OPTIONS, option


def test_nothing_that_looks_like_a_command_is_passed_over():
    for path in PAGES:
        for span in code(path.read_text(encoding="utf-8")):
            if re.search(r"\.(py|sh) |\S --", span):
                assert is_command(span) or span.startswith("--"), f"{path.name}: {span}"


def test_files_of_the_program_that_are_named_exist():
    for path in PAGES:
        for name in re.findall(r"^([\w/]+\.(?:py|sh|toml))\b", "\n".join(code(path.read_text(encoding="utf-8"))),
                               re.MULTILINE):
            assert any((folder / name).is_file() for folder in (ROOT, path.parent)), f"{path.name}: {name}"


@pytest.mark.parametrize(("text", "error"), [
    ("python main.py cifar100_l2q --data-path DIR", InputError),
    ("python main.py cifar100_l2p --data-paths DIR", InputError),
    ("python main.py demo_l2p --head ridge", InputError),
    ("python predict.py RUN_DIR", InputError),
    ("python report.py --latx FILE", InputError),
    ("torchrun --nproc_per_nodes=2 main.py demo_l2p", SystemExit),
    ("python -m benchmarks.speed --modle x", SystemExit),
    ("python man.py demo_l2p", AssertionError),
    ("sbatch --nods=2 train.sh demo_l2p", AssertionError),
    ("make demos", AssertionError),
    ("pip install -r requirement.txt", FileNotFoundError),
    ("for seed in 1 2; do python main.py --seed $sed; done", AssertionError),
    ("pyton main.py", AssertionError),
])
def test_a_command_that_no_program_reads_is_found(text, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        read_all(text)
