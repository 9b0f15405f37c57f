"""docs/python.md: every block runs, in its order; and what it says of a run, of errors and of missing options."""

import contextlib
import io
import json
import re

import pytest
from fixtures import ROOT, TINY, write_npz
from PIL import Image

import main
from configs.command import default_options
from errors import InputError
from models import MODEL_OPTIONS, build_model
from prompt_methods import options_of

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SMALL = {"model": "glyph_vit_tiny", "pretrained": False, "input_size": 32}


def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```") // 2 >= 6, "a block that is not run"
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate([(200, 30, 30), (30, 200, 30), (20, 20, 90)]):
        Image.new("RGB", (50 + number, 40), colour).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(block, names)
    assert len(names["paths"]) == 3
    assert names["summary"]["acc@1"] == json.loads((tmp_path / "output" / "try" / "summary.json").read_text())["acc@1"]
    assert "--output_dir output/try already holds a run: add --resume" in printed.getvalue()
    assert names["features_BD"].shape == names["query_BD"].shape == (3, names["model"].backbone.embed_dim)
    assert names["run"].predict(names["images_BCHW"])[0].classes[0] in names["class_names"]


def test_a_run_that_stops_is_an_exception(tmp_path, capsys):
    words = ["--data-path", write_npz(tmp_path / "data.npz"), *TINY, "--num-tasks", 2, "--device", "cpu", "--clip-grad",
             "none", "--opt", "sgd", "--lr", 1e6, "--weight_decay", 1e6, "--epochs", 30, "--output_dir", tmp_path / "r"]
    with pytest.raises(main.RunStoppedError, match="exit code 1"):
        main.run_experiment([str(word) for word in words])
    assert "the loss is not finite" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["l2p", "dualprompt", "coda", "oneprompt", "none"])
def test_a_model_is_built_from_exactly_the_options_that_it_asks_for(method):
    own = {"prompt_method": method, "head_type": "token", "prompt_layers": [2], "length": 4}
    options = default_options() | SMALL | own
    wanted = {*MODEL_OPTIONS, *options_of(method)}
    build_model({name: options[name] for name in wanted}, 4, 2)
    for name in wanted - {"prompt_method"}:
        with pytest.raises(InputError, match=f"cannot be built without the options {name}: add them"):
            build_model({other: options[other] for other in wanted - {name}}, 4, 2)


def test_all_missing_options_are_named_at_once():
    with pytest.raises(InputError, match=r"without the options input_size, pretrained, .*, top_k,"):
        build_model({"model": "glyph_vit_tiny", "prompt_method": "l2p"}, 4, 2)
