"""Robot policies that plan by diffusion (Chi et al. 2023), all steps of a plan at once: the same plan, sooner.

policy = ParallelPolicy(model, scheduler, (16, 4), executed=8)
while running:
    plan = policy.plan(observation)          # tensors with a leading dimension of plans, as the model takes them
    run(plan.actions[:, 1:9])                # eight of them; the next plan starts from the rest
"""

from picardsolve.integrations.policies.flow import FlowMatching
from picardsolve.integrations.policies.policy import ParallelPolicy
from picardsolve.integrations.policies.solver import Plan

__all__ = ["FlowMatching", "ParallelPolicy", "Plan"]
