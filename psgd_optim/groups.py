"""Parameter groups: the numbers, which torch sees and saves, and the objects, which it must not.

Objects would make a state_dict unreadable for `torch.load(weights_only=True)`.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psgd_optim.averages import Nesterov
from psgd_optim.blocks import Block
from psgd_optim.clipping import Clip
from psgd_optim.criteria import Criterion
from psgd_optim.decay import Decay, as_decay
from psgd_optim.fitting import Fitting
from psgd_optim.forms.base import Preconditioner, SparseForm
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import Scope, as_scope
from psgd_optim.sparse_block import SparseBlock
from psgd_optim.types import expect


@dataclass(frozen=True)
class GroupParts:
    """The objects of one parameter group.

    Args:
        scope: Which parameters its forms see, and as what.
        decay: How it takes its steps.
        nesterov: Whether these look ahead of the gradient average.
    """

    scope: Scope
    decay: Decay
    nesterov: bool


def check_arguments(
    criterion: object,
    clip: object,
    fitting: object,
    *,
    compiles: bool = False,
    captures: bool = False,
) -> None:
    """Refuse parts of the wrong type, such as classes in the place of their values.

    Args:
        criterion: The optimizer's.
        clip: Its clips, or `None` for the criterion's own.
        fitting: The optimizer's.
        compiles: Whether its step is compiled.
        captures: Whether its step is recorded.

    Raises:
        TypeError: If one is not what it should be.
        ValueError: If a fit is to be in a graph and beside it, or a graph is to be of two kinds, or
            the criterion's pairs need an initial scale that the fitting does not have.
    """
    expect("PSGD", "criterion", criterion, Criterion, "one such as MomentumWhitening()")
    expect("PSGD", "fitting", fitting, Fitting, "Fitting(...)")
    if clip is not None:
        _check_clips(clip, in_graph=compiles or captures)
    if not isinstance(criterion, Criterion) or not isinstance(fitting, Fitting):
        return
    if fitting.overlap and (compiles or captures):
        raise ValueError(
            f"PSGD got Fitting(overlap=True) with {'compile' if compiles else 'capturable'}=True, "
            "whose graph of a step has the fit in it; leave one of them out."
        )
    if compiles and captures:
        raise ValueError(
            "PSGD got compile=True with capturable=True, which make graphs of the same step in two "
            "ways; leave one of them out."
        )
    source = criterion.pairs
    if source is not None and fitting.spread:
        raise ValueError(
            f"PSGD got Fitting(spread=True) with {type(criterion).__name__}, whose pairs of a step "
            "serve all blocks; leave spread out."
        )
    if source is not None and source.memory and fitting.init_scale is None:
        raise ValueError(
            f"PSGD got {type(source).__name__}, which has no pair in the first step, with "
            "init_scale = None; give Fitting(init_scale=...)."
        )


def _check_clips(clip: object, *, in_graph: bool) -> None:
    """Refuse what are no clips, and for a graph, which keeps them, clips that may change."""
    example = "a sequence of clips such as (ClipRMS(1.1), ClipElement(10.0))"
    expect("PSGD", "clip", clip, Sequence, example)
    for one in clip if isinstance(clip, Sequence) else ():
        expect("PSGD", "a clip", one, Clip, "one such as ClipRMS(1.1)")
        if in_graph and not isinstance(one, Hashable):
            raise TypeError(
                f"PSGD got the clip {one}, which has no hash, with compile=True or "
                "capturable=True, whose graphs keep it as it is; make it a frozen dataclass."
            )


def take_apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], GroupParts]:
    """Return a group's settings as numbers, and its objects.

    Args:
        settings: With `form`, `momentum` and `weight_decay`, objects or numbers.

    Returns:
        The settings without the form and with numbers for the others, and the objects.

    Raises:
        TypeError: If the form is none, or a number no number.
    """
    numbers = dict(settings)
    scope = as_scope(numbers.pop("form"))
    momentum, decay = numbers["momentum"], as_decay(numbers["weight_decay"])
    nesterov = isinstance(momentum, Nesterov)
    numbers["momentum"] = momentum.decay if isinstance(momentum, Nesterov) else momentum
    expect("PSGD", "momentum", numbers["momentum"], int | float, "a number or Nesterov(0.9)")
    numbers["weight_decay"] = decay.rate
    numbers["layout"] = scope.layout
    return numbers, GroupParts(scope, decay, nesterov)


def check_group(settings: Mapping[str, Any], criterion: Criterion) -> None:
    """Check the numbers of one parameter group.

    Args:
        settings: From `take_apart`.
        criterion: The optimizer's.

    Raises:
        TypeError: If `lr` is no number.
        ValueError: If a number is outside its range, or the criterion needs another.
    """
    lr = settings["lr"]
    if not isinstance(lr, int | float | Tensor):
        raise TypeError(f"PSGD got lr = {lr!r}; give a number or a 0-dimensional tensor.")
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"PSGD got an lr of shape {tuple(lr.shape)}; give one number.")
    if not isinstance(lr, Tensor) and not 0 <= lr < math.inf:
        raise ValueError(f"PSGD got lr = {settings['lr']}; give a number of at least 0.")
    if not 0 <= settings["momentum"] < 1:
        raise ValueError(f"PSGD got momentum = {settings['momentum']}; give a number in [0, 1).")
    if criterion.needs_momentum and settings["momentum"] == 0:
        raise ValueError(
            f"PSGD got {type(criterion).__name__} with momentum = 0; give momentum > 0, or "
            "whiten the gradient (GradientWhitening)."
        )


def allocate_group(
    group: Mapping[str, Any],
    parts: GroupParts,
    criterion: Criterion,
    fitting: Fitting,
    wanted: Callable[[Tensor], bool],
    device: torch.device | None = None,
) -> list[Block]:
    """Return fresh blocks for some parameters of a group.

    Args:
        group: The group's numbers, parameters and, if it has any, their names.
        parts: Its objects.
        criterion: The optimizer's.
        fitting: The optimizer's.
        wanted: Which parameters.
        device: Where to put the state; `None` is where the parameters are.

    Returns:
        One block for each view that the scope makes.

    Raises:
        ValueError: If a form for sparse gradients meets a criterion or a decay that looks at rows
            without a gradient.
    """
    names = group.get("param_names", [""] * len(group["params"]))
    pairs = zip(names, group["params"], strict=True)
    named = [(name, p) for name, p in pairs if p.numel()]
    tensors = ["momentum"] if group["momentum"] > 0 else []
    tensors += criterion.memory
    tensors += criterion.pairs.memory if criterion.pairs else ()
    numbers = list(parts.decay.memory)
    numbers += ["whitened"] if isinstance(fitting.precond_lr, Adaptive) else []
    blocks = []
    for view, form in parts.scope.arrange(named, wanted):
        kind = SparseBlock if isinstance(form, SparseForm) else Block
        if kind is SparseBlock:
            _check_sparse(form, criterion, parts.decay)
        blocks.append(kind.allocate(view, form, tensors, numbers, device))
    return blocks


def check_unchanged(group: Mapping[str, Any], block: Block) -> None:
    """Refuse what state that is allocated already cannot follow.

    Args:
        group: The group's numbers now.
        block: One of its blocks.

    Raises:
        TypeError: If the parameters' dtype has changed.
        ValueError: If momentum was 0 when the state was allocated, and is not any more.
    """
    if block.dtype != block.view.like.dtype:
        raise TypeError(
            f"A parameter of shape {tuple(block.view.like.shape)} was {block.dtype} and is now "
            f"{block.view.like.dtype}; build the optimizer after converting the model."
        )
    if group["momentum"] > 0 and "momentum" not in block.extra:
        raise ValueError(
            f"A group's momentum became {group['momentum']} after steps with 0, which keep no "
            "average; start with a small momentum, or build the optimizer again."
        )


def _check_sparse(form: Preconditioner, criterion: Criterion, decay: Decay) -> None:
    """Refuse what needs more of a row without a gradient than to leave it alone."""
    if criterion.pairs is not None or criterion.memory:
        raise ValueError(
            f"PSGD got the form {form.name} with {type(criterion).__name__}, which needs pairs or "
            "averages of rows without a gradient; give it GradientWhitening() or "
            "MomentumWhitening(), or the parameters another form and dense gradients."
        )
    if decay.memory:
        raise ValueError(
            f"PSGD got the form {form.name} with {type(decay).__name__}, which looks at all rows "
            "of a parameter; give these parameters a group with another weight_decay."
        )


def told_names(groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, str]:
    """Return what to call every parameter in an error: its name, or its number."""
    told: dict[Tensor, str] = {}
    for group in groups:
        names = group.get("param_names", [None] * len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            told[p] = f"parameter {len(told) if name is None else name}"
    return told
