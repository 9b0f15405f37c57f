"""The demo, killed twenty times at random moments and resumed each time, is the demo that was never killed."""

import random
from collections import Counter

import pytest
from killing import PLACES, Run, assert_same_results, kill_at

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
KILLS, AT_LEAST, ATTEMPTS = 20, 3, 60


def test_twenty_kills(tmp_path, capsys):
    whole = Run(tmp_path / "whole", "demo_l2p", "--print_freq", 1)
    assert whole.end(600) == 0, whole.text()

    draw, found = random.Random(2022), []
    aims = list(PLACES) * (KILLS // len(PLACES)) + draw.choices(PLACES, k=KILLS % len(PLACES))
    draw.shuffle(aims)
    for _ in range(ATTEMPTS):  # a kill that came too early or too late for its aim is counted where it landed
        counts = Counter(found)
        missing = [place for place in PLACES if counts[place] < AT_LEAST]
        if len(found) >= KILLS and not missing:
            break
        aim = aims[len(found)] if len(found) < KILLS else missing[0]
        place = kill_at(aim, Run(tmp_path / "killed", "demo_l2p", "--print_freq", 1, "--resume"), draw)
        if place is None:  # it had ended before: begin another
            assert_same_results(tmp_path / "whole", tmp_path / "killed")
            (tmp_path / "killed").rename(tmp_path / f"finished_{len(found)}")
            continue
        found.append(place)
        with capsys.disabled():
            print(f"kill {len(found)}: {place}", flush=True)
    last = Run(tmp_path / "killed", "demo_l2p", "--print_freq", 1, "--resume")
    assert last.end(600) == 0, last.text()
    assert_same_results(tmp_path / "whole", tmp_path / "killed")
    with capsys.disabled():
        print(f"landed: {dict(Counter(found))}", flush=True)
    assert len(found) >= KILLS
    assert all(Counter(found)[place] >= AT_LEAST for place in PLACES), Counter(found)
