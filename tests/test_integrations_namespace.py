"""The adapters live in picardsolve.integrations; the top-level names are the same objects, and nobody needs them."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

NAMES = ("diffusers", "diffusion_policy", "lerobot", "policies", "scipy", "torchsde")


@pytest.mark.parametrize("name", NAMES)
def test_the_top_level_namespace_re_exports_the_same_objects(name):
    short, full = import_module(f"integrations.{name}"), import_module(f"picardsolve.integrations.{name}")
    assert sorted(short.__all__) == sorted(public for public in dir(short) if not public.startswith("_"))
    for public in short.__all__:
        assert getattr(short, public) is getattr(full, public)


@pytest.mark.parametrize("name", NAMES)
def test_a_package_of_the_users_called_integrations_breaks_nothing(name, tmp_path: Path):
    (tmp_path / "integrations").mkdir()
    (tmp_path / "integrations" / "__init__.py").write_text("MINE = True\n")
    root = Path(import_module("picardsolve").__file__ or "").parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; "
        f"import integrations; assert integrations.MINE; import picardsolve.integrations.{name}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_importing_the_library_imports_nothing_dear():
    """scipy takes as long as the rest of the import, and only events, gradients of collocation and scipy's users need
    it."""
    dear = ("scipy", "matplotlib", "diffusers", "torchsde", "torchdiffeq", "pandas")
    code = f"import sys, picardsolve; print([name for name in {dear} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
