"""What is kept of the environment that a training ran in."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tasks.train.environment import requirements, versions, without_determinism
from tasks.train.hardware import Group
from tasks.train.parameters import TrainParameters
from tasks.train.train import make_trainer


def test_versions_are_those_of_what_runs() -> None:
    found = versions()
    assert found["torch"] == version("torch")
    assert {"python", "chipline", "pytorch-lightning", "timm", "numpy"} <= set(found)
    lines = requirements().splitlines()
    assert f"torch=={version('torch')}" in lines
    assert lines == sorted(lines)


def test_lightning_comes_without_transformers() -> None:
    """They are installed for two models, and would take ten seconds of every training's start."""
    asked = (
        "import sys, tasks.train, pytorch_lightning, torchmetrics; assert 'transformers' not in sys.modules; "
        "import transformers; print(transformers.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == version("transformers"), done.stderr


def test_operators_without_determinism_are_noted_and_other_warnings_shown() -> None:
    with pytest.warns(UserWarning, match="another matter"), without_determinism() as found:
        warnings.warn("another matter", stacklevel=1)
    with without_determinism() as found:
        warnings.warn(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True, warn_only=True)'",
            stacklevel=1,
        )
    assert found == {"adaptive_avg_pool2d_backward_cuda"}


@pytest.mark.parametrize("insists", [False, True])
def test_determinism_is_asked_of_torch(insists: bool, tmp_path: Path) -> None:
    given = {"in_folder": ["a"], "output_name": "a", "model_type": "UNET", "deterministic": insists}
    before = torch.are_deterministic_algorithms_enabled()
    try:
        make_trainer(
            TrainParameters.model_validate(given), [], accelerator="cpu", together=Group(), work=tmp_path
        )
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is not insists
    finally:
        torch.use_deterministic_algorithms(before)
