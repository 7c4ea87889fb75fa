"""Stand-ins for the names of pydantic that `shared.model` offers, for a process that validates nothing.

A service imports this before any model. A model is then a plain class with the same fields, defaults,
methods and properties; validators and constraints are nothing. Its values come from a process with
pydantic, pickled there after they were checked: `BaseModel` here takes over what pydantic's pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, ClassVar, Self

_REQUIRED: Any = ...
_EXTRA = "__pydantic_extra__"
_field_sets: dict[frozenset[str], frozenset[str]] = {}
"""Large sites have many models with the same few keys."""


class FieldInfo:
    """What a model needs to know of a field."""

    __slots__ = ("alias", "default", "default_factory")

    def __init__(
        self,
        default: Any = _REQUIRED,
        *,
        default_factory: Callable[[], Any] | None = None,
        alias: str | None = None,
        **_: Any,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.alias = alias


Field = PrivateAttr = FieldInfo


class _Nothing:
    """A constraint or validator."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __class_getitem__(cls, item: Any) -> Any:
        return item


AfterValidator = BeforeValidator = PlainValidator = WrapValidator = _Nothing
StringConstraints = WithJsonSchema = SerializeAsAny = _Nothing
ModelWrapValidatorHandler = ValidationInfo = _Nothing
ConfigDict = dict


def model_validator(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda function: function


field_validator = model_validator


class ValidationError(ValueError):
    """Never raised here."""


class PydanticCustomError(ValueError):
    """A mistake of the site file. Nothing is checked here, so only the code that checks raises it."""

    def __init__(self, kind: str, template: str, context: Mapping[str, Any] | None = None) -> None:
        super().__init__(template.format(**(context or {})))
        self.type, self.context = kind, context


class SecretStr:
    """A text that is not shown."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "SecretStr('**********')" if self._value else "SecretStr('')"

    def __str__(self) -> str:
        return "**********" if self._value else ""

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretStr) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


class BaseModel:
    """A model's fields are attributes; defaults stand in the class, what differs in the object."""

    model_fields: ClassVar[dict[str, FieldInfo]] = {}
    model_fields_set: frozenset[str] = frozenset()

    def __init_subclass__(cls, **_: Any) -> None:
        fields = {name: field for base in cls.__mro__[:0:-1] for name, field in _fields(base).items()}
        for name in vars(cls).get("__annotations__", {}):
            if name.startswith("__") or str(cls.__annotations__[name]).startswith("ClassVar"):
                continue
            said = vars(cls).get(name, _REQUIRED)
            field = said if hasattr(said, "default_factory") else FieldInfo(said)
            if field.default_factory is not None or not _has(field.default):
                if name in vars(cls):
                    delattr(cls, name)
            else:
                setattr(cls, name, field.default)
            if not name.startswith("_"):
                fields[name] = field
        cls.model_fields = fields

    def __init__(self, **values: Any) -> None:
        """Takes what it is given as it is, by the names of the fields or their aliases."""
        fields = self.model_fields
        given = {}
        for name, field in fields.items():
            for key in (name, field.alias):
                if key is not None and key in values:
                    given[name] = values.pop(key)
            if name not in given and field.default_factory is not None:
                object.__setattr__(self, name, field.default_factory())
            elif name not in given and not _has(field.default):
                raise TypeError(f"{type(self).__name__} lacks {name}")
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")
        self._take(given, frozenset(given), None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What pydantic's `BaseModel.__getstate__` gave, in the process that checked it."""
        self._take(state["__dict__"], frozenset(state["__pydantic_fields_set__"]), state[_EXTRA])
        for name, value in (state["__pydantic_private__"] or {}).items():
            object.__setattr__(self, name, value)

    def _take(self, values: dict[str, Any], given: frozenset[str], extra: dict[str, Any] | None) -> None:
        kind = type(self)
        for name, value in values.items():
            default = getattr(kind, name, _REQUIRED)
            if value is default or (not value and value == default and type(value) is type(default)):
                continue
            object.__setattr__(self, name, value)
        if given:
            self.model_fields_set = _field_sets.setdefault(given, given)
        object.__setattr__(self, _EXTRA, extra)

    @classmethod
    def model_construct(cls, **values: Any) -> Self:
        return cls(**values)

    @classmethod
    def model_validate(cls, value: Any, **_: Any) -> Self:
        raise TypeError(f"this process has no pydantic and cannot validate a {cls.__name__}")

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        copy = object.__new__(type(self))
        for name, value in {**vars(self), **(update or {})}.items():
            object.__setattr__(copy, name, value)
        return copy

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """As pydantic's with mode="json", of models, texts, numbers, enums, lists and mappings."""
        return {name: _dumped(value) for name, value in self}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in self.model_fields)

    def __parts(self) -> tuple[Any, ...]:
        private = {name: value for name, value in vars(self).items() if name.startswith("_")}
        return tuple(value for _, value in self), private

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__parts() == other.__parts()

    def __hash__(self) -> int:
        return hash((type(self), self.__parts()[0]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self)})"


def _has(default: Any) -> bool:
    return default is not _REQUIRED and type(default).__name__ != "PydanticUndefinedType"


def _fields(base: type) -> dict[str, FieldInfo]:
    return base.model_fields if issubclass(base, BaseModel) else {}


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {_dumped(key): _dumped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_dumped(item) for item in value]
    return value.value if isinstance(value, Enum) else value
