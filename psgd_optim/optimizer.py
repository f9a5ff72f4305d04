"""`PSGD`, the `torch.optim.Optimizer` that drives any form with any criterion."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from psgd_optim.averages import Nesterov
from psgd_optim.background import Background
from psgd_optim.blocks import Block
from psgd_optim.capture import runner_of
from psgd_optim.clipping import Clip
from psgd_optim.criteria import Criterion, MomentumWhitening
from psgd_optim.curvature import Given, LossSource, Pairs, check_closure, given_pairs
from psgd_optim.decay import Decay
from psgd_optim.diagnostics import StepFigures
from psgd_optim.fitting import STRETCH, Fitting
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.kron import Kron
from psgd_optim.groups import (
    GroupParts,
    allocate_group,
    check_arguments,
    check_group,
    take_apart,
    told_names,
)
from psgd_optim.joint_step import Member, Moment, take_step
from psgd_optim.noise import noise_generator, normal_like
from psgd_optim.scope import Scope
from psgd_optim.state_io import (
    CLOCK,
    clock_tensor,
    saved_clock,
    saved_rows,
)
from psgd_optim.store import BlockStore
from psgd_optim.summary import check_memory, summarise

_PARTS = ("form", "criterion", "clip", "fitting", "_group_parts", "_seed", "_step", "_runner")
_PROBES = -2  # the number of the probes' first random stream, counting down; blocks count from 0


class PSGD(torch.optim.Optimizer):
    """Preconditioned SGD: the step is `-lr P m`, with `P` fitted to the gradients as they come.

    Parameters of one shape are stacked and stepped together. `lr`, `momentum` and `weight_decay`
    are param-group entries, so learning-rate schedulers work; a group may also bring its own
    `form`. A gradient with an infinite or undefined entry moves neither its parameter (but for the
    weight decay) nor its preconditioner. State is allocated at the first step.

    A criterion that needs pairs takes `step(closure)`, with a closure that returns the loss, or
    yields its parts, without calling `backward`; or `step(pair=(v, hv))`.

    Args:
        params: Parameters, `named_parameters()`, or param groups.
        lr: Step size, in root-mean-square parameter change per step when the momentum is
            whitened, relative to a full Newton step with `Newton`; a number, a 0-dimensional
            tensor, or `None` for the criterion's own: 1e-3, and 0.1 with `Newton`.
        form: The preconditioner's form, or a scope that says which parameters a form sees.
        criterion: What the preconditioner is fitted to.
        momentum: Decay of the gradient average in [0, 1), or `Nesterov(decay)`.
        weight_decay: Rate of the decoupled decay, of which a step takes `lr` times; or another
            `Decay`.
        clip: Limits and scales of the preconditioned gradient, applied in order; `None` takes the
            criterion's own.
        fitting: Step size, gate, order, start and seed of the preconditioner's fit.
        compile: Run a step as one graph of `torch.compile`, made once for steps with and once for
            steps without a fit; equal but for rounding. Not compiled are the first steps, until
            all parameters of a shape have had a gradient; steps in which some of them have none;
            sparse gradients; criteria that need pairs. Clips and decays of your own have to take
            rates as tensors, and to stay as they are. Not part of the saved state.
        capturable: Record a step as a CUDA graph, and replay it, where all parameters are in no
            such situation, on one device, and all fits or none in the step (not `spread`): bit for
            bit an eager step with `lr` as a tensor of double precision. The gradients and the
            random numbers of a fit are copied to places of their own, which `max_memory` does not
            count. For forms without matrix decompositions, whose solvers wait for the device. Not
            for captures of your own, as `capturable` of torch's optimizers is.

    Raises:
        TypeError: If a part is not of its type.
        ValueError: If a number is outside its range or two parts do not go together.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = PSGD(model.parameters(), lr=1e-3)
        >>> loss = model(torch.ones(2, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        *,
        form: Preconditioner | Scope = Kron(),
        criterion: Criterion = MomentumWhitening(),
        momentum: float | Nesterov = 0.9,
        weight_decay: float | Decay = 0.0,
        clip: Sequence[Clip] | None = None,
        fitting: Fitting = Fitting(),
        compile: bool = False,  # noqa: A002 -- what torch calls it
        capturable: bool = False,
    ) -> None:
        check_arguments(criterion, clip, fitting, compiles=compile, captures=capturable)
        self.form = form
        self.criterion = criterion
        self.clip = criterion.default_clip if clip is None else tuple(clip)
        self.fitting = fitting
        self._runner = runner_of(compiles=compile, captures=capturable)
        self._group_parts: list[GroupParts] = []
        self._store = BlockStore(0)
        self._seed = fitting.seed
        self._step = 0
        self._numbered: list[tuple[int, int, Block]] | None = None  # the store's, until it grows
        self._uses: float | None = None  # of the stretch of steps that this one is in
        self._last: StepFigures | None = None
        self._background = Background()
        lr = criterion.default_lr if lr is None else lr
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may set `lr`, `momentum`, `weight_decay` and `form`.

        Args:
            param_group: `params` and the settings that differ from the optimizer's.

        Raises:
            TypeError: If its form is none.
            ValueError: If a setting is outside its range, or cannot differ between groups, or the
                form does not fit a parameter, or the plan takes more than `fitting.max_memory`.
        """
        for name in ("criterion", "clip", "fitting"):
            if name in param_group:
                raise ValueError(f"PSGD got {name} in a parameter group; give it to PSGD itself.")
        settings, parts = take_apart({"form": self.form, **self.defaults, **param_group})
        check_group(settings, self.criterion)
        super().add_param_group(settings)
        self._group_parts.append(parts)
        self._store.groups.append([])
        try:
            # One group alone while there is no limit: planning all of them each time is quadratic.
            limited = self.fitting.max_memory < math.inf
            plan = self._plan(0 if limited else -1)
            check_memory(plan, self.fitting.max_memory, self.fitting.most_uses)
        except Exception:
            for kept in (self.param_groups, self._group_parts, self._store.groups):
                kept.pop()
            raise

    @property
    def needs_closure(self) -> bool:
        """Whether `step` needs a closure that returns the loss without calling `backward`."""
        return isinstance(self.criterion.pairs, LossSource)

    @property
    def differentiates_twice(self) -> bool:
        """Whether steps that fit `Q` need a second derivative of the loss."""
        return getattr(self.criterion.pairs, "differentiates_twice", False)

    @property
    def takes_pairs(self) -> bool:
        """Whether `step` needs a pair of the caller's where it fits `Q`."""
        return isinstance(self.criterion.pairs, Given)

    @property
    def fits_next(self) -> bool:
        """Whether the next step fits any `Q`: then it needs a pair if the criterion takes one."""
        places = [member.place for member in self._members()] if self.fitting.spread else [0]
        rates = (self.fitting.rate(self._seed, self._step, place) for place in places)
        return any(rates) or self._starts_next()

    def _starts_next(self) -> bool:
        """Whether the next step needs a pair to start from, as no row has had one yet."""
        # Rows whose first gradient comes later start in the next step that fits Q: one that never
        # gets a gradient must not cost a Hessian-vector product in every step.
        if self.criterion.pairs is None or self.fitting.init_scale is not None:
            return False
        return all(len(block.pending) == block.view.rows for block in self._store)

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        pair: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> Any:  # noqa: ANN401 -- torch's
        """Take one step along the preconditioned gradients.

        Args:
            closure: If `needs_closure`, returns the loss, or yields its parts, without calling
                `backward`; always of the same batch, as it may be called more than once. The
                gradients are left in `grad`, whatever was there. Else optional, as in torch: clears
                the gradients, computes the loss, calls `backward` and returns the loss.
            pair: `(v, hv)` for `Newton(source=Given())`: probes and Hessian-vector products of
                the trainable parameters, in the order of the groups; may be left out in a step
                that does not fit `Q` (`fits_next`).

        Returns:
            What the closure returned, the loss as a 0-D tensor if `needs_closure`, or `None`.

        Raises:
            InputError: If the loss cannot be differentiated as the criterion needs it.
            TypeError: If the closure or the pair is missing or superfluous, or a gradient is
                sparse.
            ValueError: If the pair does not fit the parameters, or a schedule leaves its range.
        """
        fits = self.fits_next
        pairs = self._given(pair, fits)
        loss = None
        if isinstance(self.criterion.pairs, LossSource):
            loss, pairs = self._evaluate(self.criterion.pairs, closure, fits)
        elif closure is not None:
            with torch.enable_grad():
                loss = closure()
            if all(p.grad is None for p in self._parameters()):
                raise TypeError(
                    f"The closure left no gradient; {type(self.criterion).__name__} needs one that "
                    "calls backward()."
                )
        self._background.join()
        if any(p.grad is not None and self._store.is_new(p) for p in self._parameters()):
            new = self._store.made(self._arranged, {})
            self._runner.check(itertools.chain.from_iterable(new))
            self._store.add(new)
            self._numbered = None
            self._show_state()
        if self._uses is None or self._step % STRETCH == 0:
            self._uses = self.fitting.uses(self._step)
        moment = Moment(seed=self._seed, step=self._step, uses=self._uses, pairs=pairs)
        self._last = take_step(
            self._members(),
            self.criterion,
            self.fitting,
            self.clip,
            moment,
            self._runner,
            self._background,
        )
        self._step += 1
        return loss

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Empty the gradient averages, as when the loss has become another; `Q` stays as it is.

        The count of the steps stays too: the next ones are short, as the averages fill up again.
        """
        self._background.join()
        for block in self._store:
            if "momentum" in block.extra:
                block.extra["momentum"].zero_()

    def _given(
        self, pair: tuple[Sequence[Tensor], Sequence[Tensor]] | None, fits: bool
    ) -> Pairs | None:
        """Return the caller's pair by parameter."""
        if pair is None:
            if self.takes_pairs and fits:
                raise TypeError("This step fits Q to a given pair; call step(pair=(v, hv)).")
            return None
        if not self.takes_pairs:
            raise TypeError("PSGD got a pair; give it criterion=Newton(source=curvature.Given()).")
        return given_pairs(pair, self._trainable())

    def _evaluate(
        self, source: LossSource, closure: Callable[[], Any] | None, fits: bool
    ) -> tuple[Tensor, Pairs | None]:
        """Set the gradients, and return the loss and, in a step that fits, the pairs."""
        closure = check_closure(source, closure)
        params = self._trainable()
        # Every device has a stream of its own: equal numbers would correlate the probes.
        streams = {
            device: noise_generator(device, self._seed, self._step, _PROBES - i)
            for i, device in enumerate(dict.fromkeys(p.device for p in params))
        }
        probes = {p: normal_like(p, streams[p.device]) for p in params} if fits else None
        found = source.evaluate(closure, params, probes, told_names(self.param_groups))
        for p in self._parameters():  # a frozen one must not keep the gradient it had before
            p.grad = found.grads.get(p)
        return found.loss, None if probes is None else (probes, found.products)

    def _members(self) -> list[Member]:
        """Return every block with its group."""
        if self._numbered is None:
            self._numbered = list(self._store.numbered(self._parameters()))
        return [
            Member(number, block, self.param_groups[index], self._group_parts[index])
            for number, index, block in self._numbered
        ]

    def _parameters(self) -> Iterator[Tensor]:
        return itertools.chain.from_iterable(group["params"] for group in self.param_groups)

    def _trainable(self) -> list[Tensor]:
        return [p for p in self._parameters() if p.requires_grad]

    def _plan(self, first: int = 0) -> list[list[Block]]:
        """Return what blocks trainable parameters get, by group from one on, without memory."""
        return self._arranged(lambda p: p.requires_grad, torch.device("meta"), first)

    def _arranged(
        self, wanted: Callable[[Tensor], bool], device: torch.device | None = None, first: int = 0
    ) -> list[list[Block]]:
        """Return fresh blocks for some parameters, by group, on their own device or another."""
        groups = zip(self.param_groups[first:], self._group_parts[first:], strict=True)
        return [
            allocate_group(group, parts, self.criterion, self.fitting, wanted, device)
            for group, parts in groups
        ]

    def _show_state(self) -> None:
        """Make `state` the rows of the stacks again, whoever replaced them, when it is at rest."""
        self._background.join()
        rows = self._store.rows(list(self._parameters()))
        if rows:
            first = next(p for p in self._parameters() if p in rows)
            rows[first][CLOCK] = clock_tensor(self._seed, self._step)
        self.state.update(rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and numbers, safe for `torch.load(weights_only=True)`."""
        self._show_state()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit for bit; nothing changes when it does not fit.

        Args:
            state_dict: From an optimizer with the same groups and forms. The random stream goes
                on from it, whatever `fitting.seed` says here.

        Raises:
            ValueError: If it is of other groups, forms, shapes or dtypes.
        """
        self._background.join()  # what is to be loaded may be views of what it writes
        held = self._store
        read: list[tuple[list[list[Block]], tuple[int, int]]] = []

        def take(_: torch.optim.Optimizer, hooked: dict[str, Any]) -> None:
            read.append(self._read(hooked))

        # Last among the hooks, so that it sees what others have made of the state.
        handle = self.register_load_state_dict_pre_hook(take)
        try:
            super().load_state_dict(state_dict)
        except Exception:
            self._store = held
            raise
        finally:
            handle.remove()
        self._restart(*read[0])

    def _read(self, state_dict: dict[str, Any]) -> tuple[list[list[Block]], tuple[int, int]]:
        """Return blocks with saved state, and its clock, having checked that all of it fits."""
        saved = saved_rows(state_dict, self._parameters())
        clock = saved_clock(saved) if saved else (self.fitting.seed, 0)
        for mine, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            settings, _ = take_apart({"form": self.form, **self.defaults, **theirs})
            check_group(settings, self.criterion)
            if theirs.get("layout", mine["layout"]) != mine["layout"]:
                raise ValueError(
                    f"The saved state is of the form {theirs['layout']}, this optimizer's is of "
                    f"{mine['layout']}; build it with the form it had then."
                )
        self._store = BlockStore(len(self.param_groups))
        return (self._store.made(self._arranged, saved) if saved else self._store.groups), clock

    def _restart(self, blocks: list[list[Block]], clock: tuple[int, int]) -> None:
        """Go on from these blocks."""
        self._seed, self._step = clock
        self._uses = None
        self._numbered = None
        self._runner.forget()
        self._last = None
        self._store = BlockStore(len(self.param_groups))
        self._store.add(blocks)
        self.state = defaultdict(dict)  # not cleared: a shallow copy may share the old one
        self._show_state()

    def __getstate__(self) -> dict[str, Any]:
        self._show_state()
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _PARTS}}

    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch passes two entries after a load, which restarts from its own blocks; a copy or an
        # unpickled optimizer brings its parts, and its rows are no longer views of any stack.
        if "_group_parts" in state:
            self._background = Background()
            self._store = BlockStore(len(self.param_groups))
            rows = dict(self.state)
            blocks = self._store.made(self._arranged, rows) if rows else self._store.groups
            self._restart(blocks, (self._seed, self._step))

    def metrics(self) -> dict[str, Tensor]:
        """Return figures of the last step as 0-dimensional tensors, without waiting for them.

        Returns:
            `update_rms`, the root mean square of the preconditioned gradient before clips and `lr`,
            which is about 1 where `P` whitens what it is applied to, and `skipped`,
            the number of rows that did not move because their gradient, or what the preconditioner
            made of it, was not finite. Empty before the first step.
        """
        return {} if self._last is None else self._last.metrics()

    def summary(self) -> str:
        """Return a table of what every shape gets and what it costs, without allocating it."""
        return summarise(self._plan(), self.fitting.most_uses)
