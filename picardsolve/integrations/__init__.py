"""Adapters to other libraries, one module each.

`diffusers`, `diffusion_policy`, `lerobot`, `policies`, `scipy`, `torchsde`.

Import the one that you need: ``from picardsolve.integrations import diffusers``. None is imported before that.
"""
