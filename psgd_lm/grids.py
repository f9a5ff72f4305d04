"""The learning rates that a comparison tries, per preset and optimizer."""

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "embedded": {"psgd": (1e-3, 1.4e-3, 2e-3), "adamw": (2.5e-3, 4e-3, 6e-3)},
    "shakespeare-cpu": {
        "psgd": (5e-4, 1e-3, 2e-3),
        "psgd-dense": (7e-4, 1e-3, 1.4e-3),
        "adamw": (1e-3, 3e-3, 6e-3),
        "muon": (1e-3, 3e-3, 1e-2),
        "soap": (1.5e-3, 3e-3, 6e-3),
    },
}
"""Three each; an optimizer that is not named tries half, all and twice its own."""
