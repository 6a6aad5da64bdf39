"""GET /models: the presets, their defaults, limits and licences."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from jobs.formats import FORMATS
from jobs.presets import PRESETS
from service.openapi import problems
from service.schema import ModelsView, ModelView
from service.state import ServicesDep

__all__ = ["router"]

router = APIRouter(tags=["models"])


@router.get("/models", summary="List the presets", responses=problems(_503="Redis is away."))
def list_models(services: ServicesDep) -> ModelsView:
    """Every preset that `POST /upscale` knows, and whether a worker serves it now."""
    settings = services.settings
    serving = services.serving()
    return ModelsView(
        models=[
            ModelView(
                **asdict(preset),
                default=preset.name == settings.preset,
                available=preset.name in serving.available,
                reason=serving.reason(preset.name),
            )
            for preset in PRESETS.values()
        ],
        formats=list(FORMATS),
        max_upload_bytes=settings.max_upload_bytes,
        max_input_pixels=settings.max_input_pixels,
        max_output_pixels=settings.max_output_pixels,
    )
