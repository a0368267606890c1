"""One small solve of each kind, with what the package declares and nothing else: ``python tests/smoke.py``."""

import torch

import picardsolve as ps


def main() -> None:
    """Raises an error where an answer is wrong."""
    grid, y0 = ps.grids.uniform(0, 1, 64), torch.ones(3, dtype=torch.float64)
    there = torch.exp(torch.tensor(-1.0, dtype=torch.float64)).expand(3)
    decay = ps.ODE(lambda t, y: -y)
    stepped = ps.solve(decay, y0, grid, integrator=ps.RK4(), window=32, tol=1e-9)
    torch.testing.assert_close(stepped.ys[-1], there, rtol=0, atol=1e-7)
    for integrator in (ps.Collocation(), ps.Tsit5(), ps.Adaptive()):
        sol = ps.solve(decay, y0, [0.0, 1.0], integrator=integrator, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sol.ys[-1], there, rtol=0, atol=1e-6)
    start = y0.clone().requires_grad_()
    ps.odeint(lambda t, y: -y, start, grid[[0, -1]])[-1].sum().backward()
    torch.testing.assert_close(start.grad, there, rtol=0, atol=1e-5)
    event, _ = ps.odeint(lambda t, y: -y, y0, grid[[0, -1]], event_fn=lambda t, y: y[0] - 0.5)
    assert abs(float(event) - 0.693147) < 1e-4
    sde = ps.SDE(lambda t, y: -y, lambda t, y: 0.3 * y, noise="diagonal")
    given = {"integrator": ps.Milstein(), "brownian": ps.BrownianPath(0), "batch_dims": 1}
    noisy, one_by_one = (
        ps.solve(sde, torch.ones(2, 3), grid, tol=1e-4, **given),
        ps.sequential(sde, torch.ones(2, 3), grid, **given),
    )
    torch.testing.assert_close(noisy.ys, one_by_one.ys, rtol=0, atol=1e-3)
    model = ps.Denoiser(lambda x, t: torch.tanh(x), ps.schedules.from_betas(torch.linspace(1e-4, 0.02, 100)))
    sample = {"ts": ps.grids.uniform(99, -1, 50), "integrator": ps.DDIM()}
    found, expected = ps.solve(model, torch.ones(2, 4), **sample), ps.sequential(model, torch.ones(2, 4), **sample)
    torch.testing.assert_close(found.ys[-1], expected.ys[-1], rtol=0, atol=1e-2)
    print(f"picardsolve {ps.__version__}, torch {torch.__version__}: five kinds of solves are right")


if __name__ == "__main__":
    main()
