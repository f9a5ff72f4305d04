"""What the methods share that precondition layers by `H_g (gradient) H_a`.

Shape legend: `M` outputs and `n` inputs of a layer, the constant 1 of a bias included.
"""

import abc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from psgd_optim.curvature import refuse_processes
from psgd_optim.derivatives import Closure, Surroundings
from psgd_optim.peers.arguments import ONE_PROCESS, check_integer, check_number, check_rate
from psgd_optim.peers.layers import Layer, Pass, layers_of
from psgd_optim.state_io import check_entries, load_exactly, saved_rows, setting_names
from psgd_optim.types import InputError, State


class KroneckerOptimizer(torch.optim.Optimizer, abc.ABC):
    """An optimizer of a model's layers with one Kronecker product per layer; subclasses are final.

    State is kept with every layer's first parameter, its weight. Its tensors are replaced and never
    written into, so that a step that fails can be undone.

    Args:
        model: Of `nn.Linear` and `nn.Conv2d` layers, and modules without parameters.
        lr: Step size.
        settings: Numbers of the parameter group: `damping`, `beta`, `weight_decay` and others.
        layout: What tells this optimizer from others of its class, for loads.

    Raises:
        InputError: If a number is outside its range, or the model has other parameters.
    """

    needs_closure = True
    """Whether `step` needs a closure that returns the loss: always."""

    def __init__(
        self, model: nn.Module, lr: float, settings: Mapping[str, float], layout: str
    ) -> None:
        self._model = model
        self._layers = layers_of(model)
        numbers: dict[str, Any] = {"lr": lr, **settings}
        self._check(numbers)
        lines = [layout, *(f"{layer.name} {list(layer.shape)}" for layer in self._layers)]
        # Not state: torch turns integers of the state into floating-point numbers.
        counters = {"step": 0, "warm_batches": 0, "is_started": False, "layout": lines}
        params = [p for layer in self._layers for p in layer.parameters]
        super().__init__(params, {**numbers, **counters})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take torch's own first group.

        Args:
            param_group: As in torch.

        Raises:
            InputError: After construction.
        """
        if self.param_groups:
            raise InputError("Got another parameter group; give all layers in one model.")
        super().add_param_group(param_group)

    @property
    def _settings(self) -> dict[str, Any]:
        return self.param_groups[0]

    def _state(self, layer: Layer) -> State:
        """Return a layer's state, made at the first call."""
        weight = layer.module.weight
        state: State = self.state[weight]
        if not state:
            state.update(self._fresh(layer, weight))
        return state

    def _fresh(self, layer: Layer, like: Tensor) -> State:
        """Return a layer's state before the first step, of the dtype and device of a tensor."""
        size, inputs = layer.shape
        return {
            "gradient": like.new_zeros(size, inputs),
            "moment_count": like.new_zeros(()),
            **self._initial(like.new_zeros(size), like.new_zeros(inputs)),
        }

    @abc.abstractmethod
    def _initial(self, outputs: Tensor, inputs: Tensor) -> State:
        """Return a layer's fresh state besides the gradient's average.

        Args:
            outputs: (M,), zeros.
            inputs: (n,), zeros.
        """

    @abc.abstractmethod
    def _warm_moments(self, closure: Closure) -> Iterable[tuple[Layer, State]]:
        """Return every layer with the moments of one mini-batch, by the names of their averages."""

    @torch.no_grad()
    def warm_start(self, closures: Iterable[Closure]) -> None:
        """Average moments over a pass through the training set, before the first step.

        Without it the first mini-batch takes the place of the pass. Moments that are not finite are
        left out. Buffers of the model and torch's random numbers end as they were.

        Args:
            closures: One for every mini-batch, as for `step`.

        Raises:
            InputError: If a step has been taken, or there is no list of closures.
            TypeError: If other processes would have to know.
        """
        refuse_processes(type(self).__name__, ONE_PROCESS)
        if callable(closures):
            raise InputError("Got one closure; give a list of them, one for every mini-batch.")
        if self._settings["step"]:
            raise InputError("Got a warm start after a step; give it before the first one.")
        surroundings = self._surroundings()
        try:
            for closure in closures:
                found = list(self._warm_moments(closure))  # all of them, before any is averaged
                for layer, moments in found:
                    state = self._state(layer)
                    _average(state, moments, 1 / (state["moment_count"] + 1))
                self._settings["warm_batches"] += 1
        finally:
            surroundings.restore()
        if not self._settings["warm_batches"]:
            raise InputError("Got a warm start without mini-batches; give one closure for each.")

    def _fold(self, state: State, moments: State) -> None:
        """Take the moments of a step into their averages.

        The first ones are taken as they are; the first step after a warm start takes none, as its
        mini-batch was in there.
        """
        share = 1 - self._settings["beta"]
        weight: float | Tensor = share
        if not self._settings["is_started"]:
            in_pass = self._settings["step"] == 0 and self._settings["warm_batches"]
            count = state["moment_count"]
            later = torch.full_like(count, 0.0 if in_pass else share)
            weight = torch.where(count == 0, torch.ones_like(count), later)
        _average(state, moments, weight)

    def _fold_gradient(self, layer: Layer, taken: Pass) -> Tensor:
        """Take the gradient, decay included, into its average, and return that.

        Returns:
            (M, n); zeros if the gradient is not finite and so left out: the layer stays.
        """
        weights = layer.matrix(layer.parameters)
        new = taken.gradients[layer].add(weights, alpha=self._settings["weight_decay"])
        state, is_finite = self._state(layer), new.isfinite().all()
        old = state["gradient"]
        average = old.lerp(torch.where(is_finite, new, old), 1 - self._settings["beta"])
        state["gradient"] = average
        return torch.where(is_finite, average, 0.0)

    def _move(self, layer: Layer, direction: Tensor) -> None:
        """Step against a direction (M, n); one that is not finite leaves the layer where it is."""
        is_finite = direction.isfinite().all()
        layer.move_(torch.where(is_finite, direction, 0.0), -self._settings["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- torch's
        """Take one step; one that raises leaves weights and state as they were.

        A gradient, moments or a pair that is not finite is left out of its average. A layer whose
        gradient or step is not finite, or that has had no finite moments yet, stays where it is.

        Args:
            closure: Returns the mean loss over the samples of a mini-batch, always the same one,
                without calling `backward`. Autocast belongs inside of it. Gradients in `grad` are
                neither read nor written.

        Returns:
            0-D, the loss before the step.

        Raises:
            TypeError: If there is no closure, or other processes would have to know.
            InputError: If the closure does not use every layer once, on a mini-batch, or a setting
                is outside its range.
        """
        if closure is None:
            raise TypeError(
                f"{type(self).__name__} differentiates the loss itself; call step(closure) with a "
                "closure that returns the loss, without backward()."
            )
        refuse_processes(type(self).__name__, ONE_PROCESS)
        self._check(self._settings)
        with self._undone_on_error():
            loss = self._take_step(closure)
        if not self._settings["is_started"]:
            # Read on the host until it holds, which is in the first step but for bad numbers.
            counts = [self._state(layer)["moment_count"] for layer in self._layers]
            self._settings["is_started"] = all(bool(count > 0) for count in counts)
        self._settings["step"] += 1
        return loss

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Put weights and state back if what is inside raises."""
        params = [p for layer in self._layers for p in layer.parameters]
        held = [p.clone() for p in params]
        weights = [layer.module.weight for layer in self._layers]
        states = {weight: dict(self.state[weight]) for weight in weights}
        try:
            yield
        except BaseException:
            for p, old in zip(params, held, strict=True):
                p.copy_(old)
            self.state.update(states)
            raise

    def _surroundings(self) -> Surroundings:
        return Surroundings([layer.module.weight for layer in self._layers], self._model)

    @abc.abstractmethod
    def _take_step(self, closure: Closure) -> Tensor:
        """Take one step, and return the loss before it."""

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Empty the gradient averages; the preconditioners stay as they are."""
        for layer in self._layers:
            state = self._state(layer)
            state["gradient"] = torch.zeros_like(state["gradient"])

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit for bit; nothing changes when it does not fit.

        Args:
            state_dict: Of an optimizer of the same class and of a model with the same layers. Its
                settings replace those of this one, as in torch.

        Raises:
            InputError: If it is of another one, or of other numbers, shapes or dtypes.
        """
        load_exactly(self, super().load_state_dict, state_dict, self._read)

    def _read(self, state_dict: Mapping[str, Any]) -> Mapping[Tensor, State]:
        """Return saved state by parameter, having checked that it is of this optimizer."""
        groups = state_dict.get("param_groups") or [{}]
        mine = self._settings["layout"]
        theirs = groups[0].get("layout", ["another optimizer"])
        if len(groups) > 1 or theirs != mine:
            raise InputError(
                f"Got the state of {_difference(theirs, mine)}, where this optimizer has "
                f"{_difference(mine, theirs)}; build optimizer and model as they were."
            )
        owner, group = type(self).__name__, groups[0]
        if missing := setting_names(self) - group.keys():
            raise InputError(
                f"Got saved settings without {min(missing)}; give what {owner}.state_dict() "
                "returned."
            )
        self._check(group)
        params = [p for layer in self._layers for p in layer.parameters]
        saved = saved_rows(state_dict, params)
        for layer in self._layers:
            weight = layer.module.weight
            entries = saved.pop(weight, {})
            if entries or group["step"] or group["warm_batches"]:
                expected = self._fresh(layer, torch.empty_like(weight, device="meta"))
                check_entries(owner, weight, entries, expected)
                saved[weight] = entries
        for p in saved.keys() - {layer.module.weight for layer in self._layers}:
            check_entries(owner, p, saved[p], {})
        return saved

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings of another type, and numbers outside their range."""
        for name, x in settings.items():
            if name == "lr" or name == "weight_decay":
                check_rate(name, x)
            elif name in ("step", "warm_batches"):
                check_integer(name, x, 0)
            elif name == "interval":
                check_integer(name, x, 1)
            elif name == "seed":
                check_integer(name, x)
            elif name == "is_started":
                if not isinstance(x, bool):
                    raise InputError(f"Got {name} = {x!r}; give True or False.")
            elif name.endswith("beta"):
                check_number(name, x, "a number in [0, 1)", lambda x: 0 <= x < 1)
            elif name == "inverse_ratio":
                check_number(name, x, "a number in (0, 1)", lambda x: 0 < x < 1)
            elif name == "damping":
                self._check_damping(x)

    def _check_damping(self, x: object) -> None:
        check_number("damping", x, "a number above 0", lambda x: 0 < x < math.inf)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: x for name, x in vars(self).items() if name in self._kept()}
        return {**super().__getstate__(), **own}

    def _kept(self) -> Sequence[str]:
        """Return the names of the attributes that a copy needs, torch's own apart."""
        return ("_model", "_layers")


def _average(state: State, moments: State, weight: float | Tensor) -> None:
    """Take a layer's moments into their averages and count them, if all of them are finite."""
    is_finite = torch.stack([x.isfinite().all() for x in moments.values()]).all()
    for name, moment in moments.items():
        old = state[name]
        state[name] = old.lerp(torch.where(is_finite, moment, old), weight)
    state["moment_count"] = state["moment_count"] + is_finite


def _difference(these: Sequence[str], those: Sequence[str]) -> str:
    """Return the first line that differs."""
    return next((a for a, b in zip(these, those, strict=False) if a != b), f"{len(these)} lines")


def damped_inverse(moment: Tensor, damping: float) -> Tensor:
    """Return `(A + damping I)^-1` of a positive semi-definite matrix (n, n).

    Where A is so large that its rounding errors exceed the damping, as in a run that diverges,
    it may have eigenvalues below `-damping`; they count as 0 then.
    """
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    root, failed = torch.linalg.cholesky_ex(moment + damping * eye)
    if not failed:
        return torch.cholesky_inverse(root)
    values, vectors = torch.linalg.eigh(moment)
    inverse: Tensor = (vectors / (values.clamp(min=0) + damping)) @ vectors.T
    return inverse
