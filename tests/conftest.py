import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_slow_ok = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=14, print_blob=True, suppress_health_check=_slow_ok
)
# `pytest --hypothesis-profile=search` looks for new counterexamples
settings.register_profile("search", deadline=None, max_examples=400, print_blob=True, suppress_health_check=_slow_ok)
settings.load_profile("ci")


@pytest.fixture
def nothing_is_decided_by_the_clock():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def no_clock():
    """The same for all tests of a file, also those that hypothesis repeats."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
