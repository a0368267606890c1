"""Gradients of adaptive steps: against torchdiffeq's, finite differences, and each sample alone."""

import pytest
import torch
import torchdiffeq

import picardsolve as ps

METHODS = {"dopri5": ps.Dopri5(), "tsit5": ps.Tsit5(), "dopri8": ps.Dopri8()}
Y0 = torch.tensor([[1.0, -0.5], [0.2, 0.4], [-1.0, 2.0]], dtype=torch.float64)
T = torch.linspace(0.3, 1.5, 4, dtype=torch.float64)
WEIGHTS = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 3, 2)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_first_and_second_gradients_are_torchdiffeqs(method, batch_dims):
    net, found = network(), []

    def drift(t, y):
        return net(y) * t.cos()

    for ours in (True, False):
        y0, t = Y0.clone().requires_grad_(), T.clone().requires_grad_()
        if ours:
            given = {"integrator": METHODS[method], "batch_dims": batch_dims, "rtol": 1e-10, "atol": 1e-10}
            ys = ps.solve(ps.ODE(drift), y0, t, **given).ys
        else:
            options = {"step_t": T[1:]}
            ys = torchdiffeq.odeint(drift, y0, t, method="dopri8", rtol=1e-12, atol=1e-12, options=options)
        first = torch.autograd.grad((ys * WEIGHTS).sum(), (y0, t, *net.parameters()), create_graph=True)
        size = sum(part.square().sum() for part in (first[0], *first[2:]))
        second = torch.autograd.grad(size, (y0, *net.parameters()))
        found.append((*first, *second))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_times_of_each_sample():
    """By finite differences; a state at its own first time does not move with it."""
    ends = torch.tensor([1.0, -0.7, 2.0], dtype=torch.float64)
    ts = torch.stack([0.1 * ends, 0.5 * ends, ends]).requires_grad_()
    given = {"integrator": ps.Dopri5(), "batch_dims": 1, "rtol": 1e-11, "atol": 1e-11}

    def loss(ts):
        ys = ps.solve(ps.ODE(lambda t, y: torch.sin(3 * t) * y), Y0, ts, **given).ys
        return (ys * WEIGHTS[:3]).sum()

    (gradient,) = torch.autograd.grad(loss(ts), ts)
    for k in range(3):
        for i in range(3):
            shift = torch.zeros_like(ends.expand(3, 3)).clone()
            shift[k, i] = 1e-5
            with torch.no_grad():
                slope = (loss(ts + shift) - loss(ts - shift)) / 2e-5
            assert float(gradient[k, i]) == pytest.approx(float(slope), abs=1e-5)


def test_arguments_of_samples_and_rejected_steps_that_are_not_finite():
    """A step that is not finite is rejected; it must not reach the gradients of the others, nor its own."""
    rate = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    common = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [0.05], [3.0]], dtype=torch.float64)
    seen = []

    def drift(t, y, rate):
        out = -common * rate[:, None] * torch.log(y + 1) * torch.sqrt(y)
        seen.append(bool(out.isfinite().all()))
        return out

    given = {"integrator": ps.Dopri5(first_step=4.0), "rtol": 1e-6, "atol": 1e-6}
    sol = ps.solve(ps.ODE(drift), y0, (0.0, 4.0), args=(rate,), batch_dims=1, **given)
    assert not all(seen)
    together = torch.autograd.grad(sol.ys[-1].sum(), (rate, common))
    assert all(part.isfinite().all() for part in together)
    alone = [
        ps.solve(ps.ODE(drift), y0[i : i + 1], (0.0, 4.0), args=(rate[i : i + 1],), batch_dims=1, **given)
        for i in range(3)
    ]
    expected = torch.autograd.grad(sum(sol.ys[-1].sum() for sol in alone), (rate, common))
    for one, other in zip(together, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_without_gradients_nothing_is_kept():
    net = network()
    with torch.no_grad():
        sol = ps.solve(ps.ODE(lambda t, y: net(y)), Y0, (0.0, 1.0), integrator=ps.Dopri5(), batch_dims=1, tol=1e-6)
    assert not sol.ys.requires_grad
    recorded = ps.solve(ps.ODE(lambda t, y: net(y)), Y0, (0.0, 1.0), integrator=ps.Dopri5(), batch_dims=1, tol=1e-6)
    assert recorded.ys.requires_grad
    torch.testing.assert_close(sol.ys, recorded.ys, rtol=1e-12, atol=1e-12)
    assert torch.is_grad_enabled()
