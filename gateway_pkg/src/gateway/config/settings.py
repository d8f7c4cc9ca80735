"""How settings are read. Each room declares its section beside the code that uses it, and receives no other.

A setting is read from the environment, else from the env file, else has the default of its section. Names are those of
the earlier gateway, in either case; keys of the env file that no section has are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gateway.config.files import read_text
from gateway.errors import Refusal

HOME = Path("/var/lib/gateway")
URL_PATH = r'^/[!"$-~]*$'  # a path as in a request line, without the '#' of a fragment
# The earlier gateway's env files leave empty what they do not use.
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class Section(BaseModel):
    """The settings of one room: a field for each, named as its variable. Sizes are bytes, times seconds.

    `class Mine(Section, heading="Mine")` lists them under this heading in docs/settings.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    heading: ClassVar[str]

    def __init_subclass__(cls, heading: str, **config: Any) -> None:
        cls.heading = heading
        super().__init_subclass__(**config)


S = TypeVar("S", bound=Section)


def setting(default: Any, description: str, **bounds: Any) -> Any:
    """A field of a section; `bounds` are those of pydantic's Field."""
    return Field(default, description=description, **bounds)


class Settings:
    """The sections that were read, each by its class."""

    def __init__(self, sections: Iterable[Section], lines: Mapping[str, str | None]) -> None:
        """`lines` are those of the env file, also the ones that no section has."""
        self._sections = {type(section): section for section in sections}
        self._lines = lines

    def __getitem__(self, section: type[S]) -> S:
        return cast(S, self._sections[section])

    def value(self, name: str) -> str:
        """The text of the setting whose field is `name`, whatever its section; "" for another kind of value."""
        values = (getattr(one, name) for section, one in self._sections.items() if name in section.model_fields)
        return next((value for value in values if isinstance(value, str)), "")

    def variable(self, name: str, environment: Mapping[str, str]) -> str:
        """The value of `${name}` in a file: from the environment, the env file or a setting, else ""."""
        return environment.get(name) or self._lines.get(name) or self.value(name.lower())


def read_settings(
    sections: Iterable[type[Section]],
    env_file: Path | None = None,
    fallback: Mapping[str, object] | None = None,
    **overrides: object,
) -> Settings:
    """Reads the sections; `overrides` (field name to value, None = not given) beat all else, all beats `fallback`.

    Raises Refusal, one line per problem: a value has a wrong type or range, or the env file cannot be read.
    """
    lines = _lines(env_file) if env_file is not None else {}
    given: dict[str, Any] = {**(fallback or {})}
    given |= {name.lower(): value for name, value in lines.items() if value is not None}
    given |= {name.lower(): value for name, value in os.environ.items()}
    given |= {name: value for name, value in overrides.items() if value is not None}
    read, problems = [], []
    for section in sections:
        try:
            read.append(section(**{name: given[name] for name in section.model_fields if name in given}))
        except ValidationError as error:
            problems += [
                f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            ]
    if problems:
        raise Refusal(*problems)
    return Settings(read, lines)


def _lines(env_file: Path) -> Mapping[str, str | None]:
    from dotenv import dotenv_values  # a start without an env file does without it

    text = read_text(env_file, "env file", "check its path and mode")
    return dotenv_values(stream=StringIO(text))
