"""The Prefect task of ``create_label_layer``. Heavy modules are loaded inside."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from tasks.labels.parameters import LabelLayerParameters

_LINK_SECONDS = 7 * 24 * 3600


@task(name="make label layer")
def make_label_layer(parameters: LabelLayerParameters) -> dict[str, str]:
    """Publish an empty GeoPackage to draw labels in and link to it.

    Returns:
        ``uri`` of the published folder, ``layer``: URI of the GeoPackage.
    """
    from tasks.labels.publish_layer import LAYER_FILE, publish_label_layer
    from tasks.store import ObjectStore, join

    store = ObjectStore()
    folder, classes = publish_label_layer(store, parameters, {"flow_run": flow_run.get_id()})
    layer = join(folder, LAYER_FILE)
    link = store.presign(layer, _LINK_SECONDS)
    create_markdown_artifact(
        key="label-layer",
        markdown=f"# Label layer {parameters.output_name}\n\n[{LAYER_FILE}]({link}): "
        "open it in QGIS, draw polygons, choose their class from the list.\n\n"
        f"```\n{classes}```\n\nThen name the file in `input_class_data` of export_training_data.",
    )
    return {"uri": folder, "layer": layer}
