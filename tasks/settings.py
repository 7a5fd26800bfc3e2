"""Settings of this process, from environment variables with the prefix ``CHIPLINE_``.

Every role (flow, worker, viewer) carries its own identity here; the host's child gets none of it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreAccess(BaseModel):
    """How one bucket (or prefix) is reached; the longest matching prefix wins."""

    prefix: str = Field(description="URI prefix this access applies to, e.g. s3://chipline")
    endpoint_url: str | None = Field(default=None, description="S3 endpoint with scheme; None means AWS")
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: SecretStr | None = None
    anonymous: bool = Field(default=False, description="unsigned requests, for public buckets")


class Settings(BaseSettings):
    """All settings; nested values are given as JSON (``CHIPLINE_STORES='[{"prefix": …}]'``)."""

    model_config = SettingsConfigDict(env_prefix="CHIPLINE_", extra="ignore")

    root: str = Field(default="s3://chipline", description="where all that we make lives")
    stores: list[StoreAccess] = Field(default=[], description="access per bucket or prefix")
    allowed_roots: list[str] = Field(
        default=["s3://"],
        description="URI prefixes and absolute folders that a caller may name; others are refused",
    )
    gdal_drivers: list[str] = Field(
        default=["GTiff", "COG", "VRT", "JP2OpenJPEG", "PNG", "JPEG", "MRF", "WMS"],
        description="GDAL raster drivers that may open a caller's file; WMS stands for image services",
    )
    cache: Path = Field(default=Path.home() / ".cache" / "chipline", description="local cache")
    engine_cache_mb: int = Field(
        default=2_000,
        ge=0,
        description="what networks that were made ready for an execution engine may take of the cache; "
        "0: none are kept",
    )
    host_block_timeout_s: float = Field(default=300.0, description="longest time for one block")
    host_start_timeout_s: float = Field(default=180.0, description="longest time to load a function")
    host_memory_mb: int = Field(default=12_000, description="resident size that stops a host's child")
    host_interpreters: dict[str, Path] = Field(
        default={},
        description="Python by framework (or by a package's digest) where it is not this one: "
        '{"TensorFlow": "/opt/tensorflow/bin/python"}',
    )
    allow_uncontained: bool = Field(
        default=False, description="the operator's word that foreign packages may run without containment"
    )
    worker_processor: Literal["AUTO", "CPU", "GPU"] = Field(
        default="AUTO",
        description="what the workers of pool gpu compute on; AUTO: as the machine that plans",
    )
    export_processes: int = Field(
        default=0, ge=0, description="processes that cut one part; 0: one for each usable core, up to 16"
    )
    train_devices: int = Field(
        default=1, ge=0, description="devices of a training that does not say how many; 0: all that are seen"
    )
    train_strategy: str = Field(
        default="",
        pattern=r"^(ddp[a-z_]*)?$",
        description="how processes that learn together exchange gradients, as Lightning names it (ddp…)",
    )
    train_precision: Literal["AUTO", "FLOAT32", "BFLOAT16", "FLOAT16"] = Field(
        default="AUTO", description="arithmetic of a training whose precision is AUTO"
    )
    run_silent_s: float = Field(
        default=120.0,
        ge=60.0,  # a heartbeat comes every 30 s
        description="how long a run may give no sign of life before it counts as crashed",
    )
    run_pending_s: float = Field(
        default=600.0,
        ge=60.0,
        description="how long a run that a worker took may take to begin before it counts as crashed",
    )
    node_address: str = Field(
        default="", description="address under which other nodes of a training reach this one; found if empty"
    )
    approved_packages: list[str] = Field(
        default=[], description="SHA-256 digests of approved foreign packages"
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
