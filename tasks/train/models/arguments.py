"""Which model arguments mean something for which model type.

Types share classes of options (:mod:`tasks.train.models.options`), and not every network has all that those
are about. What a person gives and a network would not heed is refused, by a training and by a search, before
anything is computed.

A new model type whose network has no use for some of the options of its class adds a row to :data:`WITHOUT`;
one that has use for all of them adds nothing. An argument that only some types of a class know is a field of
that class, and is named in the rows of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasks.errors import BadInputError

_LEARNT_BY_ITSELF = frozenset({"class_balancing", "focal_loss", "dice_loss", "mixup"})
_FCOS_ONLY = frozenset({"head_convolutions", "center_radius"})

WITHOUT: dict[str, frozenset[str]] = {
    "UNET": frozenset({"width"}),
    "UNETPLUSPLUS": frozenset({"width"}),
    "MANET": frozenset({"width"}),
    "LINKNET": frozenset({"decoder", "width"}),  # as wide as the encoder
    "FPN": frozenset({"decoder"}),
    "PSPNET": frozenset({"decoder"}),
    "DEEPLAB": frozenset({"decoder"}),
    "UPERNET": frozenset({"decoder"}),
    "SEGFORMER": frozenset({"decoder"}),
    "CHANGEDETECTOR": frozenset({"width"}),
    "HED_EDGEDETECTOR": frozenset({"decoder", "width"}) | _LEARNT_BY_ITSELF,
    "BDCN_EDGEDETECTOR": frozenset({"decoder"}) | _LEARNT_BY_ITSELF,
    "FCOS": frozenset({"scales", "ratios"}),
    "RETINANET": _FCOS_ONLY,
    "SSD": _FCOS_ONLY,
    "FASTERRCNN": _FCOS_ONLY | {"scales"},  # one size at each level
    "MASKRCNN": _FCOS_ONLY | {"scales"},
}
"""By model type: the options of its class that its network has no use for."""

WITH: dict[str, dict[str, frozenset[str]]] = {
    "mtl_model": {
        "hourglass": frozenset({"decoder"}),
        "linknet": frozenset({"decoder", "width"}),
        "unet": frozenset({"width"}),
    },
}
"""By an option that decides what a network is made of, and by its value: the options without use then."""

NOT_OFFERED: dict[str, dict[str, str]] = {
    "SSD": dict.fromkeys(
        ("grids", "zooms"),
        "boxes start at sizes in pixels, whatever the size of a tile, by stride, levels and anchor_size",
    ),
    "PSPNET": {
        "pyramid_sizes": "the pyramid is that of ArcGIS's default, 1, 2, 3 and 6",
        "use_unet": "no U-Net follows the pyramid; model_type UNET is one",
    },
    "CHANGEDETECTOR": {
        "attention_type": "both dates are compared feature by feature, without attention; fusion says how",
    },
    "SUPERRESOLUTION": dict.fromkeys(
        (
            "inner_channel",
            "norm_groups",
            "channel_mults",
            "attn_res",
            "res_blocks",
            "n_timestep",
            "schedule",
            "linear_start",
            "linear_end",
        ),
        "it is of SR3, a diffusion model, which there is none of here",
    ),
}
"""ArcGIS's arguments that are not offered, by model type, each with the reason (docs/training.md)."""

LOSS = frozenset({"class_balancing", "focal_loss", "dice_loss", "mixup", "label_smoothing"})
"""Options of how a network learns: those that a model with a training step of its own cannot heed."""

CUSTOM = LOSS | {"ignore_classes"}
"""Chipline's options for models of one's own; all other arguments are the model's."""


def check_given(model_type: str, given: Iterable[str], users: Mapping[str, list[str]]) -> None:
    """Refuse arguments that the model type has no use for.

    Args:
        given: names that a person gave; what a preset sets is none of them.
        users: by argument, the model types that do use it.

    Raises:
        BadInputError: with the types that it is for, or with what does the same.
    """
    for name in given:
        reason = NOT_OFFERED.get(model_type, {}).get(name)
        if reason is not None:
            raise BadInputError(
                f"The model argument {name} of {model_type} is not offered: {reason}.", f"Leave {name} out."
            )
        if name in WITHOUT.get(model_type, ()):
            others = ", ".join(users.get(name, []))
            raise BadInputError(
                f"{model_type} has no use for the model argument {name}"
                + (f": it is for {others}." if others else "."),
                f"Leave {name} out, or choose another model_type.",
            )


def check_decided(options: Mapping[str, object], given: Iterable[str]) -> None:
    """Refuse arguments that mean nothing beside the value of another one.

    Args:
        options: all options with their values.
        given: see :func:`check_given`.

    Raises:
        BadInputError: with the value that leaves them without use.
    """
    for name in given:
        for decides, values in WITH.items():
            value = str(options.get(decides))
            if name in values.get(value, ()):
                fitting = [other for other, without in values.items() if name not in without]
                raise BadInputError(
                    f"With {decides} = {value} the model argument {name} means nothing.",
                    f"Leave {name} out, or choose {decides} = {' or '.join(fitting)}.",
                )
