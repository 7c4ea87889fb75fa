"""What the site file's models are written with: pydantic, or in a running service its plain stand-ins.

Checking a site file takes pydantic and a validator for every model, 15 MB that each service would keep
for good. So a service lets a process of its own check the file (`services.reader`) and takes over the
checked values; it imports `shared.plain` first, and then the models here are plain classes of the same
names. Everything else (`tocsin check`, the tests, the schemas) has pydantic.

Models and their validators import these names from here. Code that runs in a service constructs
models, but validates nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "shared.plain" not in sys.modules:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        ModelWrapValidatorHandler,
        PlainValidator,
        PrivateAttr,
        SecretStr,
        SerializeAsAny,
        StringConstraints,
        ValidationError,
        ValidationInfo,
        WithJsonSchema,
        WrapValidator,
        field_validator,
        model_validator,
    )
    from pydantic_core import PydanticCustomError
else:
    from shared.plain import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        ModelWrapValidatorHandler,
        PlainValidator,
        PrivateAttr,
        PydanticCustomError,
        SecretStr,
        SerializeAsAny,
        StringConstraints,
        ValidationError,
        ValidationInfo,
        WithJsonSchema,
        WrapValidator,
        field_validator,
        model_validator,
    )

__all__ = [
    "AfterValidator",
    "BaseModel",
    "BeforeValidator",
    "ConfigDict",
    "Field",
    "ModelWrapValidatorHandler",
    "PlainValidator",
    "PrivateAttr",
    "PydanticCustomError",
    "SecretStr",
    "SerializeAsAny",
    "StringConstraints",
    "ValidationError",
    "ValidationInfo",
    "WithJsonSchema",
    "WrapValidator",
    "field_validator",
    "model_validator",
]
