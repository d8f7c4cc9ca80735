"""Reading the files that operators and Ansible write, with refusals instead of tracebacks."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from gateway.errors import Refusal


def read_text(path: Path, what: str, hint: str) -> str:
    """The file's text; raises Refusal naming `what` it is and the `hint` of what to do."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refusal(f"{what} {path} does not exist; {hint}") from None
    except UnicodeDecodeError:
        raise Refusal(f"{what} {path} is not UTF-8; {hint}") from None
    except OSError as error:
        raise Refusal(f"{what} {path} cannot be read ({error.strerror}); {hint}") from None


def validation_refusal(path: Path | str, error: ValidationError) -> Refusal:
    """One line per problem: file (or setting), place in it, what is wrong."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key; remove it or correct its spelling"
        lines.append(f"{path}: {place}: {message}")
    return Refusal(*lines)
