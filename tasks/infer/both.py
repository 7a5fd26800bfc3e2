"""Objects and classes of pixels in one run: Detect Objects with the model argument output_classified_raster.

The argument is ArcGIS's, of panoptic packages. Here the run computes the works of two tools, each with passes
of its own over the imagery: the classes first, then the objects.
"""

from __future__ import annotations

from tasks.errors import BadInputError
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters, InferenceTool

ARGUMENT = "output_classified_raster"

# Of the parameters that both tools have: those that say how features are written.
_OF_FEATURES = {"minimum_area", "output_formats", "polygon_shape", "shape_tolerance"}


def with_classes(
    parameters: InferenceTool,
) -> tuple[InferenceTool, ClassifyPixelsParameters | None]:
    """The tool's parameters without the argument, and those of Classify Pixels that it asks for.

    Raises:
        BadInputError: the argument names no output.
    """
    arguments = parameters.model_arguments
    named = [item.value.strip() for item in arguments if item.name == ARGUMENT]
    if not named or not isinstance(parameters, DetectObjectsParameters):
        return parameters, None
    if len(named) > 1 or not named[0]:
        raise BadInputError(
            f"The model argument {ARGUMENT} takes the name of one output.",
            f"Name it, or leave {ARGUMENT} out.",
        )
    rest = [item for item in arguments if item.name != ARGUMENT]
    shared = set(DetectObjectsParameters.model_fields) & set(ClassifyPixelsParameters.model_fields)
    given = {name: getattr(parameters, name) for name in shared - _OF_FEATURES}
    classes = ClassifyPixelsParameters.model_validate(
        {**given, "model_arguments": rest, "output_classified_raster": named[0]}
    )
    return parameters.model_copy(update={"model_arguments": rest}), classes


def check_tells_both(parameters: ClassifyPixelsParameters) -> None:
    """Refuse packages that do not tell both, before anything is computed.

    Raises:
        BadInputError, NotFoundError, PackageError: it is another one, or there is none.
    """
    from tasks.infer.plan import PANOPTIC, check_addresses
    from tasks.infer.prepare import package_uri
    from tasks.package.fetch import fetch_package
    from tasks.store import ObjectStore

    check_addresses(parameters)
    package = fetch_package(package_uri(parameters.model), ObjectStore())
    if package.definition.model_type != PANOPTIC:
        raise BadInputError(
            f"{ARGUMENT} is an argument of packages that tell objects and classes of pixels (MASK2FORMER), "
            f"and {package.name} is of type {package.definition.model_type}.",
            f"Leave {ARGUMENT} out.",
        )
