"""Keys of the section `span_corruption`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainenv.config.section import Config


class SpanCorruptionConfig(Config):
    """Training task of a T5: predict spans that its input lacks (Raffel 2020)."""

    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.15,
        description="Share of the tokens that are left out of the input, above 0 and below 1.",
    )
    mean_span: Annotated[float, Field(ge=1)] = Field(
        default=3.0, description="Mean length of a span that is left out in tokens, at least 1."
    )
