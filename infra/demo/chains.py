"""What the demo runs: two chains over the example scenes, as parameters of ``build_and_apply``.

Trained on the western scene alone; the eastern ones are scored once, at the end. The scene in Florida is
another place: it shows how a model travels.
"""

from __future__ import annotations

from typing import Any

IMAGERY = "s3://chipline/imagery"
YELLOWSTONE = f"{IMAGERY}/yellowstone_trees"
FLORIDA = f"{IMAGERY}/florida_trees"

_COMMON: dict[str, Any] = {
    "input_raster": [f"{YELLOWSTONE}/west.tif"],
    "input_class_data": f"{YELLOWSTONE}/trees.gpkg",
    "apply_raster": [
        f"{YELLOWSTONE}/northeast.tif",
        f"{YELLOWSTONE}/southeast.tif",
        f"{FLORIDA}/osbs_029.tif",
    ],
    "assess_raster": [f"{YELLOWSTONE}/northeast.tif", f"{YELLOWSTONE}/southeast.tif"],
    "test_class_data": f"{YELLOWSTONE}/trees.gpkg",
    "processing_mode": "PROCESS_ITEMS_SEPARATELY",
    "output_nofeature_tiles": "ALL_TILES",
    # Training takes crops of 256 pixels out of larger chips, so that every crop is another one.
    "tile_size": 384,
    "stride_size": 192,
    "chip_size": 256,
    "model_arguments": [{"name": "preset", "value": "light"}],
}

CHAINS: dict[str, dict[str, Any]] = {
    "tree_crowns": _COMMON
    | {
        "output_name": "tree_crowns",
        "model_type": "FCOS",
        "time_limit_minutes": 2.5,
        "max_epochs": 1000,
        "min_iou": 0.4,
    },
    "crown_pixels": _COMMON
    | {
        "output_name": "crown_pixels",
        "model_type": "UNET",
        "time_limit_minutes": 1.5,
        "max_epochs": 1000,
    },
}


def result_kind(name: str) -> str:
    """The tool that makes a chain's result."""
    return "classify_pixels" if CHAINS[name]["model_type"] == "UNET" else "detect_objects"
