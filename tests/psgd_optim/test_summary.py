import torch

from psgd_optim import PSGD, Diagonal


def gpt2_shapes() -> list[torch.Tensor]:
    layer = [(2304, 768), (768, 768), (3072, 768), (768, 3072), (768,), (768,)]
    shapes = [(50304, 768), (1024, 768)] + 12 * layer
    return [torch.empty(shape, device="meta") for shape in shapes]


def test_the_plan_of_a_124m_gpt_is_printed_without_memory() -> None:
    params = [p.requires_grad_() for p in gpt2_shapes()]
    optimizer = PSGD(params)
    table = optimizer.summary()
    assert "Kron(3072 diagonal, 768 dense)" in table
    assert "Kron(50304 diagonal, 768 dense)" in table
    assert not optimizer.state
    # 12 (2 * 768^2 [square] + 3 * (768^2 + long side)) + embeddings + vectors
    square, long = 768**2, (2304 + 3072 + 3072)
    embeddings = square + 50304 + square + 1024
    numbers = 12 * (2 * square + 3 * square + long) + embeddings + 24 * 768
    assert f"{numbers:,}" in table.splitlines()[-1]


def test_the_bytes_are_those_that_the_first_step_allocates() -> None:
    params = [torch.randn(s, requires_grad=True) for s in [(6, 4), (6, 4), (3,), ()]]
    other = [torch.randn(5, 2, dtype=torch.float64, requires_grad=True)]
    optimizer = PSGD([{"params": params}, {"params": other, "form": Diagonal()}])
    table = optimizer.summary()
    for p in params + other:
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = sum(
        x.numel() * x.element_size()
        for state in optimizer.state.values()
        for name, x in state.items()
        if name != "clock"
    )
    assert f" {held} B " in table.splitlines()[-1]
