"""The harness of the benchmarks: what it makes of times, and the page made from its CSVs."""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import document, harness
from benchmarks.harness import Bench, Contender, Reach


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(sys, "argv", ["knn", "--quick", "--out", str(tmp_path)])
    return Bench("knn", "A test.")


def test_a_verdict_needs_the_whole_interval() -> None:
    assert [Reach(2).verdict(*interval) for interval in ((2, 3), (1.9, 3), (1, 1.9))] == ["yes", "unsure", "no"]
    at_most = Reach(1.03, at_least=False)
    assert [at_most.verdict(*interval) for interval in ((1, 1.03), (1, 1.1), (1.04, 1.1))] == ["yes", "unsure", "no"]


def test_the_interval_is_that_of_the_median() -> None:
    """Against order statistics: of 25 values, the 8th and the 18th bound the median with 95.7 %."""
    values = np.random.default_rng(0).permutation(25).astype(float).tolist()
    low, high = harness._interval(values)
    assert low == pytest.approx(7, abs=1)
    assert high == pytest.approx(17, abs=1)
    assert harness._iqr(values) == pytest.approx(np.subtract(*np.quantile(values, [0.75, 0.25])))


def test_every_contender_runs_once_a_repeat_in_changing_order(bench: Bench) -> None:
    calls: list[str] = []
    names = ("ours", "one", "two")
    ours, *peers = (Contender(name, lambda name=name: calls.append(name), amount=3) for name in names)
    bench.compare("nothing", "things/s", ours, [(peer, None) for peer in peers], repeats=8, warm_up=False)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 8
    assert all(sorted(each) == sorted(names) for each in rounds)
    assert len(set(rounds)) > 2


def test_the_page_is_made_from_the_csv(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peer = [10.0, 12.0, 14.0], [5.0, 4.0, 7.0]
    ratios = [mine / other for mine, other in zip(ours, peer, strict=True)]
    bench.add(
        "a row", "queries/s", ours=ours, peer_name="peer", peer=peer, ratios=ratios, clock="cpu", reach=Reach(1.5)
    )
    (row,) = csv.DictReader((tmp_path / "knn.csv").open())
    assert float(row["ratio"]) == statistics.median(ratios)
    assert row["reached"] == "yes"
    page = tmp_path / "performance.md"
    page.write_text(f"by hand\n{document.BEGIN}\nold\n{document.END}\nalso by hand\n")
    monkeypatch.setattr(document, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["document", str(tmp_path)])
    document.main()
    text = page.read_text()
    assert "old" not in text
    assert "| a row | queries/s | 12 ± 2 | peer: 5 ± 1.5 | 2 [2, 3] |" in text
    assert text.startswith("by hand")
    assert text.endswith("also by hand\n")


def test_the_gpu_s_table_holds_what_was_measured() -> None:
    """On the CPU, with a tiny network: each row takes the time it is given, and the shares are those of the speeds."""
    from benchmarks import gpu

    cpu = torch.device("cpu")
    settings = gpu.settings_of("smoke", precision="bfloat16")
    found = gpu.of_training("tiny", "cifar", settings, cpu, 0.5, gpu.from_crops)
    found += gpu.of_training("tiny, from memory", "cifar", settings, cpu, 0.5, gpu.from_memory)
    found += gpu.of_views(cpu, 0.5, with_kornia=False)
    assert [result.who for result in found] == 2 * ["ours", "ours, captured", "bare network"] + ["ours"]
    assert all(result.pairs > 0 for result in found)
    exact = [gpu.Result("a", "ours", 9000.0, 10.0, 2**31, 50_000), gpu.Result("a", "bare network", 10000.0, 0, 0, 0)]
    lines = gpu.table(exact, "H100").splitlines()
    assert lines[0] == "H100."
    assert lines[-2] == "| a | ours | 9,000 ± 10 | 90% | 1.2 | 2.0 |"  # 800 x 50,000 / 9,000 s
    assert lines[-1] == "| a | bare network | 10,000 ± 0 | 100% |  | 0.0 |"
