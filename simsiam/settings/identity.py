"""What identifies a run: a hash of all that can change its numbers."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache

from simsiam.settings.fields import Settings, default_values, flatten, sections, without_effect

# Raised when a name or a meaning in Settings changes so that the same text would describe another run.
SCHEMA_VERSION = 1
# Raised when a change of code changes the numbers that the same settings give.
NUMERICS_REVISION = 3


@cache
def outside_id() -> frozenset[str]:
    """The dotted paths of settings that change no result and so name no run."""
    return frozenset(
        f"{section}.{leaf}"
        for section, kind in sections().items()
        for leaf, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("in_id") is False
    )


def config_id(settings: Settings, data_fingerprint: str) -> str:
    """Name of a configuration: 12 hexadecimal digits from all settings but the seed, and from the data.

    Only settings that differ from the defaults and have an effect enter, so a new switch whose default keeps the old
    behaviour leaves old names valid. Two runs of one configuration differ in the seed only, and their names show it
    (:func:`run_id`).
    """
    defaults, outside = default_values(), outside_id() | without_effect(settings)
    changed = {
        path: value
        for path, value in flatten(settings).items()
        if (path not in defaults or value != defaults[path]) and path != "seed" and path not in outside
    }
    identity = {"schema": SCHEMA_VERSION, "numerics": NUMERICS_REVISION, "data": data_fingerprint, "settings": changed}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def run_id(settings: Settings, data_fingerprint: str) -> str:
    """Name of a run of these settings, and of its folder: see :func:`run_name`."""
    return run_name(config_id(settings, data_fingerprint), settings.seed)


def run_name(config: str, seed: int) -> str:
    """The configuration's name and the seed, e.g. ``3f9a0c41b2d7-s0``."""
    return f"{config}-s{seed}"


def split_run_name(name: str) -> tuple[str, int] | None:
    """The configuration's name and the seed; None if this is no run's name."""
    match = re.fullmatch(r"(.+)-s([0-9]{1,10})", name)
    return (match[1], int(match[2])) if match else None
