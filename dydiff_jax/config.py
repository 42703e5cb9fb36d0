"""From the sections of a ConfigDict to checked dataclasses.

A section is exactly the keyword arguments of one constructor, so that nothing needs keeping in sync. A section that
chooses among constructors names one in its key ``name``. `build` knows which sections there are.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import ml_collections

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be built, with the full path of the key at fault."""


def closest(found: str, expected: Iterable[str]) -> str:
    """`` (did you mean 'eta'?)`` where a name is near, else the empty string."""
    near = difflib.get_close_matches(found, list(expected), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choose(table: Mapping[str, T], name: Any, path: str) -> T:
    """Return table[name], or raise an error that lists the names and the closest match."""
    if name not in table:
        raise ConfigError(
            f"{path}: expected one of {sorted(table)}, found {name!r}{closest(str(name), table)}"
        )
    return table[name]


def convert(value: Any, kind: Any, path: str) -> Any:
    """Check a value against a plain type, ``Literal``, tuple or optional; integers serve as floats.

    Raises:
      ConfigError: it has another type.
    """
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return choose({option: option for option in typing.get_args(kind)}, value, path)
    if origin in (types.UnionType, typing.Union):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else convert(value, inner[0], path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a sequence, found {value!r}")
        return tuple(convert(v, typing.get_args(kind)[0], f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: expected {kind.__name__}, found {value!r}")
    return value


def strict(constructor: Callable[..., T], section: Mapping[str, Any], path: str, **given: Any) -> T:
    """Build ``constructor(**section, **given)`` after checking every key and type against its dataclass fields.

    Args:
      constructor: a dataclass.
      section: its keyword arguments from the config.
      path: of the section, for messages.
      **given: arguments that other sections decide.

    Raises:
      ConfigError: an unknown key (with the closest match), a missing one, a wrong type or value.
    """
    hints = typing.get_type_hints(constructor)
    fields = {f.name: f for f in dataclasses.fields(constructor) if f.init and f.name not in given}
    check_keys(section, fields, path)
    required = (dataclasses.MISSING, dataclasses.MISSING)
    for name, field in fields.items():
        if name not in section and (field.default, field.default_factory) == required:
            raise ConfigError(f"{path}.{name}: missing; expected {hints[name]}")
    arguments = {key: convert(value, hints[key], f"{path}.{key}") for key, value in section.items()}
    try:
        return constructor(**arguments, **given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error


def named(table: Mapping[str, Callable[..., T]], section: Mapping[str, Any], path: str, **given: Any) -> T:
    """``strict`` with the constructor that the section's key ``name`` chooses from a table."""
    name, rest = split_name(section, table, path)
    return strict(choose(table, name, f"{path}.name"), rest, path, **given)


def split_name(section: Mapping[str, Any], table: Mapping[str, Any], path: str) -> tuple[str, dict[str, Any]]:
    """The key ``name`` of a section, and its other keys."""
    if "name" not in section:
        raise ConfigError(f"{path}.name: missing; expected one of {sorted(table)}")
    return section["name"], {key: value for key, value in section.items() if key != "name"}


def check_keys(section: Mapping[str, Any], known: Iterable[str], path: str) -> None:
    """Refuse keys of a section that are not known, with the closest match."""
    known = sorted(known)
    for key in section:
        if key not in known:
            raise ConfigError(f"{path}.{key}: unknown key{closest(key, known)}; {path} takes {known}")


def check_sections(section: Mapping[str, Any], expected: Iterable[str], path: str) -> None:
    """Refuse a section whose keys are not exactly the expected ones."""
    expected = list(expected)
    check_keys(section, expected, path)
    for key in expected:
        if key not in section:
            raise ConfigError(f"{path}.{key}: missing")


def defaults(constructor: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, with it: a section as a config file begins with it."""
    return {
        f.name: f.default for f in dataclasses.fields(constructor) if f.default is not dataclasses.MISSING
    }


def within(path: str, check: Callable[[], T]) -> T:
    """Run a check, and name the section, or the key, in the error that it raises."""
    try:
        return check()
    except ConfigError:
        raise
    except ValueError as error:
        names_key = str(error).partition(": ")[0].isidentifier()
        raise ConfigError(f"{path}{'.' if names_key else ': '}{error}") from error


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as nested dictionaries: what config.json holds."""
    return config.to_dict()
