"""The interface of a preconditioner form: what every file beside this one implements.

A form is a frozen value that holds hyper-parameters only. Its state is a flat dict of tensors
with a leading block axis `B`, one row per stacked parameter; rows never interact.
"""

import abc
from typing import ClassVar

import torch
from torch import Tensor

from psgd_optim.step_size import Normaliser
from psgd_optim.types import Probe, State, expect


class Preconditioner(abc.ABC):
    """A family of preconditioners `P = Q^H Q`; concrete forms are final frozen dataclasses.

    `update` and `apply` take no random numbers and no result of theirs depends on a branch:
    randomness comes in through `draw`, so that an update can be repeated, compiled and captured.
    What an update writes to a state in half precision goes through `rounding.write_`, which rounds
    stochastically: steps below the last bit add up.
    """

    name: ClassVar[str]

    @property
    @abc.abstractmethod
    def layout(self) -> str:
        """What the numbers of the state mean, beyond their shapes: saved, and compared on load."""

    @property
    @abc.abstractmethod
    def needs_v(self) -> bool:
        """Whether `update` must see the probe `v` instead of integrating it out."""

    @abc.abstractmethod
    def init(self, shape: tuple[int, ...], scale: Tensor, like: Tensor) -> State:
        """Return the state of `Q = scale * I`.

        Args:
            shape: The shape of one parameter.
            scale: (B,), one scale per parameter.
            like: A tensor with the parameters' dtype and device.

        Returns:
            The state.
        """

    @abc.abstractmethod
    def draw(self, state: State, generator: torch.Generator) -> State:
        """Draw the random numbers of one update.

        Args:
            state: The state to update.
            generator: On the device of the state.

        Returns:
            Named tensors with a leading block axis, those of `rounding.draw_bits` among them; empty
            when the form needs none.
        """

    @abc.abstractmethod
    def update(self, state: State, probe: Probe, draws: State, rate: Tensor | float) -> None:
        """Fit `Q` to one sample, in place on the state and on nothing else.

        Args:
            state: The state to change.
            probe: The sample.
            draws: What `draw` returned.
            rate: Step size of `Q` in [0, 1), a number or (B,); a row with rate 0 keeps its
                `P`, but for rounding and small rotations of `Q`.
        """

    def prepare(self, state: State, uses: float) -> State:
        """Return what `apply` takes in the place of the state until that changes.

        Args:
            state: The state.
            uses: About how often, the sample of the next update included.

        Returns:
            Tensors with a leading block axis; the state itself where nothing saves work.
        """
        return state

    @property
    def wants_image(self) -> bool:
        """Whether `update` computes `P h` where the probe does not bring it."""
        return False

    @abc.abstractmethod
    def apply(self, state: State, x: Tensor) -> Tensor:
        """Return `P x`.

        Args:
            state: The state, or what `prepare` made of it.
            x: (B, *shape).

        Returns:
            (B, *shape), in the dtype of `x`.
        """

    @abc.abstractmethod
    def to_dense(self, state: State) -> Tensor:
        """Return `Q` as full matrices for row-major flattened parameters, (B, N, N).

        For tests and small parameters: memory grows with N^2.
        """

    @abc.abstractmethod
    def numel(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers `Q` has for one parameter, step-size bounds not counted."""

    @abc.abstractmethod
    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the plan for one parameter in a few words, for `PSGD.summary`."""


class SparseForm(Preconditioner):
    """A form of matrices whose gradients may be sparse in their rows; each is in a block alone."""

    @abc.abstractmethod
    def at(self, shape: tuple[int, ...], index: Tensor) -> Preconditioner:
        """Return the form of some rows: it reads and writes the state of all of them.

        Args:
            shape: The shape of the parameter, (I, D).
            index: (t,), distinct row numbers.

        Returns:
            A form whose samples are (B, t, D), for states of this form.
        """


def check_parts(owner: str, normaliser: object, dtype: object) -> None:
    """Refuse what is no normaliser, and a dtype that cannot hold the real numbers of a state.

    Args:
        owner: The form, for the message.
        normaliser: What divides its steps.
        dtype: The wanted dtype of its state.

    Raises:
        TypeError: If the normaliser is none.
        ValueError: If the dtype is neither `None` nor a real floating-point one.
    """
    expect(owner, "normaliser", normaliser, Normaliser, "one from step_size, like LipschitzEMA()")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"{owner} got dtype = {dtype!r}; give a real floating-point dtype such as "
            "torch.bfloat16, or None for the parameters' own."
        )


def state_dtype(like: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a form's state: the wanted one, else at least single precision.

    Args:
        like: A tensor with the parameters' dtype.
        dtype: A real dtype, or `None`; complex parameters get its complex counterpart.

    Returns:
        The dtype.
    """
    if dtype is None:
        return torch.promote_types(like.dtype, torch.float32)
    return dtype.to_complex() if like.is_complex() else dtype
