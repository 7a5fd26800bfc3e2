"""Parameters of the tools for packages."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.errors import BadInputError
from tasks.parameters import ToolParameters

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class InspectPackageParameters(ToolParameters):
    """Show what a package is and all that is wrong with it, without running any of it."""

    package: str = Field(min_length=1, description="URI of a .dlpk, or of a .zip with the same content")


class _Approving(ToolParameters):
    approve: bool = Field(
        default=False,
        description="Record that the package may run here; only a role that may write approvals can",
    )
    approved_by: str | None = Field(default=None, description="Who approves it")
    approval_reason: str | None = Field(
        default=None, description="Why it may run here, for example where it comes from"
    )

    @model_validator(mode="after")
    def _whoever_approves_is_named(self) -> _Approving:
        given = [bool(text and text.strip()) for text in (self.approved_by, self.approval_reason)]
        if self.approve and not all(given):
            raise BadInputError(
                "An approval says who gives it and why.", "Give approved_by and approval_reason."
            )
        if not self.approve and any(given):
            raise BadInputError(
                "Somebody is named who approves, and approve is off.", "Set approve, or leave them empty."
            )
        return self

    @property
    def approver(self) -> str | None:
        """Who approves; None where nobody does."""
        return self.approved_by if self.approve else None


class AddPackageParameters(_Approving):
    """Bring a package: check it, show it, publish it under its digest, and approve it if you may."""

    package: str = Field(min_length=1, description="URI of a .dlpk, or of a .zip with the same content")
    output_name: str | None = Field(
        default=None, pattern=_NAME, description="What it is called here; by default as its .emd"
    )


class PackageModelParameters(_Approving):
    """Make a package of a model that was trained elsewhere, and publish it."""

    definition: str = Field(min_length=1, description="URI of the model definition (.emd)")
    output_name: str = Field(pattern=_NAME, description="Name of the package")
    weights: str | None = Field(
        default=None, description="URI of the weights; empty for a model that needs none"
    )
    inference_function: str | None = Field(
        default=None, description="URI of the inference function (.py); empty for a built-in one"
    )
    extra_files: list[str] = Field(
        default=[],
        description="URIs of further files; one that ends with / stands for all files below it",
    )
