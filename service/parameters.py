"""A form's fields as a job's parameters, and what is wrong with them in plain words.

Unknown fields are refused: a misspelt `fidelity_weigth` that is silently left out would give a
result nobody asked for. An empty value counts as left out, because that is how an HTML form sends
an input nobody filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MultipleOf
from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import QueryParams

from jobs.presets import PRESETS
from jobs.schema import Parameters
from service.errors import InvalidParameters
from service.uploads import IMAGE_FIELD, WEBHOOK_FIELD

__all__ = ["check_query", "parse"]


def parse(fields: Mapping[str, str], preset: str) -> Parameters:
    """The parameters of a form; `preset` is the one that is meant when the form names none.

    Raises InvalidParameters, which lists every fault.
    """
    given = {name: value for name, value in fields.items() if value.strip()}
    try:
        return Parameters.model_validate({"preset": preset, **given})
    except ValidationError as error:
        faults = [_fault(details) for details in error.errors(include_url=False)]
    raise InvalidParameters(
        "; ".join(f"{fault['field']} {fault['detail']}".strip() for fault in faults) + ".",
        errors=list(faults),
    )


def check_query(query: QueryParams) -> None:
    """Refuses parameters in the URL, which would be ignored there."""
    if names := list(dict.fromkeys(query)):
        raise InvalidParameters(
            f"Parameters are fields of the form, not of the URL; {', '.join(names)} would be "
            "ignored there.",
            errors=[{"field": name, "detail": "belongs into the form"} for name in names],
        )


def _fault(details: ErrorDetails) -> dict[str, JsonValue]:
    """One of pydantic's findings as field, detail, and the range or the choice that is right."""
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "extra_forbidden":
        known = [IMAGE_FIELD, *Parameters.model_fields, WEBHOOK_FIELD]
        known_names = ", ".join(known)
        return {"field": name, "detail": f"is unknown; the fields are {known_names}"}
    if not name:
        # A finding about several fields says which in its own sentence.
        message = details["msg"].removeprefix("Value error, ")
        field, _, rest = message.partition(" ")
        return {"field": field, "detail": rest.rstrip(".")}
    expected, facts = _expected(name)
    given = details["input"]
    shown = str(len(given) if details["type"] == "string_too_long" else given)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return {"field": name, "detail": f"must be {expected}; got {shown}", **facts}


def _expected(name: str) -> tuple[str, dict[str, JsonValue]]:
    """What a field takes, in words and as members of the problem."""
    if name == "preset":
        return "one of " + ", ".join(PRESETS), {"allowed": list(PRESETS)}
    field = Parameters.model_fields[name]
    if get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        return "one of " + ", ".join(choices), {"allowed": list(choices)}
    bounds: dict[type, Any] = {type(mark): mark for mark in field.metadata}
    if MaxLen in bounds:
        longest = bounds[MaxLen].max_length
        return f"at most {longest} characters long", {"max_length": longest}
    low, high = bounds[Ge].ge, bounds[Le].le
    words = f"{'a whole number ' if field.annotation is int else ''}between {low} and {high}"
    facts: dict[str, JsonValue] = {"minimum": low, "maximum": high}
    if MultipleOf in bounds:
        facts["multiple_of"] = bounds[MultipleOf].multiple_of
        words = words.replace("whole number", f"multiple of {facts['multiple_of']}")
    return words, facts
