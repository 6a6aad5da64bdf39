"""What schemathesis cannot make up by itself: images, cursors, and fields that go together."""

from __future__ import annotations

import base64
import re
import uuid
from typing import Any

import schemathesis
from hypothesis import strategies as st

from jobs.listing import Cursor
from models.parameters import LOSSY
from models.presets import PRESETS
from tests.service.pictures import picture

FILES = [picture(kind, 4, 3) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
CURSORS = st.builds(
    lambda seconds, number: str(Cursor(seconds, f"{number:032x}")),
    st.floats(0, 4e9),
    st.integers(0, 2**128 - 1),
)

schemathesis.openapi.format("binary", st.sampled_from(FILES))
TEXTS = [base64.b64encode(file).decode() for file in FILES]
TEXTS += [f"data:image/png;base64,{text}" for text in TEXTS]

schemathesis.openapi.format("byte", st.sampled_from(TEXTS))
# Nothing is asked of any other server.
schemathesis.openapi.format("image-url", st.sampled_from(TEXTS[len(FILES) :]))
schemathesis.openapi.format("cursor", CURSORS)
schemathesis.openapi.format("webhook-url", st.just("https://hooks.example.org/stablesr?job=1"))


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Takes the conditions out: schemathesis cannot try them on a file's bytes."""
    content = raw_schema["paths"]["/upscale"]["post"]["requestBody"]["content"]
    for body in content.values():
        schema = body["schema"]
        del schema["allOf"]
        # Each goes without the others, or is right for few images.
        for name in ("width", "height", "megapixels", "page"):
            del schema["properties"][name]
    form = content["multipart/form-data"]["schema"]
    # Either of the two, which JSON covers.
    del form["oneOf"], form["properties"]["image_url"]
    form["required"] = ["image"]


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """Leaves out what those conditions forbid."""
    return not isinstance(body, dict) or _together(body)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """The same for the cases that are not drawn but listed."""
    return not isinstance(case.body, dict) or _together(case.body)


@schemathesis.hook
def before_add_examples(context: Any, examples: list[Any]) -> None:
    """And for those that are made around the description's examples."""
    examples[:] = [case for case in examples if filter_case(context, case)]


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Gives each case an idempotency key of its own: one for several bodies is refused."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,255}", key):
        case.headers["Idempotency-Key"] = uuid.uuid4().hex


def _together(form: dict[str, Any]) -> bool:
    """Whether the fields fit each other, as `service.openapi` has it."""
    # What is empty counts as left out, of whatever type it should be.
    texts = [value for name, value in form.items() if name not in ("image", "image_url")]
    if texts and all(value in ("", []) for value in texts):
        return False
    prompts = [str(form.get(name) or "").strip() for name in ("prompt", "negative_prompt")]
    preset = PRESETS.get(str(form.get("preset") or "tiny"))
    guidance = form.get("guidance_scale", 1)
    guided = isinstance(guidance, int | float) and guidance > 1
    if form.get("quality") is not None and form.get("output_format") not in [*LOSSY]:
        return False
    if form.get("eta") is not None and form.get("sampler") != "ddim":
        return False
    if any(prompts) and preset is not None and not preset.prompts:
        return False
    return guided == bool(prompts[1]) or (guided and bool(prompts[0]))
