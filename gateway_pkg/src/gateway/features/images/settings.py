"""The settings of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from gateway.config.settings import HOME, Section


class ImageSettings(Section, heading="Images"):
    images_backend: Literal["", "mock", "http_a1111", "http_openai_images", "http_invokeai", "http_comfyui"] = Field(
        "",
        description="How images are made; empty: by the backends of `IMAGES_BACKEND_CLASS`, by `mock` without any.",
    )
    images_backend_class: str = Field("gpu_heavy", description="Class of the backends that make images.")
    images_http_base_url: str = Field(
        "",
        description="An image server, for a class without a record; not on loopback, for one with records, too.",
    )
    images_http_timeout_sec: float = Field(120, gt=0, description="Longest time for one request's images.")
    images_a1111_steps: int = Field(20, ge=1, le=500, description="Sampling steps where a request names none.")
    images_max_pixels: int = Field(2_000_000, ge=1, description="Largest area of an image.")
    images_openai_model: str = Field("", description="Image model where a request names none.")
    images_openai_model_fast: str = Field("gpu_fast", description="Image model for what may be quick.")
    images_openai_model_slow: str = Field("gpu_slow", description="Image model for what must be realistic.")
    images_enable_request_type: bool = Field(
        False, description="Whether the prompt decides between the fast and the slow image model."
    )
    ui_image_dir: Path = Field(HOME / "data/ui_images", description="Directory of stored images.")
    ui_image_ttl_sec: int = Field(86_400, ge=1, description="How long a stored image is kept.")
    ui_image_max_bytes: int = Field(50_000_000, ge=1, description="Largest image that is stored.")
    ui_image_total_bytes: int = Field(
        1_000_000_000,
        ge=1,
        description="Largest size of all stored images; the oldest of the token with most make room.",
    )
