"""The settings of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gateway.config.settings import HOME, Section, setting


class ImageSettings(Section, heading="Images"):
    images_backend: Literal["", "mock", "http_a1111", "http_openai_images", "http_invokeai", "http_comfyui"] = setting(
        "", "How to make images; empty: by the backends of `IMAGES_BACKEND_CLASS`, else by `mock`."
    )
    images_backend_class: str = setting("gpu_heavy", "Backend class for images.")
    images_http_base_url: str = setting(
        "", "URL of an image server, for a class without a record; overrides records unless it is on loopback."
    )
    images_http_timeout_sec: float = setting(120, "Longest time for one request's images.", gt=0)
    images_a1111_steps: int = setting(20, "Sampling steps for requests without steps.", ge=1, le=500)
    images_max_pixels: int = setting(2_000_000, "Largest area of an image.", ge=1)
    images_openai_model: str = setting("", "Image model for requests without a model.")
    images_openai_model_fast: str = setting("gpu_fast", "Image model for quick images.")
    images_openai_model_slow: str = setting("gpu_slow", "Image model for realistic images.")
    images_enable_request_type: bool = setting(
        False, "Whether the prompt decides between the fast and the slow image model."
    )
    ui_image_dir: Path = setting(HOME / "data/ui_images", "Directory of stored images.")
    ui_image_ttl_sec: int = setting(86_400, "How long a stored image is kept.", ge=1)
    ui_image_max_bytes: int = setting(50_000_000, "Largest size of a stored image.", ge=1)
    ui_image_total_bytes: int = setting(
        1_000_000_000,
        "Largest size of all stored images; beyond it, the token that stores the most loses its oldest.",
        ge=1,
    )
