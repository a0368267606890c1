"""Every argument of the adapter's and of the policies' calls changes something that can be seen, or is refused."""

import inspect
from functools import partial
from types import SimpleNamespace
from typing import Any

import hosts
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UniPCMultistepScheduler
from pipelines import SIZE, digits, generator, stable_diffusion
from test_policies import COSINE, SHAPE, Expert, pytestmark, seen

import picardsolve as ps
from picardsolve.integrations import diffusion_policy, lerobot
from picardsolve.integrations.diffusers import denoise, sample, sampler
from picardsolve.integrations.policies import FlowMatching, ParallelPolicy

__all__ = ["pytestmark"]  # the warnings of diffusers that are let pass there

STEPS = 8
REFUSED = "refused"


def seen_of(report) -> tuple:
    """What a report shows of a run."""
    last = report.history[-1]
    return report.steps, report.rounds, report.calls, report.width, report.tolerance, last.increments.tolist()


# ---- calls with one argument changed; each returns what can be seen


def sampled(*args: Any, pipe: Any = None, **given: Any) -> tuple:
    pipe = pipe or digits(DDPMScheduler())
    given = {"num_inference_steps": STEPS, "generator": generator(5), "output_type": "pt", **given}
    out = sample(pipe, *args, **given)
    return *seen_of(out.report), out.images.tolist()


def in_context(pipe: Any = None, **given: Any) -> tuple:
    pipe = pipe or digits(DDPMScheduler())
    with sampler(pipe, **given) as run:
        images = pipe(num_inference_steps=STEPS, generator=generator(5), output_type="pt").images
    return *seen_of(run.report), images.tolist()


def model(x: torch.Tensor, t: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    return torch.tanh(x + 0.001 * t.reshape(-1, *[1] * (x.dim() - 1)) + shift)


def denoised(**given: Any) -> tuple:
    scheduler = given.pop("scheduler", None) or DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    x = given.pop("x", torch.randn(2, 4, generator=generator(1), dtype=torch.float64))
    result, report = denoise(given.pop("model", model), scheduler, x, **given)
    return *seen_of(report), result.tolist()


def planned(observation: Any = None, plan: Any = None, reset: Any = None, **given: Any) -> tuple:
    scheduler = given.pop("scheduler", None) or DDPMScheduler(**COSINE)
    scheduler.set_timesteps(STEPS)
    expert, shape = given.pop("model", None) or Expert(scheduler), given.pop("shape", SHAPE)
    policy = ParallelPolicy(lambda x, t, seen: expert(x, t, seen.to(x)), scheduler, shape, **given)
    observation = seen(0, 2).float() if observation is None else observation
    policy.plan(seen(7, 2).float())
    if reset is not None:
        policy.reset(**reset)
    made = policy.plan(observation, **(plan or {}))
    increments = [record.increments.tolist() for record in made.solution.history]
    return made.rounds, made.converged, made.actions.dtype, increments, made.actions.nan_to_num(9).tolist()


def parallelized(adapter: Any, kind: Any, policy: Any = None, **given: Any) -> tuple:
    policy = policy or kind(steps=10).eval()
    with adapter.parallelize(policy, **given) as run, torch.no_grad():
        made = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            conditions = {"global_cond": seen(seed, 2).float().repeat(1, 2)}
            if kind is hosts.DiffusionPolicy:
                actions = policy.diffusion.conditional_sample(2, **conditions)
            else:
                data = torch.zeros(2, hosts.HORIZON, hosts.ACTION)
                actions = policy.conditional_sample(data, data > 0, **conditions)
            made.append((run.plan.rounds, run.plan.evaluations, actions.tolist()))
    return tuple(made)


def flowed(**given: Any) -> tuple:
    flow = FlowMatching(**{"ts": [0.0, 0.3, 0.6, 1.0], **given})
    policy = ParallelPolicy(lambda x, t, seen: -x * t[:, None, None], flow, SHAPE)
    return tuple(policy.plan(seen(0, 2)).actions.flatten().tolist())


def wide(width: int) -> ps.Batcher:
    """A batcher under a load that makes windows so wide."""
    batcher = ps.Batcher(model, max_rows=64)
    batcher.load.width = lambda *_: width
    return batcher


BROKEN = torch.tensor([[torch.nan] * 3, [1.0] * 3])
SOLVING: dict[str, tuple[Any, Any]] = {
    "window": (2, 6),
    "tolerance": (1e-1, 1e-6),
    "max_batch": (1, None),
    "iteration": (ps.Jacobi(), None),
    "guess": (ps.Copy(), None),
    "batcher": ({"window": "auto", "batcher": wide(2)}, {"window": "auto", "batcher": wide(8)}),
    "mesh": (2, None),
    "devices": (["nowhere"], None),
}
FLAT = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
# every argument of a call, and two values of it between which something changes
CALLS = {
    "sample": (
        sample,
        sampled,
        SOLVING
        | {
            "pipe": (digits(DDPMScheduler(**FLAT)), None),
            "args": ((2,), ()),
            "pipeline_kwargs": ({"batch_size": 2}, None),
            "kwargs": ({"batch_size": 2}, {}),
        },
    ),
    "sampler": (sampler, in_context, SOLVING | {"pipe": (digits(DDPMScheduler(**FLAT)), None)}),
    "denoise": (
        denoise,
        denoised,
        SOLVING
        | {
            "model": (lambda x, t: model(x, t) / 2, model),
            "scheduler": (DDIMScheduler(**FLAT), None),
            "x": (torch.ones(2, 4), torch.ones(3, 4)),
            "generator": ({"generator": generator(1), "eta": 1.0}, {"generator": generator(2), "eta": 1.0}),
            "eta": ({"eta": 0.0}, {"eta": 1.0, "generator": generator(1)}),
            "step_kwargs": ({"step_kwargs": {"eta": 1.0, "generator": generator(1)}}, {}),
            "model_kwargs": ({"shift": 1.0}, None),
            "conditioning": ({"shift": 1.0}, {}),
        },
    ),
    "ParallelPolicy": (
        ParallelPolicy.__init__,
        planned,
        {
            "model": (Expert(DDPMScheduler(**COSINE), seed=1), None),
            "scheduler": (DDIMScheduler(**COSINE), None),
            "shape": ({"shape": (4, 3)}, {"shape": (6, 2)}),
            "executed": (1, 6),
            "tol": (1e-1, 1e-6),
            "max_rounds": (1, None),
            "seed": (1, 2),
            "iteration": (ps.Jacobi(), None),
            "spread": (0.0, 1.0),
            "dtype": (torch.float64, torch.float32),
            "mesh": (2, None),
            "devices": (["nowhere"], None),
        },
    ),
    "FlowMatching": (
        FlowMatching,
        flowed,
        {"ts": ([0.0, 1.0], None), "integrator": (ps.Heun(), ps.Euler())},
    ),
    "plan": (
        ParallelPolicy.plan,
        planned,
        {
            "observation": (seen(1, 2).float(), None),
            "start": ({"plan": {"start": torch.zeros(2, 6, 2)}}, {}),
            "held": ({"plan": {"held": (torch.ones(2, 6, 2) > 0, torch.zeros(2, 6, 2))}}, {}),
            "generator": ({"plan": {"generator": generator(5)}}, {}),
            "max_rounds": ({"plan": {"max_rounds": 1}}, {}),
            "throw": (
                {"plan": {"throw": False}, "observation": BROKEN},
                {"plan": {"throw": True}, "observation": BROKEN},
            ),
        },
    ),
    "reset": (
        ParallelPolicy.reset,
        planned,
        {
            "seed": ({"reset": {"seed": 5}}, {"reset": {}}),
            "generator": ({"reset": {"generator": generator(5)}}, {"reset": {}}),
            "robots": ({"reset": {"robots": 0}}, {"reset": {"robots": 1}}),
        },
    ),
}
for adapter, kind, kept in (
    (lerobot, hosts.DiffusionPolicy, hosts.DiffusionPolicy("DDIM", 5).eval()),
    (diffusion_policy, hosts.LowdimPolicy, hosts.LowdimPolicy("DDIM", 5).eval()),
):
    CALLS[f"parallelize of {adapter.__name__}"] = (
        adapter.parallelize,
        partial(parallelized, adapter, kind),
        {
            "policy": (kept, None),
            "executed": (1, 6),
            "tol": (1e-1, 1e-6),
            "max_rounds": (1, None),
            "iteration": (ps.Jacobi(), None),
            "spread": (0.0, 1.0),
            "mesh": (2, None),
            "devices": (["nowhere"], None),
        },
    )
ARGUMENTS = [(call, name) for call, (_, _, values) in CALLS.items() for name in values]


def outcome(run: Any, name: str, value: Any) -> Any:
    """What can be seen of a call with one argument; an error is seen, too."""
    try:
        if name == "args":
            return run(*value)
        return run(**(value if isinstance(value, dict) and name != f"{name[:-7]}_kwargs" else {name: value}))
    except (ps.SolveError, TypeError, ValueError) as error:
        if not isinstance(error, ps.SolveError) and not str(error).startswith(f"{name}: "):
            raise
        return REFUSED


@pytest.mark.parametrize("call", CALLS)
def test_the_table_has_every_argument(call):
    function, _, values = CALLS[call]
    assert set(inspect.signature(function).parameters) - {"self"} == set(values)


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_every_argument_changes_what_is_seen(call, name):
    _, run, values = CALLS[call]
    one, other = (outcome(run, name, value) for value in values[name])
    assert one != other


# ---- names that nobody reads


class Swallowing(DDPMPipeline):
    """Takes anything, and reads what it says."""

    def __call__(self, batch_size=1, generator=None, num_inference_steps=8, output_type="pt", **kwargs):
        """Sample.

        Args:
            strength (`float`, *optional*): documented, and swallowed for once.
        """
        self.got = dict(kwargs)
        batch_size = kwargs.pop("twice", 1) * batch_size
        return super().__call__(batch_size, generator, num_inference_steps, output_type, return_dict=True)


class HandingOn(DDPMPipeline):
    """Hands everything on to the class that it is made from."""

    def __call__(self, **kwargs):
        return super().__call__(**kwargs)


class Misleading(HandingOn):
    """Calls an argument as the adapter does."""

    def __call__(self, window=None, **kwargs):
        self.got = window
        return super().__call__(**kwargs)


def quiet(kind: type) -> Any:
    parts = digits(DDIMScheduler())
    pipe = kind(unet=parts.unet, scheduler=parts.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPES = {
    "StableDiffusion": stable_diffusion,
    "digits": lambda: digits(DDIMScheduler()),
    **{kind.__name__: lambda kind=kind: quiet(kind) for kind in (Swallowing, HandingOn, Misleading)},
}
NOBODYS = [
    ("tol", r"pass tolerance=, or pipeline_kwargs=\{'tol': \.\.\.\} if \w+ hands it on"),
    ("rtol", r"pass tolerance="),
    ("windw", r"pass window="),
    ("tolerence", r"pass tolerance="),
    ("max_batches", r"pass max_batch="),
    ("iterations", r"pass iteration="),
    ("num_inference_step", r"pass num_inference_steps="),
    ("devicess", r"pass devices="),
    ("stop", r"leave it out, or pass"),
    ("max_rounds", r"pass"),
    ("xyzzy", r"leave it out, or pass pipeline_kwargs="),
]


@pytest.mark.parametrize("pipe", PIPES)
@pytest.mark.parametrize(("name", "remedy"), NOBODYS)
def test_what_a_pipeline_would_swallow_is_refused_before_its_denoiser_is_called(pipe, name, remedy, monkeypatch):
    made = PIPES[pipe]()
    monkeypatch.setattr(type(made.unet), "forward", None)
    with pytest.raises(TypeError, match=rf"^{name}: neither an argument of sample nor one that \w+ reads; .*{remedy}"):
        sample(made, **{name: 1e-6})
    assert set(vars(made.scheduler)).isdisjoint({"step", "set_timesteps"})


def test_what_a_pipeline_reads_is_handed_on():
    pipe = quiet(Swallowing)
    given = {"strength": 3, "twice": 2, "generator": generator(0)}
    assert len(sample(pipe, **given, pipeline_kwargs={"tol": 1e-3, "window": 4}).images) == 2
    assert pipe.got == {"strength": 3, "twice": 2, "tol": 1e-3, "window": 4}
    assert len(sample(quiet(HandingOn), batch_size=2, num_inference_steps=4, output_type="pt").images) == 2
    deprecated = {"callback": lambda *args: None, "callback_steps": 2}  # which Stable Diffusion pops off its kwargs
    inputs = {"height": SIZE, "width": SIZE, "num_inference_steps": 4, "output_type": "latent"}
    with pytest.warns(FutureWarning, match="callback"):
        sample(stable_diffusion(), "a cat", **inputs, **deprecated)


def test_a_name_that_is_both_ours_and_the_pipelines_is_noted():
    pipe = quiet(Misleading)
    given = {"num_inference_steps": 8, "output_type": "pt", "window": 3}
    report = sample(pipe, **given).report
    assert report.width <= 4
    assert pipe.got is None
    assert any("window= is the window's here; Misleading has an argument of that name" in note for note in report.notes)
    sample(pipe, **given, pipeline_kwargs={"window": 5})
    assert pipe.got == 5


@pytest.mark.parametrize("given", [[("tol", 1)], 3, {1: 2}])
def test_further_arguments_are_a_mapping(given):
    with pytest.raises(TypeError, match=r"^pipeline_kwargs: expected a dict of arguments by name"):
        sample(digits(DDIMScheduler()), pipeline_kwargs=given)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match=r"^model_kwargs: expected a dict of arguments by name"):
        denoise(model, scheduler, torch.zeros(1, 4), model_kwargs=given)


def test_an_argument_given_twice_is_refused():
    with pytest.raises(TypeError, match=r"^batch_size: given twice, beside pipeline_kwargs and in it"):
        sample(digits(DDIMScheduler()), batch_size=1, pipeline_kwargs={"batch_size": 2})


class Net(torch.nn.Module):
    def forward(self, x, t, shift=0.0):
        return model(x, t, shift)


MODELS: dict[str, Any] = {
    "named": model,
    "a module": Net(),
    "deaf": lambda x, t, **kwargs: model(x, t),
    "handing on": lambda x, t, **kwargs: model(x, t, **kwargs),
    "an object": type("Called", (), {"__call__": lambda self, x, t, **kwargs: model(x, t)})(),
    "a partial": partial(lambda scale, x, t, **kwargs: scale * model(x, t), 0.5),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["tol", "windw", "tolerence", "devicess", "stop", "max_rounds", "brownian"])
def test_what_a_model_would_swallow_is_refused_in_denoise(kind, name):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match=rf"^{name}: neither an argument of denoise nor one that the model reads; "):
        denoise(MODELS[kind], scheduler, torch.zeros(1, 4), **{name: 4})


@pytest.mark.parametrize("kind", ["named", "a module", "handing on"])
def test_what_a_model_reads_is_handed_on(kind):
    plain, shifted, again = (
        denoised(model=MODELS[kind], **g)[-1] for g in ({}, {"shift": 1.0}, {"model_kwargs": {"shift": 1.0}})
    )
    assert plain != shifted == again


def test_steps_that_take_no_eta_or_generator_are_not_given_one():
    for kind, name in ((DDPMScheduler, "eta"), (UniPCMultistepScheduler, "generator")):
        scheduler = kind()
        scheduler.set_timesteps(4)
        given = {"eta": 1.0, "generator": generator(0)}[name]
        with pytest.raises(TypeError, match=rf"^{name}: {kind.__name__}\.step takes none; leave it out\."):
            denoise(model, scheduler, torch.zeros(1, 4), **{name: given})


@pytest.mark.parametrize("tolerance", [True, None, "small", torch.tensor(1.0), 1j])
def test_a_tolerance_is_a_number(tolerance):
    for call in (sample, sampler):
        with pytest.raises(TypeError, match=r"^tolerance: expected a number >= 0, got "):
            call(SimpleNamespace(scheduler=DDIMScheduler(), components={}), tolerance=tolerance)
