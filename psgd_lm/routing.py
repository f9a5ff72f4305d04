"""Which optimizer steps which parameters: by their role in the model, as data."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from psgd_optim.config import (
    OPTIMIZERS,
    MuonConfig,
    OptimizerConfig,
    PSGDConfig,
    build,
    build_psgd,
    differing,
)
from psgd_optim.config.base import built
from psgd_optim.tools.together import Together
from psgd_optim.types import InputError

Role = Literal["matrix", "embedding", "head", "vector"]

_SEED_STRIDE = 1 << 40
"""From the seed of an optimizer to that of the next, far above the seeds that people give."""


@dataclass(frozen=True, kw_only=True)
class Same:
    """The optimizer of the matrices."""

    name: ClassVar[str] = "same"


Route = Same | OptimizerConfig

ROUTES: dict[str, Route] = {Same.name: Same(), **OPTIMIZERS}
"""What steps the parameters of a role, by name."""


@dataclass(frozen=True, kw_only=True)
class Routes:
    """The optimizer of each role."""

    optim: OptimizerConfig = field(default_factory=PSGDConfig)
    """Of matrices, and of every role that goes with them."""
    embedding: Route = field(default_factory=Same)
    """Of embeddings, a tied head included."""
    head: Route = field(default_factory=Same)
    """Of an untied head's matrix."""
    vector: Route = field(default_factory=Same)
    """Of biases and gains."""

    def of(self, role: Role) -> OptimizerConfig:
        """Return the settings for a role."""
        if role == "matrix":
            return self.optim
        route: Route = getattr(self, role)
        return self.optim if isinstance(route, Same) else route


def roles(model: nn.Module) -> dict[str, Role]:
    """Return the role of every trained parameter.

    Args:
        model: Its head, if it has one of its own, is the attribute `head`.

    Returns:
        By name, in the model's order: the weights of `nn.Embedding` are embeddings whatever else
        they serve as; of the others, those with fewer than two axes are vectors.
    """
    modules = model.modules()
    embeddings = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    head = getattr(model, "head", None)
    heads = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()

    def role(parameter: Tensor) -> Role:
        if id(parameter) in embeddings:
            return "embedding"
        if parameter.ndim < 2:
            return "vector"
        return "head" if id(parameter) in heads else "matrix"

    return {name: role(p) for name, p in model.named_parameters() if p.requires_grad}


def build_optimizer(model: nn.Module, routes: Routes, seed: int = 0) -> torch.optim.Optimizer:
    """Build what steps a model.

    Roles with equal settings share an optimizer. Where all of them are `psgd` and differ only in
    what a parameter group may have of its own, it is one `PSGD` with groups.

    Args:
        model: The model.
        routes: The optimizer of each role.
        seed: Of the optimizers' own random numbers.

    Returns:
        An optimizer, or several as one.
    """
    parameters = dict(model.named_parameters())
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    sparse = {id(table.weight) for table in tables if table.sparse}
    routed: dict[OptimizerConfig, list[str]] = {}
    names: dict[OptimizerConfig, list[Role]] = {}
    for name, role in roles(model).items():
        config = routes.of(role)
        _check_muon(config, role, name)
        if id(parameters[name]) in sparse:
            _check_sparse(config, name)
        routed.setdefault(config, []).append(name)
        if role not in names.setdefault(config, []):
            names[config].append(role)
    if len(routed) <= 1:
        config = next(iter(routed), routes.optim)
        return build(model.named_parameters(), config, seed)
    if psgd := _one_psgd(routed, parameters, seed):
        return psgd
    return Together({
        "+".join(names[config]): build(
            [(name, parameters[name]) for name in some],
            config,
            (seed + i * _SEED_STRIDE) % 2**63,
        )
        for i, (config, some) in enumerate(routed.items())
    })


def _one_psgd(
    routed: dict[OptimizerConfig, list[str]], parameters: dict[str, nn.Parameter], seed: int
) -> torch.optim.Optimizer | None:
    """Return one optimizer with groups, or `None` if the routes need several."""
    configs = [config for config in routed if isinstance(config, PSGDConfig)]
    if len(configs) < len(routed):
        return None
    for config in configs[1:]:
        if differing(configs[0], config):
            return None
    parts = [(config, [parameters[name] for name in routed[config]]) for config in configs]
    try:
        return build_psgd(parts, seed)
    except (TypeError, ValueError) as error:
        raise InputError(f"psgd: {error}") from error


def _check_muon(config: OptimizerConfig, role: Role, name: str) -> None:
    """Refuse Muon where its orthogonal steps mean nothing."""
    if isinstance(config, MuonConfig) and role in ("embedding", "vector"):
        raise InputError(
            f"muon steps matrices only, and {name} is of the role {role}; give "
            "--embedding adamw --vector adamw, and --head adamw where the head is untied."
        )


def _check_sparse(config: OptimizerConfig, name: str) -> None:
    """Refuse an optimizer that does not step from sparse gradients, found out by a step of it."""
    table = nn.Parameter(torch.zeros(2, 2))
    optimizer = built(config, [table], 0)
    table.grad = torch.eye(2).to_sparse(1)
    try:
        optimizer.step()
    # Another package's optimizer raises what it likes.
    except Exception as error:
        raise InputError(
            f"{config.name} refuses the sparse gradient of {name} ({error}); give --embedding "
            "psgd --embedding.form touched-rows, --embedding sgd or --model.no-sparse-embedding."
        ) from error
