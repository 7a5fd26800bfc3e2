"""What a search for hyper-parameters leaves: the table of its trials, and which one was best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tasks.assess.tables import to_csv
from tasks.store import (
    Manifest,
    ObjectStore,
    Publication,
    output_folder,
    read_manifest,
    run_key,
    set_current,
)
from tasks.train.plan import load_plan
from tasks.train.study import KIND, SEMANTICS, Search

TABLE, DATA = "trials.csv", "search.json"


def publish_search(store: ObjectStore, search: Search, provenance: Mapping[str, Any]) -> str:
    """Publish the trials of a search; the URI of the folder. The same trials are published once.

    Raises:
        RunError: no training has come to its end.
    """
    parameters = search.parameters
    best, value = search.best
    rows = search.rows()
    content = {
        "best_trial": best.number,
        "monitor": parameters.monitor,
        "best_value": value,
        "best_parameters": load_plan(store, best.plan_uri).parameters.model_dump(mode="json"),
        "trials": rows,
    }
    key = run_key({"search": search.key, "content": content})
    folder = output_folder(KIND, parameters.output_name, key)
    if read_manifest(store, folder) is None:
        publication = Publication(store, folder)
        files = [
            publication.put_file(TABLE, to_csv(rows), "text/csv"),
            publication.put_file(DATA, (json.dumps(content, indent=1) + "\n").encode(), "application/json"),
        ]
        publication.finish(
            Manifest(
                kind=KIND,
                name=parameters.output_name,
                run_key=key,
                parameters=parameters.model_dump(mode="json"),
                inputs=[{"role": "training data", "uri": uri} for uri in parameters.in_folder],
                versions={name: version(name) for name in ("chipline", "optuna")} | {"semantics": SEMANTICS},
                parts=[publication.put_part("all", files)],
                details={"search": search.folder_uri, "best_trial": best.number, "best_value": value},
                provenance=dict(provenance),
            )
        )
    set_current(store, KIND, parameters.output_name, folder)
    return folder
