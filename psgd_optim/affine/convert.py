"""Replaces layers by their affine twins, and back."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import partial

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from psgd_optim.affine.base import Affine
from psgd_optim.affine.maps import AffineConv2d, AffineConvTranspose2d, AffineLinear
from psgd_optim.affine.recurrent import AffineGRU, AffineLSTM, AffineRNN

_TWINS: Mapping[type[nn.Module], Callable[..., Affine]] = {
    nn.Linear: AffineLinear,
    nn.Conv2d: AffineConv2d,
    nn.ConvTranspose2d: AffineConvTranspose2d,
    nn.RNN: AffineRNN,
    nn.GRU: AffineGRU,
    nn.LSTM: AffineLSTM,
}
# These read the weights of the layers inside them.
_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
# The names of parameters and buffers in the layers and in their twins.
_OWN = re.compile(r"(weight|bias)((_[ih]h|_hr)?_l\d+(_reverse)?)?|_biases_l\d+(_reverse)?")


def to_affine(module: nn.Module, leave: Collection[str] = ()) -> nn.Module:
    """Replace every supported layer by its affine twin, with equal outputs.

    Supported are `nn.Linear`, `nn.Conv2d`, `nn.ConvTranspose2d`, `nn.RNN`, `nn.GRU` and `nn.LSTM`.
    Everything else is left alone: other modules, subclasses of these, and what is inside an
    `nn.MultiheadAttention` or an `nn.TransformerEncoderLayer`, which read the weights of their
    layers. A layer that a module holds twice has one twin. Twins keep training mode, dtype, device
    and `requires_grad`. Their parameters are new: build the optimizer afterwards. Code that reads
    `layer.weight` of a replaced layer finds the matrix `[W, b]` there.

    Args:
        module: Changed in place, unless it is a supported layer itself.
        leave: Names of submodules to leave as they are, with all that is in them.

    Returns:
        The module, or the twin when the module itself is a supported layer.

    Raises:
        ValueError: If a layer shares a parameter with another module, has hooks, parameters or
            buffers that are not its own, or cannot be one matrix (see the twins), or if a name in
            `leave` is of no submodule. The module is then as it was.

    Source: S0 section IV.A.

    >>> model = to_affine(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
    >>> [tuple(p.shape) for p in model.parameters()]
    [(8, 4), (2, 9)]
    """
    return _replace(module, _twin, leave, "to_affine")


def from_affine(module: nn.Module, leave: Collection[str] = ()) -> nn.Module:
    """Replace every affine twin by the layer that it took over, with equal outputs.

    `from_affine(to_affine(module))` has the state dict of `module`, bit for bit. The two biases of
    an RNN or LSTM are one in its twin: what training changed of their sum goes to the first.

    Args:
        module: Changed in place, unless it is an affine twin itself.
        leave: Names of submodules to leave as they are, with all that is in them.

    Returns:
        The module, or torch's layer when the module itself is an affine twin.

    Raises:
        ValueError: If a twin shares a parameter with another module, or has hooks, parameters or
            buffers that are not its own, or if a name in `leave` is of no submodule. The module
            is then as it was.
    """
    return _replace(module, _plain, leave, "from_affine")


def _twin(layer: nn.Module) -> Callable[[], nn.Module] | None:
    """Return what makes the affine twin of a layer, or `None` for what has none."""
    if isinstance(layer, LazyModuleMixin) and layer.cls_to_become in _TWINS:
        raise ValueError("a lazy layer has no shape yet: run the module once first.")
    # Exactly these types: a subclass may use its weights in another way.
    kind = _TWINS.get(type(layer))
    return None if kind is None else partial(kind, layer)


def _plain(layer: nn.Module) -> Callable[[], nn.Module] | None:
    """Return what makes torch's layer from an affine one, or `None` for what is none."""
    return layer.plain if isinstance(layer, Affine) else None


def _replace(
    root: nn.Module,
    maker: Callable[[nn.Module], Callable[[], nn.Module] | None],
    leave: Collection[str],
    caller: str,
) -> nn.Module:
    """Replace submodules by what their maker, if any, makes, once all are made."""
    places = list(root.named_modules(remove_duplicate=False))
    if unknown := sorted(set(leave) - {name for name, _ in places}):
        raise ValueError(f"{caller} got leave = {unknown}, which names no submodule; correct it.")
    closed = {*leave, *(name for name, layer in places if isinstance(layer, _CLOSED))}
    left = {layer for name, layer in places if any(_is_in(name, top) for top in closed)}
    owners = _owners(root)
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in places:
        if layer in left or layer in new:
            continue
        try:
            make = maker(layer)
            if make is not None:
                _check(name, layer, owners)
                new[layer] = make()
        except ValueError as error:
            where = name or type(layer).__name__
            raise ValueError(f"{caller} cannot replace {where}: {error}") from error
    for name, layer in places:
        if layer in new and name:
            root.set_submodule(name, new[layer])
    return new.get(root, root)


def _is_in(name: str, top: str) -> bool:
    """Return whether a submodule is another one or inside it, by their names."""
    return not top or name == top or name.startswith(f"{top}.")


def _owners(root: nn.Module) -> Mapping[nn.Parameter, list[str]]:
    """Return every parameter's names, more than one when modules share it."""
    owners: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, module in root.named_modules():
        for own, p in module.named_parameters(recurse=False, remove_duplicate=False):
            owners[p].append(f"{name}.{own}".removeprefix("."))
    return owners


def _check(name: str, layer: nn.Module, owners: Mapping[nn.Parameter, list[str]]) -> None:
    """Refuse a layer that has more than its twin takes over, or shares it."""
    if any(getattr(layer, hooks) for hooks in _HOOKS):
        raise ValueError("it has hooks, which would be lost: remove them first.")
    parts = (layer.named_parameters(), layer.named_buffers(), layer.named_children())
    names = [own for part in parts for own, _ in part]
    if strange := [own for own in names if not _OWN.fullmatch(own)]:
        raise ValueError(f"it has {' and '.join(strange)}, which would be lost: remove them first.")
    for p in layer.parameters():
        if len(owners[p]) > 1:
            raise ValueError(
                f"its parameter is tied: {' is '.join(owners[p])}; one matrix [W, b] would untie "
                f"it: give leave=({name!r},), or untie it first."
            )
