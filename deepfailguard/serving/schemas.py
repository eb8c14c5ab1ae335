"""What the OpenAPI page tells of requests and responses; tensors themselves never pass these models."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from deepfailguard.guard.verdict import Ground, VersionState
from deepfailguard.serving.tensors import DATATYPES, INPUT, OUTPUTS

__all__ = [
    "INFER_BODY",
    "PICTURE_BODY",
    "ErrorBody",
    "HealthBody",
    "InferBody",
    "LiveBody",
    "ModelBody",
    "ModelReadyBody",
    "PredictionBody",
    "QuarantineBody",
    "ReadyBody",
    "ServerBody",
    "StatusBody",
    "SwapBody",
    "SwapGateBody",
    "VersionBody",
    "responses",
]


class ErrorBody(BaseModel):
    """Why there is no answer."""

    error: str


class LiveBody(BaseModel):
    """The server runs."""

    live: bool


class ReadyBody(BaseModel):
    """Whether new requests are welcome."""

    ready: bool


class ModelReadyBody(BaseModel):
    """Whether the guard takes requests."""

    name: str
    ready: bool


class ServerBody(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class _TensorBody(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelBody(BaseModel):
    """The guard as a model of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[_TensorBody]
    outputs: list[_TensorBody]


class _OutputBody(_TensorBody):
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferBody(BaseModel):
    """Answers."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, bool | str]
    outputs: list[_OutputBody]


class _VersionAnswer(BaseModel):
    name: str
    state: VersionState
    label: int
    class_: str = Field(alias="class")
    failure_probability: float
    weight: float
    distance: float | None
    found: bool
    problem: str


class PredictionBody(BaseModel):
    """The verdict on a picture."""

    label: int
    class_: str = Field(alias="class")
    abstained: bool
    failure_probability: float
    degraded: bool
    ground: Ground
    explanation: str
    probabilities: dict[str, float]
    versions: list[_VersionAnswer]
    resized_from: tuple[int, int] | None
    seconds: float


class VersionBody(BaseModel):
    """How a version stands."""

    name: str
    state: VersionState
    since: float
    reason: str


class HealthBody(BaseModel):
    """Whether enough versions serve."""

    ready: bool
    degraded: bool
    serving: int
    least_versions: int
    versions: list[VersionBody]


class StatusBody(BaseModel):
    """How the guard and its versions stand."""

    model_config = ConfigDict(extra="allow")

    versions: list[dict[str, Any]]
    ready: bool
    degraded: bool
    serving: int
    least_versions: int
    inputs: int
    batches: int
    abstained: int
    unanswered: int
    bad_inputs: int
    drift: str
    drift_text: str
    started: float
    isolation: str
    predictor: str
    decision: str
    events: list[dict[str, Any]]


class QuarantineBody(BaseModel):
    """Why a version is set aside."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(min_length=1, max_length=500)


class SwapBody(BaseModel):
    """Which shadow takes the place of which version."""

    model_config = ConfigDict(extra="forbid", strict=True)

    leaving: str = Field(min_length=1, max_length=200)
    entering: str = Field(min_length=1, max_length=200)
    force: bool = False


class SwapGateBody(BaseModel):
    """What was found about the swap."""

    model_config = ConfigDict(extra="allow")

    allowed: bool
    reason: str
    leaving: str
    entering: str


_TEXTS: Final = {
    400: "The request is not what was expected.",
    401: "The key is missing or wrong.",
    403: "Nobody may change versions of this server.",
    404: "There is no such model, version or page.",
    408: "The body did not arrive in time.",
    409: "What was asked cannot be done as things stand.",
    413: "The body, the picture or the number of images is too large.",
    415: "The content type is not one that is understood.",
    422: "The request cannot be judged.",
    429: "The client asks too much at the same time.",
    500: "The guard failed on this request.",
    503: "Too many wait, or the server is shutting down.",
    504: "There was no answer within the deadline.",
}
_RETRY: Final = {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer"}}}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the page tells of statuses >= 400."""
    told: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        told[status] = {"model": ErrorBody, "description": _TEXTS[status]}
        if status in (429, 503, 504):
            told[status]["headers"] = _RETRY
    return told


INFER_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": (
            "JSON; or JSON and after it the tensor's bytes, with the JSON's length in Inference-Header-Content-Length."
        ),
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["name", "shape", "datatype", "data"],
                                "properties": {
                                    "name": {"const": INPUT},
                                    "datatype": {"enum": list(DATATYPES)},
                                    "shape": {"type": "array", "items": {"type": "integer"}},
                                    "data": {"type": "array", "items": {}},
                                    "parameters": {"type": "object"},
                                },
                            },
                        },
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": {"enum": list(OUTPUTS)}, "parameters": {"type": "object"}},
                            },
                        },
                    },
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

PICTURE_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "An image file: as the field `file` of a form, or alone with its content type.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                },
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
