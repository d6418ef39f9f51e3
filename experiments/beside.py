"""Runs that a plan does not name, but that are of its cells: by other sources of own parts, or by the code at hand.

They are found by their names: a source that was ever trained with is kept beside the runs, so the name that a cell had
with it can be told. Imports no torch.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from experiments.plan import Plan, fingerprint_to_read, seeds_on_disk
from simsiam.settings.fields import Settings
from simsiam.settings.identity import config_id, run_name
from simsiam.settings.own import digest_of, own_parts, parts_of, sources
from simsiam.settings.own_code import FOLDER


def runs_by_code(made: Plan, code: str) -> int:
    """How many runs the cells have that were made anew by this training code, with ``code=HASH``, and have ended."""
    there, name_of = seeds_on_disk(made.runs), _naming(made)
    names = {name_of(settings.model_copy(update={"code": code})) for settings in _once(made)}
    names -= {planned.config_id for planned in made.cells}
    folders = (run_name(name, seed) for name in names for seed in there.get(name, ()))
    return sum((made.runs / folder / "result.json").exists() for folder in folders)


def runs_by_other_sources(made: Plan) -> dict[str, tuple[int, tuple[str, ...]]]:
    """For each file with parts of the user's own that was edited: how many runs were made with other versions of it.

    And the hashes of these versions.
    """
    there, kept, name_of = _on_disk(made.runs), _kept(made.runs), _naming(made)
    found = dict[str, Counter[str]]()
    seen = {planned.config_id for planned in made.cells}
    for settings in _once(made):
        pinned = {parts_of(value)[0]: parts_of(value)[2] for value in own_parts(settings).values()}
        versions = [sorted({pinned[module], *kept(module)}) for module in pinned]
        for digests in itertools.product(*versions):
            chosen = dict(zip(pinned, digests, strict=True))
            edited = [module for module in pinned if chosen[module] != pinned[module]]
            name = name_of(_with_sources(settings, chosen))
            if name in seen:
                continue
            seen.add(name)
            for module in edited:
                file = f"{module.replace('.', '/')}.py"
                found.setdefault(file, Counter())[chosen[module]] += there[name]
    totals = {file: +digests for file, digests in found.items()}  # without those that have no run
    return {file: (digests.total(), tuple(sorted(digests))) for file, digests in totals.items() if digests}


def _on_disk(runs: Path) -> Counter[str]:
    return Counter({name: len(seeds) for name, seeds in seeds_on_disk(runs).items()})


def _kept(runs: Path) -> Callable[[str], list[str]]:
    """The versions of a module that are kept beside the runs, by hash."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(runs / FOLDER) if entry.is_dir()]
    except OSError:
        folders = []

    @cache
    def versions(module: str) -> list[str]:
        found = ((folder, sources(module, folder)) for folder in folders if not folder.name.startswith("."))
        return [folder.name for folder, files in found if files and digest_of(files, folder) == folder.name]

    return versions


def _once(made: Plan) -> list[Settings]:
    """The settings of each configuration; none where its name is not known yet."""
    return [] if made.unprepared else list({each.config_id: each.cell.settings for each in made.cells}.values())


def _naming(made: Plan) -> Callable[[Settings], str]:
    """What names a configuration; the data's fingerprint is looked up once."""
    known = cache(partial(fingerprint_to_read, data=made.data, runs=made.runs))
    return lambda settings: config_id(settings, known(settings.data) or "")


def _with_sources(settings: Settings, digests: dict[str, str]) -> Settings:
    changed = dict[str, Any]()
    for path, value in own_parts(settings).items():
        section, _, leaf = path.partition(".")
        module, name, _ = parts_of(value)
        before = changed.get(section, getattr(settings, section))
        changed[section] = before.model_copy(update={leaf: f"{module}:{name}@{digests[module]}"})
    return settings.model_copy(update=changed)
