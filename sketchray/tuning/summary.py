"""A configuration in a few words, for tables."""

from typing import Any

from sketchray.tuning.space import CLIPPING


def summary(config: dict[str, Any], preset: str | None = None) -> str:
    """Returns a configuration in a few words."""
    model = config["model"]
    parts = [f"conv {'/'.join(map(str, model['conv_channels']))}"] if model["conv_channels"] else []
    if model["rnn_layers"]:
        ways = "bi" if model["bidirectional"] else ""
        parts.append(f"{model['rnn_layers']} {ways}{model['cell']} {model['rnn_size']}")
    sizes = {kind: config[f"clip_{kind}"] for kind in CLIPPING}
    clip = next((f"{kind} {size:.2g}" for kind, size in sizes.items() if size), "off")
    name = f"{preset}: " if preset else ""
    return f"{name}{' + '.join(parts)}, lr {config['lr']:.2g}, clip {clip}, batch {config['batch_size']}"
