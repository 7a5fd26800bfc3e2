"""The object store: URIs, credentials per bucket, immutable publish, conditional put, sync."""

from tasks.store._types import HalfUpload, ObjectInfo
from tasks.store.objects import ObjectStore
from tasks.store.pointer import current, resolve_folder, set_current
from tasks.store.publication import (
    FileRecord,
    Manifest,
    PartRecord,
    Publication,
    iter_files,
    output_folder,
    read_manifest,
    run_key,
)
from tasks.store.sync import sync_folder
from tasks.store.uris import check_allowed, gdal_config, gdal_options, gdal_path, is_local, is_s3, join

__all__ = [
    "FileRecord",
    "HalfUpload",
    "Manifest",
    "ObjectInfo",
    "ObjectStore",
    "PartRecord",
    "Publication",
    "check_allowed",
    "current",
    "gdal_config",
    "gdal_options",
    "gdal_path",
    "is_local",
    "is_s3",
    "iter_files",
    "join",
    "output_folder",
    "read_manifest",
    "resolve_folder",
    "run_key",
    "set_current",
    "sync_folder",
]
