"""The methods as points in the switch space, side by side (the paper's Fig. 3): the table of docs/methods.md.

A method is a file in ``methods/``: its switches under ``settings``, its own recipe for Table 4 under ``scales``. This
module imports no torch.
"""

from __future__ import annotations

from experiments.studies.layers import layer_of, read_included, resolve
from experiments.studies.study import HERE, load_scale
from simsiam.settings.fields import Settings

FOLDER = HERE / "methods"


def method_titles() -> dict[str, str]:
    """The methods that have a title, by the names of their files: ``{"byol": "BYOL", ...}``."""
    titles = {path.stem: read_included(path)[0].title for path in sorted(FOLDER.glob("*.yaml"))}
    return {name: title for name, title in titles.items() if title}


def load_method(name: str, scale: str) -> Settings:
    """The settings of a method at a scale. Raises SettingsError."""
    block, document = read_included(FOLDER / f"{name}.yaml")
    layer = layer_of(block, document, "method", scale)
    return resolve((load_scale(scale).layer, layer), blame=f"method '{name}': ").settings


def switches(s: Settings) -> dict[str, str]:
    """What makes a method, then its recipe: a word or two for each row of the table."""
    projector, target, optimizer, views = s.projector, s.target, s.optimizer, s.augment
    momentum = f"{target.momentum:g}, moved {target.momentum_update.replace('-', ' ')}"
    if target.momentum_schedule == "cosine":
        momentum = f"from {target.momentum:g} to 1 by a cosine, moved {target.momentum_update.replace('-', ' ')}"
    groups = f"; {s.batch_norm.groups} groups, keys permuted" if s.batch_norm.groups > 1 else ""
    places = {"hidden": projector.bn_hidden, "output": projector.bn_output}
    excluded = "; not of BN and biases" if optimizer.exclude_bn_and_bias else ""
    jitter = "/".join(f"{strength:g}" for strength in (views.brightness, views.contrast, views.saturation, views.hue))
    blur, solarise = s.second_view.blur_probability, s.second_view.solarise_probability
    return {
        "predictor": "no" if s.predictor.kind == "none" else f"yes (rate: {s.predictor.lr_schedule})",
        "stop-gradient": "no" if not target.stop_gradient else "yes" if target.transform == "none" else "on the codes",
        "momentum encoder": momentum if target.encoder == "momentum" else "no",
        "target transform": "none"
        if target.transform == "none"
        else f"Sinkhorn-Knopp on {target.num_prototypes} prototypes' scores ({target.sinkhorn_iterations} iterations,"
        f" epsilon {target.sinkhorn_epsilon:g})",
        "queue": f"{target.queue_size} negatives" if target.queue_size else "no",
        "loss": "negative cosine" if s.loss.name == "cosine" else f"{s.loss.name}, temperature {s.loss.temperature:g}",
        "symmetry": s.loss.symmetry,
        "BN forwards": ("one for both views" if s.batch_norm.one_forward else "one for each view") + groups,
        "residual blocks": "start as the identity"
        if s.initialisation.zero_last_bn
        else "start with a last BN scale of 1",
        "projector": f"{projector.num_layers} layers, BN: "
        + (", ".join(place for place, there in places.items() if there) or "none"),
        "widths": f"{projector.hidden_dim} -> {projector.output_dim}"
        + ("" if s.predictor.kind == "none" else f"; predictor {s.predictor.hidden_dim}"),
        "batch": str(s.batch_size),
        "optimiser": f"{optimizer.name.upper()}, base rate {optimizer.lr:g}",
        "weight of the loss": f"{s.loss.weight:g}",
        "warm-up": f"{optimizer.warmup_epochs:g} epochs",
        "weight decay": f"{optimizer.weight_decay:g}{excluded}",
        "crops, colour jitter": f"from {views.crop_scale[0]:g}; {jitter}",
        "blur, solarisation": f"{views.blur_probability:g}, {views.solarise_probability:g}"
        + ("" if blur is None or solarise is None else f"; second view {blur:g}, {solarise:g}"),
    }


def table() -> str:
    """The methods with a title side by side as Markdown; at ``imagenet`` scale, which has each one's own recipe."""
    titles = method_titles()
    columns = [switches(load_method(name, "imagenet")) for name in titles]
    rows = [["", *titles.values()], ["---"] * (1 + len(titles))]
    rows += [[name, *(column[name] for column in columns)] for name in columns[0]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
