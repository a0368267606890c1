"""Pipelines over the ranks of a mesh: rank 0's image, on every rank, and clean ends where a rank fails."""

import os
import time

import pytest
import ranks
import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from pipelines import CASES, SIZE, digits, generator, stable_diffusion

import picardsolve as ps
from picardsolve.distributed import RankError
from picardsolve.integrations.diffusers import denoise, sample, sampler

FLAT = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
STEPS = 12


def model(x, t, shift):
    return 0.5 * x + shift * 1e-3 * t.reshape(-1, 1)  # bit for bit the same in every batch


def scheduled():
    scheduler = DDIMScheduler(**FLAT)
    scheduler.set_timesteps(STEPS)
    return scheduler


def start(seed=1):
    return torch.randn(2, 4, generator=generator(seed), dtype=torch.float64)


def denoised(network=model, x=None, window=6, **given):
    given = {"shift": torch.ones(2, 1, dtype=torch.float64), **given}
    return denoise(network, scheduled(), start() if x is None else x, window=window, **given)


def drawn(**given):
    noise = generator(5)
    pipe = digits(DDPMScheduler(**FLAT))
    out = sample(pipe, num_inference_steps=10, generator=noise, output_type="pt", window=5, **given)
    return torch.cat([out.images.flatten(), torch.rand(1, generator=noise)]), out.report


def guided(mesh=None):
    pipe, seen = stable_diffusion(), []
    with sampler(pipe, window=4, mesh=mesh) as run:
        images = pipe(
            "a cat",
            height=SIZE,
            width=SIZE,
            output_type="latent",
            num_inference_steps=6,
            generator=generator(5),
            callback_on_step_end=lambda pipe, step, t, given: seen.append(given["latents"].clone()) or given,
        ).images
    assert len(seen) == 6
    assert torch.equal(seen[-1], images)
    return torch.stack(seen), run.report


def controlled(**given):
    case = next(case for case in CASES if str(case) == "SD ControlNet")
    out = sample(case.make(), **case.arguments(generator=generator(5)), window=4, **given)
    return case.result(out), out.report


class Stubborn(DDPMPipeline):
    """Its loop fails on a window of states."""

    def __call__(self, steps, generator=None):
        x = torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.scheduler.set_timesteps(steps)
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                if type(x) is not torch.Tensor:
                    raise RuntimeError("a plain state, please")
                x = self.scheduler.step(self.unet(x, t).sample, t, x, generator=generator).prev_sample
        return (x,)


def stubborn(**given):
    out = sample(digits(DDPMScheduler(**FLAT), cls=Stubborn), 6, generator=generator(5), window=4, **given)
    return out[0], out.report


def sharing(**given):
    """A part of the denoiser is a module of the pipeline, too."""
    pipe, noise = digits(DDPMScheduler(**FLAT)), generator(5)
    x = torch.randn(1, 1, 8, 8, generator=noise, dtype=torch.float64)
    run = sampler(pipe, window=4, **given)
    run.modules.append(pipe.unet.mid_block)
    with torch.no_grad(), run:
        pipe.scheduler.set_timesteps(8)
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x, generator=noise).prev_sample
    return x, run.report


MADE = {
    "denoise": denoised,
    "DDPM": drawn,
    "Stable Diffusion": guided,
    "ControlNet": controlled,
    "stubborn": stubborn,
    "sharing": sharing,
}


def shown(made):
    value, report = made
    certificate = report.certificate.error if report.history else None
    return (
        torch.as_tensor(value),
        (report.rounds, report.calls, report.states, report.width, report.taken, report.sequential, report.notes),
        certificate,
    )


class Last(torch.nn.Module):
    """The last bit of its output depends on the rank, as on GPUs of different kinds; a step's time does, too."""

    def forward(self, x, t, shift):
        rank = dist.get_rank() if dist.is_initialized() else 0
        time.sleep(2e-3 * rank)
        return torch.nextafter(model(x, t, shift), torch.tensor(torch.inf if rank else -torch.inf, dtype=x.dtype))


def last_bits(mesh):
    network = Last()
    found = [denoised(network, tolerance=tolerance, mesh=mesh) for tolerance in (1e-3, 1e-9, 0.0)]
    found.append(denoised(network, window="auto", mesh=mesh))
    return [shown(made) for made in found]


class Odd(torch.nn.Module):
    """Fails on a rank, in its way, at the third call for several steps at once."""

    def __init__(self, how, rank=1):
        super().__init__()
        self.how, self.rank = how, rank

    def forward(self, x, t, shift=None):
        if len(x) > 2 and dist.get_rank() == self.rank:
            self.how()
        return 0.5 * x


def no_room():
    raise RuntimeError("no room")


def die():
    os._exit(7)


def said(work, *args, **given):
    """What a call that fails says, and the state that is left of it."""
    try:
        work(*args, **given)
    except Exception as error:
        report = getattr(error, "report", None)
        return f"{type(error).__name__}: {error}", report and (report.taken, report.state)
    return None


def raises_here(mesh):
    """A callback of the user's raises on one rank only."""

    def callback(pipe, step, t, given):
        if step == 3 and dist.get_rank() == 1:
            raise KeyError("of the user")
        return given

    pipe = stable_diffusion()
    given = {"height": SIZE, "width": SIZE, "num_inference_steps": 12, "generator": generator(5)}
    sample(pipe, "a cat", output_type="latent", window=4, mesh=mesh, callback_on_step_end=callback, **given)


def everything(mesh):
    here = dist.get_rank()
    good = {name: shown(make(mesh=mesh)) for name, make in MADE.items()}
    slow = Slow()
    began = time.perf_counter()
    timed = denoise(slow, long(), start(), window=24, tolerance=1e-7, mesh=mesh)[1].rounds
    bad = {
        "fails": said(denoised, Odd(no_room), mesh=mesh, shift=None),
        "seed": said(denoised, x=start(here), mesh=mesh),
        "window": said(denoised, window=6 + here, mesh=mesh),
        "callback": said(raises_here, mesh),
    }
    lasts = last_bits(mesh)
    return good, bad, lasts, (slow.rows, timed, time.perf_counter() - began), shown(denoised(mesh=mesh))


class Slow(torch.nn.Module):
    """Takes three times as long on one rank."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, t):
        self.rows.append(len(x) // 2)
        time.sleep((6e-3 if dist.get_rank() == 1 else 2e-3) * len(x) / 2)
        return 0.5 * x + 1e-2 * x * x


def long():
    scheduler = DDIMScheduler(**FLAT)
    scheduler.set_timesteps(100)
    return scheduler


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What two ranks make in one process each, good and bad calls after each other."""
    outcomes = ranks.run(everything, tmp_path_factory.mktemp("ranks"), patience=60.0)
    assert all(outcome is not None and outcome[1] is None for outcome in outcomes), outcomes
    return [value for value, _, _ in outcomes]


@pytest.mark.parametrize("name", MADE)
def test_every_rank_gets_the_result_and_the_report_of_one_process(seen, name):
    value, report, certificate = shown(MADE[name]())
    (first, seen_first, error), (second, seen_second, other) = (good[name] for good, *_ in seen)
    assert torch.equal(first, second)
    assert seen_first[:5] == seen_second[:5]
    for sequential in (seen_first[5], seen_second[5]):
        assert name != "stubborn" or sequential.startswith("its loop failed on a window of states")
    assert [seen_first[k] for k in (0, 2, 3, 4)] == [report[k] for k in (0, 2, 3, 4)]
    if name in ("denoise", "stubborn"):  # the same in every batch, or never in one; other networks are to rounding
        assert torch.equal(value, first)
    assert torch.allclose(value, first, rtol=0, atol=1e-10)
    if name != "stubborn":
        assert report[5:] == seen_first[5:] == seen_second[5:] == (None, [])
        assert seen_first[1] > report[1]  # two ranks had calls of their own in a round
        assert torch.equal(error, other)
        assert torch.allclose(error, certificate, rtol=1e-3, atol=1e-10)


def test_the_next_call_after_errors_works(seen):
    for *_, after in seen:
        assert torch.equal(after[0], denoised()[0])


def test_ranks_whose_last_bits_and_clocks_differ_end_in_the_same_bits(seen):
    first, second = (lasts for _, _, lasts, *_ in seen)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]
    alone = denoised(Last())
    assert first[0][1][0] == alone[1].rounds
    assert torch.allclose(first[0][0], alone[0], rtol=0, atol=1e-12)
    assert not torch.equal(first[0][0], alone[0])  # rank 1 had a part in it


def test_a_denoiser_that_fails_on_one_rank_is_an_error_on_both_and_the_state_is_kept(seen):
    (here, (taken, state)), (there, _) = (bad["fails"] for _, bad, *_ in seen)
    assert here == "RankError: Rank 1 raised RuntimeError: no room."
    assert there == "RuntimeError: no room"
    assert 1 <= taken < STEPS
    x, scheduler = start(), scheduled()
    for t in scheduler.timesteps[:taken]:
        x = scheduler.step(0.5 * x, t, x, return_dict=False)[0]
    assert torch.equal(state, x)


def test_ranks_with_something_else_are_told_so(seen):
    for what, name in (("seed", "states or conditioning"), ("window", "window")):
        for _, bad, *_ in seen:
            assert bad[what][0].startswith(f"RankError: Rank 1 runs with other {name} than rank 0")


def test_an_error_of_the_users_own_on_one_rank_reaches_both(seen):
    (here, _), (there, _) = (bad["callback"] for _, bad, *_ in seen)
    assert there == "KeyError: 'of the user'"
    assert here == "RankError: Rank 1 raised KeyError: 'of the user'."


def test_a_rank_that_is_three_times_slower_gets_a_third_of_the_steps_and_the_run_is_shorter_for_it(seen):
    (first, *_), (second, *_) = (slow for _, _, _, slow, _ in seen)
    shared = first[-len(second) :]
    assert 0.15 < sum(second[4:]) / sum(shared[4:] + second[4:]) < 0.35  # a quarter
    pairs = list(zip(shared, second, strict=True))
    assert sum(max(quick, 3 * slow) for quick, slow in pairs) < 0.8 * sum(1.5 * (quick + slow) for quick, slow in pairs)


def dying(mesh):
    return said(denoised, Odd(die), mesh=mesh, shift=None)


def test_a_rank_that_dies_in_the_middle_is_an_error_at_once_and_the_state_is_kept(tmp_path):
    first, second = ranks.run(dying, tmp_path, patience=60.0)
    assert second is None
    (error, (taken, state)), _, seconds = first
    assert error.startswith("RankError: Rank 1 has ended")
    assert seconds < 20
    x, scheduler = start(), scheduled()
    for t in scheduler.timesteps[:taken]:
        x = scheduler.step(0.5 * x, t, x, return_dict=False)[0]
    assert 1 <= taken < STEPS
    assert torch.equal(state, x)


def absent(mesh):
    return said(denoised, mesh=mesh) if dist.get_rank() == 0 else None


def test_a_rank_that_never_calls_is_named(tmp_path):
    first, _ = ranks.run(absent, tmp_path, patience=3.0)
    assert first[0][0].startswith("RankError: Rank 1 has ended, or did not answer within the timeout")
    assert first[2] < 15


def test_what_mesh_refuses():
    with pytest.raises(TypeError, match="mesh: expected DeviceMesh, got int"):
        sampler(digits(), mesh=2)
    with pytest.raises(ValueError, match="batcher: it gathers rows in one process"):
        sampler(digits(), mesh=2, batcher=ps.Batcher(digits().unet, max_rows=8))
    assert issubclass(ps.distributed.RankError, RankError)
