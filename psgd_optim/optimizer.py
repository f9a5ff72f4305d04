"""`PSGD`, the `torch.optim.Optimizer` that drives any form with any criterion."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from psgd_optim.blocks import Block, squeezed, stackable
from psgd_optim.clipping import Clip, ClipElement, ClipRMS
from psgd_optim.criteria import MomentumWhitening, Whitening
from psgd_optim.fitting import Fitting, initial_scale, noise_generator
from psgd_optim.forms.base import Preconditioner
from psgd_optim.forms.kron import Kron
from psgd_optim.linalg import per_block
from psgd_optim.state_io import CLOCK, clock_tensor, restore_rows, saved_clock, saved_rows
from psgd_optim.summary import summarise

_PARTS = ("form", "criterion", "clip", "fitting", "_forms", "_seed", "_step")


class PSGD(torch.optim.Optimizer):
    """Preconditioned SGD: the step is `-lr P m`, with `P` fitted to the gradients as they come.

    Parameters of one shape are stacked and stepped together. `lr`, `momentum` and `weight_decay`
    are param-group entries, so learning-rate schedulers work; a group may also bring its own
    `form`. A gradient with an infinite or undefined entry moves neither its parameter (but for the
    weight decay) nor its preconditioner. State is allocated at the first step.

    Args:
        params: Parameters, `named_parameters()`, or param groups.
        lr: Step size, in root-mean-square parameter change per step when the momentum is
            whitened; a number or a 0-dimensional tensor.
        form: The preconditioner's form.
        criterion: What the preconditioner is fitted to.
        momentum: Decay of the gradient average, in [0, 1).
        weight_decay: Decoupled decay; a step takes `lr * weight_decay` of each parameter.
        clip: Limits on the preconditioned gradient, applied in order.
        fitting: Step size, gate, order, start and seed of the preconditioner's fit.

    Raises:
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
        lr: float | Tensor = 1e-3,
        *,
        form: Preconditioner = Kron(),
        criterion: Whitening = MomentumWhitening(),
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        clip: Sequence[Clip] = (ClipRMS(1.1), ClipElement(10.0)),
        fitting: Fitting = Fitting(),
    ) -> None:
        if isinstance(clip, Clip):
            raise TypeError(f"PSGD got clip = {clip}; give a sequence of clips: clip=({clip},).")
        self.form = form
        self.criterion = criterion
        self.clip = tuple(clip)
        self.fitting = fitting
        self._forms: list[Preconditioner] = []
        self._blocks: list[list[Block]] = []
        self._placed: set[Tensor] = set()
        self._seed = fitting.seed
        self._step = 0
        self._last: dict[str, Tensor] = {}
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may set `lr`, `momentum`, `weight_decay` and `form`.

        Args:
            param_group: `params` and the settings that differ from the optimizer's.

        Raises:
            TypeError: If its form is none.
            ValueError: If a setting is outside its range, or cannot differ between groups.
        """
        param_group = dict(param_group)
        form = param_group.pop("form", self.form)
        if not isinstance(form, Preconditioner):
            raise TypeError(f"PSGD got form = {form!r}; give a form such as Kron().")
        for name in ("criterion", "clip", "fitting"):
            if name in param_group:
                raise ValueError(f"PSGD got {name} in a parameter group; give it to PSGD itself.")
        _check_group({**self.defaults, **param_group}, self.criterion)
        super().add_param_group(param_group)
        self._forms.append(form)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- torch's
        """Take one step along the preconditioned gradients.

        Args:
            closure: Optional; clears the gradients, computes the loss, calls `backward` and
                returns the loss.

        Returns:
            What the closure returned, or `None`.

        Raises:
            TypeError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad is not None and p not in self._placed for p in self._parameters()):
            self._add_blocks(self._new_blocks({}))
        rate = self.fitting.rate(self._seed, self._step)
        parts: list[tuple[dict[str, Any], Block, Tensor]] = []
        skipped: list[Tensor] = []
        for number, group, block, rows in self._work():
            part = block.select(rows)
            update, ok = self._precondition(part, group["momentum"], rate, number)
            block.write_back(part)
            parts.append((group, part, update))
            skipped.append((~ok).sum())
        updates = [update for _, _, update in parts]
        for clip in self.clip:
            clip.clip_(updates)
        self._last = _measure(updates, skipped)
        for group, part, update in parts:
            part.scatter(update, group["lr"], group["weight_decay"])
        self._step += 1
        return loss

    def _work(self) -> list[tuple[int, dict[str, Any], Block, list[int]]]:
        """Return every block with its number, its group, and its rows that have a gradient."""
        blocks = (
            (group, block)
            for group, blocks in zip(self.param_groups, self._blocks, strict=True)
            for block in blocks
        )
        return [
            (number, group, block, rows)
            for number, (group, block) in enumerate(blocks)
            if (rows := block.rows_with_gradient())
        ]

    def _precondition(
        self, block: Block, momentum: float, rate: float, number: int
    ) -> tuple[Tensor, Tensor]:
        """Return a block's preconditioned gradients, and which rows had a finite gradient, (B,).

        Args:
            block: The rows to step.
            momentum: Decay of the gradient average.
            rate: Step size of `Q`, 0 in a step that does not fit it.
            number: Which block this is, for its random numbers.

        Returns:
            (B, *shape), zero in rows to leave alone, and (B,).
        """
        grads = block.gather()
        peak = grads.abs().flatten(1).amax(dim=1)  # (B,), not finite when any entry is not
        ok = peak.isfinite()
        grads.masked_fill_(~per_block(ok, grads), 0)
        active = ok & ((block.steps > 0) | (peak > 0))
        if block.pending:
            self._start(block, grads, active, torch.where(ok, peak, 0))
        block.steps += active
        average = block.average(grads, active.to(block.steps.dtype), momentum)
        if not self.fitting.update_first:
            update = block.form.apply(block.state, average)
        if rate:
            noise = noise_generator(peak.device, self._seed, self._step, number)
            probe = self.criterion.probe(grads, average, noise, needs_v=block.form.needs_v)
            rates = rate * active.to(peak.dtype)
            block.form.update(block.state, probe, block.form.draw(block.state, noise), rates)
        if self.fitting.update_first:
            update = block.form.apply(block.state, average)
        # Rows left alone keep their parameter too, whatever their average still holds; and an
        # average too large for P is no direction.
        update = update.masked_fill_(~per_block(active, update), 0)
        return update.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0), ok

    def _start(self, block: Block, grads: Tensor, active: Tensor, peak: Tensor) -> None:
        """Scale `Q` of the rows that see their first non-zero gradient."""
        fresh = active & (block.steps == 0)
        if self.fitting.init_scale is None:
            scale = initial_scale(grads, peak, self.criterion.damping)
        else:
            scale = torch.full_like(peak, self.fitting.init_scale)
        started = block.form.init(squeezed(block.params[0].shape), scale, block.params[0])
        for name, x in block.state.items():
            x.copy_(torch.where(per_block(fresh, x), started[name], x))
        # The only look at a tensor's value from the host, and only until all rows have started.
        if bool(((block.steps > 0) | fresh).all()):
            block.pending.clear()

    def _parameters(self) -> Iterator[Tensor]:
        return itertools.chain.from_iterable(group["params"] for group in self.param_groups)

    def _new_blocks(self, saved: Mapping[Tensor, Mapping[str, Tensor]]) -> list[list[Block]]:
        """Return blocks, by group, for the parameters that need one and have none yet.

        Args:
            saved: State to start from where there is some.

        Returns:
            Blocks of what can be trained now, has a gradient, or has saved state: a frozen
            parameter costs nothing until it is unfrozen.
        """
        new = []
        for group, form in zip(self.param_groups, self._forms, strict=True):
            params = [
                p
                for p in group["params"]
                if p not in self._placed and (p.requires_grad or p.grad is not None or p in saved)
            ]
            new.append([
                Block.allocate(stack, form, momentum=group["momentum"] > 0)
                for stack in stackable(params)
            ])
        for block in itertools.chain.from_iterable(new):
            restore_rows(block, saved)
        return new

    def _add_blocks(self, new: list[list[Block]]) -> None:
        """Step these blocks from now on, and show their rows as the parameters' state."""
        self._blocks += [[] for _ in range(len(new) - len(self._blocks))]
        for blocks, more in zip(self._blocks, new, strict=True):
            blocks += more
            self._placed.update(p for block in more for p in block.params)
        self._show_state()

    def _show_state(self) -> None:
        """Make `state` the rows of the stacks again, whoever replaced them."""
        for block in itertools.chain.from_iterable(self._blocks):
            for param, row in zip(block.params, block.rows(), strict=True):
                self.state[param] = row
        if self._placed:
            first = next(p for p in self._parameters() if p in self._placed)
            self.state[first][CLOCK] = clock_tensor(self._seed, self._step)

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
        saved = saved_rows(state_dict, self._parameters())
        clock = saved_clock(saved) if saved else (self.fitting.seed, 0)
        for group in state_dict["param_groups"]:
            _check_group({**self.defaults, **group}, self.criterion)
        held = self._blocks, self._placed
        self._blocks, self._placed = [], set()
        try:
            blocks = self._new_blocks(saved) if saved else []
            super().load_state_dict(state_dict)
        except Exception:
            self._blocks, self._placed = held
            raise
        self._restart(blocks, clock)

    def _restart(self, blocks: list[list[Block]], clock: tuple[int, int]) -> None:
        """Go on from these blocks."""
        self._seed, self._step = clock
        self._last = {}
        self._blocks, self._placed = [], set()
        self.state = defaultdict(dict)  # not cleared: a shallow copy may share the old one
        self._add_blocks(blocks)

    def __getstate__(self) -> dict[str, Any]:
        self._show_state()
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _PARTS}}

    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch passes two entries after a load, which restarts from its own blocks; a copy or an
        # unpickled optimizer brings its parts, and its rows are no longer views of any stack.
        if "_forms" in state:
            self._blocks, self._placed = [], set()
            rows = dict(self.state)
            self._restart(self._new_blocks(rows) if rows else [], (self._seed, self._step))

    def metrics(self) -> dict[str, Tensor]:
        """Return figures of the last step as 0-dimensional tensors, without waiting for them.

        Returns:
            `update_rms`, the root mean square of the clipped update before `lr`, and `skipped`,
            the number of parameters whose gradient was not finite. Empty before the first step.
        """
        return dict(self._last)

    def summary(self) -> str:
        """Return a table of what every shape gets and what it costs, without allocating it."""
        return summarise(
            [
                Block.allocate(
                    [torch.empty_like(p, device="meta") for p in params],
                    form,
                    momentum=group["momentum"] > 0,
                )
                for params in stackable(p for p in group["params"] if p.requires_grad)
            ]
            for group, form in zip(self.param_groups, self._forms, strict=True)
        )


def _measure(updates: Sequence[Tensor], skipped: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the figures of one step."""
    if not updates:
        return {}
    device = updates[0].device
    norms = [norm.to(device, torch.float32) for norm in torch._foreach_norm(list(updates))]
    count = sum(u.numel() for u in updates)
    return {
        "update_rms": torch.stack(norms).norm() / count**0.5,
        "skipped": torch.stack([s.to(device) for s in skipped]).sum(),
    }


def _check_group(settings: Mapping[str, Any], criterion: Whitening) -> None:
    """Check the numbers of one parameter group."""
    lr = settings["lr"]
    if not isinstance(lr, int | float | Tensor):
        raise TypeError(f"PSGD got lr = {lr!r}; give a number or a 0-dimensional tensor.")
    if not isinstance(lr, Tensor) and not lr >= 0:
        raise ValueError(f"PSGD got lr = {settings['lr']}; give a number of at least 0.")
    if not 0 <= settings["momentum"] < 1:
        raise ValueError(f"PSGD got momentum = {settings['momentum']}; give a number in [0, 1).")
    if not settings["weight_decay"] >= 0:
        raise ValueError(
            f"PSGD got weight_decay = {settings['weight_decay']}; give a number of at least 0."
        )
    if criterion.needs_momentum and settings["momentum"] == 0:
        raise ValueError(
            f"PSGD got {type(criterion).__name__} with momentum = 0; give momentum > 0, or "
            "whiten the gradient (GradientWhitening)."
        )
