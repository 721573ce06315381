"""The product of few rows and a matrix against the formula, however it is shared out."""

import pytest
import torch
import torch.nn.functional as F

from model.linear import FEW, Linear, product


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    """That many threads for torch; 5 do not divide the rows of the matrix."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(24,), (0, 24), (1, 24), (1, 1, 24), (2, 24), (3, 1, 24), (2, 5, 24), (FEW, 24), (FEW + 1, 24)]
)
def test_it_is_the_product(shape, dtype, threads):
    x, weight = torch.randn(shape), torch.randn(16, 24)
    with torch.no_grad():
        found = product(x.to(dtype), weight.to(dtype))
    assert found.dtype == dtype and found.shape == (*shape[:-1], 16)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.float(), x @ weight.T, rtol=tolerance, atol=tolerance * 4)


@torch.no_grad()
def test_rows_and_matrix_may_lie_in_memory_in_any_way():
    x, weight = torch.randn(24, 3, 2).permute(2, 1, 0), torch.randn(24, 16).T
    torch.testing.assert_close(product(x, weight), x @ weight.T)
    torch.testing.assert_close(product(x, weight[::2]), x @ weight[::2].T)


@torch.no_grad()
def test_few_rows_are_shared_out_over_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    parts, real = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: parts.append(len(a)) or real(a, b))
    for rows in (1, FEW):
        product(torch.randn(rows, 24), torch.randn(16, 24))
    product(torch.randn(2, 24), torch.randn(6, 24))
    assert parts == [4, 4, 2]
    product(torch.randn(FEW + 1, 24), torch.randn(16, 24))
    assert len(parts) == 3


def test_gradients_are_those_of_torch():
    x, layer = torch.randn(2, 24, requires_grad=True), Linear(24, 16)
    (dx, dw) = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
    (ex, ew) = torch.autograd.grad(F.linear(x, layer.weight).square().sum(), (x, layer.weight))
    assert torch.equal(dx, ex) and torch.equal(dw, ew)


@torch.no_grad()
def test_a_product_with_one_row_is_a_sum_where_it_is_compiled():
    graphs, layer = [], Linear(8, 5)

    def backend(graph, inputs):
        graphs.append({node.target for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(layer, backend=backend)
    for rows in (1, 2):
        x = torch.randn(1, rows, 8)
        torch.testing.assert_close(compiled(x), x @ layer.weight.T)
    assert [torch.bmm in graph for graph in graphs] == [False, True]
