"""How settings are read. Each room declares its section beside the code that uses it, and receives no other.

A setting is read from the environment, else from the env file, else has the default of its section. Names are those of
the earlier gateway, in either case; keys of the env file that no section has are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from gateway.config.files import read_text
from gateway.errors import Refusal

HOME = Path("/var/lib/gateway")
URL_PATH = r'^/[!"$-~]*$'  # a path as in a request line, without the '#' of a fragment
# The earlier gateway's env files leave empty what they do not use.
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class Section(BaseSettings):
    """The settings of one room: a field for each, named as its variable. Sizes are bytes, times seconds.

    `class Mine(Section, heading="Mine")` lists them under this heading in docs/settings.md.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, validate_default=False)

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
    if env_file is not None:
        read_text(env_file, "env file", "check its path and mode")
    file: dict[str, Any] = {"env_file": env_file, "env_file_encoding": "utf-8"}
    sources: dict[str, Any] = {f"_{name}": value for name, value in file.items()}  # pydantic-settings' own arguments
    read, problems = [], []
    for section in sections:
        fields = section.model_fields
        own = {name: value for name, value in overrides.items() if value is not None and name in fields}
        try:
            found = section(**sources, **own)
        except ValidationError as error:
            problems += [
                f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            ]
            continue
        unset = (fallback or {}).keys() & fields.keys() - found.model_fields_set
        read.append(found.model_copy(update={name: (fallback or {})[name] for name in unset}))
    if problems:
        raise Refusal(*problems)
    return Settings(read, DotEnvSettingsSource(Section, case_sensitive=True, **file).env_vars)
