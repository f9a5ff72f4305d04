"""Parameter groups: the numbers, which torch sees and saves, and the objects, which it must not.

Objects would make a state_dict unreadable for `torch.load(weights_only=True)`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psgd_optim.averages import Nesterov
from psgd_optim.blocks import Block
from psgd_optim.criteria import Criterion
from psgd_optim.decay import Decay, as_decay
from psgd_optim.fitting import Fitting
from psgd_optim.forms.base import Preconditioner, SparseForm
from psgd_optim.schedules import Adaptive
from psgd_optim.scope import Scope, as_scope
from psgd_optim.sparse_block import SparseBlock


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


def take_apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], GroupParts]:
    """Return a group's settings as numbers, and its objects.

    Args:
        settings: With `form`, `momentum` and `weight_decay`, objects or numbers.

    Returns:
        The settings without the form and with numbers for the others, and the objects.

    Raises:
        TypeError: If the form is none.
    """
    numbers = dict(settings)
    scope = as_scope(numbers.pop("form"))
    momentum, decay = numbers["momentum"], as_decay(numbers["weight_decay"])
    nesterov = isinstance(momentum, Nesterov)
    numbers["momentum"] = momentum.decay if isinstance(momentum, Nesterov) else momentum
    numbers["weight_decay"] = decay.rate
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
    if not isinstance(lr, Tensor) and not lr >= 0:
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
    chosen = [(name, p) for name, p in pairs if p.numel() and wanted(p)]
    tensors = ["momentum"] if group["momentum"] > 0 else []
    tensors += criterion.memory
    tensors += criterion.pairs.memory if criterion.pairs else ()
    numbers = list(parts.decay.memory)
    numbers += ["whitened"] if isinstance(fitting.precond_lr, Adaptive) else []
    blocks = []
    for view, form in parts.scope.arrange(chosen):
        kind = SparseBlock if isinstance(form, SparseForm) else Block
        if kind is SparseBlock:
            _check_sparse(form, criterion, parts.decay)
        blocks.append(kind.allocate(view, form, tensors, numbers, device))
    return blocks


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
