"""Pipelines over the ranks of a mesh: the image of one process, on every rank."""

import pytest
import ranks
import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, DDPMScheduler
from pipelines import SIZE, digits, generator, stable_diffusion

import picardsolve as ps
from picardsolve.integrations.diffusers import denoise, sample, sampler

FLAT = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}


def model(x, t, shift):
    return 0.5 * x + shift * 1e-3 * t.reshape(-1, 1)  # bit for bit the same in every batch


def denoised(**given):
    scheduler = DDIMScheduler(**FLAT)
    scheduler.set_timesteps(12)
    x = torch.randn(2, 4, generator=generator(1), dtype=torch.float64)
    return denoise(model, scheduler, x, window=6, shift=torch.ones(2, 1, dtype=torch.float64), **given)


def drawn(**given):
    pipe = digits(DDPMScheduler(**FLAT))
    out = sample(pipe, num_inference_steps=10, generator=generator(5), output_type="pt", window=5, **given)
    return out.images, out.report


def guided(mesh):
    pipe = stable_diffusion()
    with sampler(pipe, window=4, mesh=mesh) as run:
        images = pipe(
            "a cat", height=SIZE, width=SIZE, output_type="latent", num_inference_steps=6, generator=generator(5)
        ).images
    return images, run.report


def shown(made):
    value, report = made
    return torch.as_tensor(value), report.rounds, report.states, report.width, report.sequential


def everything(mesh):
    return [shown(denoised(mesh=mesh)), shown(drawn(mesh=mesh)), shown(guided(mesh))]


def test_every_rank_gets_the_result_of_one_process(tmp_path):
    alone = [shown(denoised()), shown(drawn()), shown(guided(None))]
    first, second = (value for value, error, _ in ranks.run(everything, tmp_path) if error is None)
    for one, here, there in zip(alone, first, second, strict=True):
        assert torch.equal(here[0], there[0])
        assert one[1:] == here[1:] == there[1:]
        assert one[4] is None
        assert one[3] > 1
    assert torch.equal(alone[0][0], first[0][0])  # its model is the same in every batch; networks are to rounding
    for one, here in zip(alone[1:], first[1:], strict=True):
        assert torch.allclose(one[0], here[0], rtol=0, atol=1e-10)


class Odd(torch.nn.Module):
    """Fails on one rank, for several steps at once."""

    def forward(self, x, t):
        if dist.get_rank() == 1 and len(x) > 2:
            raise RuntimeError("no room")
        return 0.5 * x


def failing(mesh):
    scheduler = DDIMScheduler(**FLAT)
    scheduler.set_timesteps(12)
    return denoise(Odd(), scheduler, torch.ones(2, 4, dtype=torch.float64), window=8, mesh=mesh)


def test_a_denoiser_that_fails_on_one_rank_is_an_error_on_both(tmp_path):
    for _, (error, _), _ in ranks.run(failing, tmp_path):
        assert error.startswith("RankError")
        assert "RuntimeError: no room" in error


def seeded(mesh):
    scheduler = DDIMScheduler(**FLAT)
    scheduler.set_timesteps(12)
    x = torch.randn(2, 4, generator=generator(dist.get_rank()), dtype=torch.float64)
    return denoise(lambda x, t: 0.5 * x, scheduler, x, mesh=mesh)


def test_another_seed_on_one_rank_is_an_error_on_both(tmp_path):
    for _, (error, _), _ in ranks.run(seeded, tmp_path):
        assert error.startswith("RankError: Rank 1 runs with other states or conditioning than rank 0")


def test_what_mesh_refuses():
    with pytest.raises(ValueError, match='window: "auto" goes by the clock'):
        sampler(digits(), window="auto", mesh=2)
    with pytest.raises(TypeError, match="mesh: expected DeviceMesh, got int"):
        sampler(digits(), mesh=2)
    assert issubclass(ps.distributed.RankError, Exception)
