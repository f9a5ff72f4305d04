"""SGD with a diagonal preconditioner from Hessian-vector products: equilibration and Jacobi.

Both divide the gradient by a running mean over probes `v`: ESGD by the root of that of `(H v)^2`,
the norms of the Hessian's rows; Jacobi SGD by the modulus of that of `v * H v`, its diagonal.
"""

import abc
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from psgd_optim.curvature import Exact, check_closure
from psgd_optim.derivatives import Evaluation
from psgd_optim.groups import told_names
from psgd_optim.linalg import lift
from psgd_optim.noise import noise_generator, normal_like, signs_like
from psgd_optim.peers.arguments import ONE_PROCESS, check_integer, check_number, check_rate
from psgd_optim.state_io import check_entries, load_exactly, saved_rows, setting_names
from psgd_optim.types import InputError

_SOURCE = Exact()
_SHARED = ("refresh_every", "seed", "step")
_REFRESHES = "refreshes"
"""State entry of every parameter: 0-D int64, the probes in its sum."""


class _ProbedSGD(torch.optim.Optimizer, abc.ABC):
    """Divides gradients by a curvature that is estimated every few steps.

    State of a parameter: the sum of its terms, in single precision or better, and the number of
    refreshes in it. The number of steps and the seed are in the parameter groups; probes are a
    function of seed, step and the parameter's place, so that there is no generator to save.
    """

    needs_closure: ClassVar[bool] = True
    """`step` takes a closure that returns the loss, or yields its parts, without `backward`."""
    differentiates_twice: ClassVar[bool] = True
    """Steps that refresh need a second derivative."""
    _sum: ClassVar[str]  # state entry: the sum of the terms

    def __init__(
        self, params: ParamsT, lr: float, *, damping: float, refresh_every: int = 20, seed: int = 0
    ) -> None:
        shared = {"refresh_every": refresh_every, "seed": seed, "step": 0}
        super().__init__(params, {"lr": lr, "damping": damping, **shared})

    @abc.abstractmethod
    def _probe(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return `v` in the shape of a parameter."""

    @abc.abstractmethod
    def _term(self, v: Tensor, hv: Tensor) -> Tensor:
        """Return what a probe adds to the sum."""

    @abc.abstractmethod
    def _curvature(self, mean: Tensor) -> Tensor:
        """Return what the gradient is divided by, before damping, from the mean of the terms."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may set `lr` and `damping`.

        Args:
            param_group: `params` and the settings that differ from the optimizer's.

        Raises:
            InputError: If a setting is outside its range or cannot differ between groups, or a
                parameter is not real.
        """
        shared = self.param_groups[0] if self.param_groups else self.defaults
        for name in _SHARED:
            if param_group.get(name, shared[name]) != shared[name]:
                owner = type(self).__name__
                raise InputError(f"Got {name} in a parameter group; give it to {owner} itself.")
        settings = {**self.defaults, **param_group, **{name: shared[name] for name in _SHARED}}
        _check_settings(settings)
        super().add_param_group(settings)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                self.param_groups.pop()
                raise InputError(f"Got a parameter of dtype {p.dtype}; give real ones.")

    @property
    def fits_next(self) -> bool:
        """Whether the next step refreshes the estimate: the first one, then every few."""
        shared = self.param_groups[0]
        return bool(shared["step"] % shared["refresh_every"] == 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- torch's
        """Take one step.

        A probe whose term is not finite is left out of the sum and its count. A parameter whose
        step is not finite, or that has had no finite probe yet, stays where it is.

        Args:
            closure: Returns the loss, or yields its parts, without calling `backward`. The
                gradients are left in `grad`, whatever was there.

        Returns:
            The loss before the step, 0-D.

        Raises:
            InputError: If the loss cannot be differentiated as this step needs it, or a gradient
                is sparse.
            TypeError: If there is no closure, or other processes would have to know.
        """
        closure = check_closure(_SOURCE, closure, type(self).__name__, ONE_PROCESS)
        probes = self._probes() if self.fits_next else None
        params = [p for p in self._parameters() if p.requires_grad]
        found = _SOURCE.evaluate(closure, params, probes, told_names(self.param_groups))
        _refuse_sparse(found)
        for p, hv in found.products.items():
            if probes is not None:
                self._accumulate(p, probes[p], hv)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = found.grads.get(p)
                self._move(p, group["lr"], group["damping"])
            group["step"] += 1
        return found.loss

    def _parameters(self) -> Iterator[Tensor]:
        return itertools.chain.from_iterable(group["params"] for group in self.param_groups)

    def _probes(self) -> dict[Tensor, Tensor]:
        """Return this step's probes; a frozen parameter does not change the others'."""
        seed, step = self.param_groups[0]["seed"], self.param_groups[0]["step"]
        return {
            p: self._probe(p, noise_generator(p.device, seed, step, place))
            for place, p in enumerate(self._parameters())
        }

    def _accumulate(self, p: Tensor, v: Tensor, hv: Tensor) -> None:
        """Add a probe's term to the sum, and count it, if it is finite."""
        term = self._term(lift(v), lift(hv))
        state = self.state[p]
        if not state:
            state[self._sum] = torch.zeros_like(term)
            state[_REFRESHES] = torch.zeros((), dtype=torch.int64, device=p.device)
        is_finite = term.isfinite().all()
        state[self._sum].add_(torch.where(is_finite, term, 0))
        state[_REFRESHES].add_(is_finite)

    def _move(self, p: Tensor, lr: float | Tensor, damping: float) -> None:
        """Step along the scaled gradient: `p <- p - lr g / (curvature + damping)`."""
        if p.grad is None or p not in self.state:
            return
        state = self.state[p]
        mean = state[self._sum] / state[_REFRESHES]  # not finite before the first finite probe
        step = lr * (lift(p.grad) / (self._curvature(mean) + damping))
        p.sub_(torch.where(step.isfinite().all(), step, 0))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit for bit; nothing changes when it does not fit.

        Args:
            state_dict: From an optimizer of this class with the same groups. Its settings, the
                seed included, replace those of this one, as in torch.

        Raises:
            InputError: If it is of another optimizer, or of other shapes or dtypes.
            ValueError: If it is of other groups.
        """
        load_exactly(self, super().load_state_dict, state_dict, self._read)

    def _read(self, state_dict: Mapping[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
        """Return saved state by parameter, having checked that it is of this optimizer."""
        owner = type(self).__name__
        groups = state_dict.get("param_groups", [{}])
        if any(not group.keys() >= setting_names(self) for group in groups):
            raise InputError(
                f"Got the state of another optimizer; give what {owner}.state_dict() returned."
            )
        for group in groups:
            _check_settings(group)
        saved = saved_rows(state_dict, self._parameters())
        for p, entries in saved.items():
            expected = {
                self._sum: lift(torch.empty_like(p, device="meta")),
                _REFRESHES: torch.empty((), dtype=torch.int64, device="meta"),
            }
            check_entries(owner, p, entries, expected)
        return saved


@final
class ESGD(_ProbedSGD):
    """Equilibrated SGD: `theta <- theta - lr g / (sqrt(mean (H v)^2) + damping)`, `v ~ N(0, I)`.

    The mean over all refreshes estimates `diag(H^2)`, the squared norms of the Hessian's rows.

    Args:
        params: Parameters or groups of them; a group may set `lr` and `damping`.
        lr: Step size. The paper's search: 0.01 to 0.1.
        damping: Added to the curvature, in its units; positive. The paper's search: 1e-6 to 1e-4.
        refresh_every: Steps from one probe to the next; the first step always has one. The others
            compute the gradient alone.
        seed: Of the probes.

    Raises:
        InputError: If an argument is outside its range.

    Source: S3, Algorithm 1. Deviation: `k` counts refreshes, where the algorithm counts steps with
    the same letter; probes and steps that are not finite are left out.
    """

    _sum = "squares"

    def _probe(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return normal_like(like, generator)

    def _term(self, v: Tensor, hv: Tensor) -> Tensor:
        return hv.square()

    def _curvature(self, mean: Tensor) -> Tensor:
        return mean.sqrt()


@final
class JacobiSGD(_ProbedSGD):
    """SGD with Jacobi's preconditioner: `theta <- theta - lr g / (|mean v * H v| + damping)`.

    The mean over all refreshes, with signs `v` in {-1, 1}, estimates `diag(H)`.

    Args:
        params: Parameters or groups of them; a group may set `lr` and `damping`.
        lr: Step size. The paper's search: 1e-4 to 1e-3.
        damping: Added to the curvature, in its units; positive. The paper's search: 1e-6 to 1e-4.
        refresh_every: Steps from one probe to the next; the first step always has one. The others
            compute the gradient alone.
        seed: Of the probes.

    Raises:
        InputError: If an argument is outside its range.

    Source: S3, section 7. Deviation: as of `ESGD`.
    """

    _sum = "products"

    def _probe(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return signs_like(like, generator)

    def _term(self, v: Tensor, hv: Tensor) -> Tensor:
        return v * hv

    def _curvature(self, mean: Tensor) -> Tensor:
        return mean.abs()


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse numbers of a group outside their range."""
    check_rate("lr", settings["lr"])
    check_number("damping", settings["damping"], "a positive number", lambda x: 0 < x < math.inf)
    check_integer("refresh_every", settings["refresh_every"], 1)
    check_integer("seed", settings["seed"])
    check_integer("step", settings["step"], 0)


def _refuse_sparse(found: Evaluation) -> None:
    """Refuse sparse gradients, whose Hessian rows would be dense."""
    for p, grad in found.grads.items():
        if grad.is_sparse:
            raise InputError(
                f"Got a sparse gradient of a parameter of shape {tuple(p.shape)}; give its "
                "embedding sparse=False."
            )
