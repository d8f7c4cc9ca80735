"""Speech and transcription: texts made audio, audio made texts, each passed on as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from gateway.backends.answers import EVENTS_TYPE, JSON_TYPE, whole_events
from gateway.backends.call import Call, in_time, to_path
from gateway.backends.failures import wrong_type
from gateway.backends.protocols import speech
from gateway.backends.protocols.base import AnswerError
from gateway.backends.usage import usage_in
from gateway.config.settings import URL_PATH, Section, setting
from gateway.errors import ApiError, invalid_value
from gateway.features.face import Core, Feature
from gateway.routing.body import dump
from gateway.routing.policy import MODEL_MAX_CHARS
from gateway.web.endpoint import Endpoint, parse
from gateway.web.exchange import Exchange, Headers
from gateway.web.fields import OPEN
from gateway.web.multipart import Form
from gateway.web.schemas import TEXT, Model, events, record
from gateway.wire import stepwise
from gateway.wire.connection import Response
from gateway.wire.errors import UpstreamClosed
from gateway.wire.sse import EventCutter, is_sound, parse_event, split_events

TTS_SILENT = "no audio within TTS_TIMEOUT_SEC"
TRANSCRIPT_FORMATS = (*speech.JSON_FORMATS, *speech.TEXT_TYPES)


@with_config(OPEN)
class SpeechRequest(TypedDict, total=False):
    """OpenAI's `POST /v1/audio/speech`; `text` and `format` are the earlier gateway's names of two fields."""

    input: Annotated[str | None, Field(description="What to say; also called `text`.", examples=["Hello."])]
    text: Annotated[str | None, Field(description="Another name of `input`.")]
    model: Model | None
    voice: str | dict[str, Any] | None
    instructions: str | None
    response_format: Annotated[
        str | None, Field(description="mp3, opus, aac, flac, wav, pcm, or another format of the backend.")
    ]
    format: Annotated[str | None, Field(description="Another name of `response_format`.")]
    speed: Annotated[float | None, Field(ge=0.25, le=4, description="Backends may take less.")]
    stream_format: Literal["audio", "sse"] | None


SPEECH_REQUEST: TypeAdapter[Any] = TypeAdapter(SpeechRequest)
SPEECH_ANSWER = {
    "audio/*": TEXT | {"format": "binary"},
    **events("With `stream_format` sse: `speech.audio.delta`, at the end `speech.audio.done`."),
}
_UPSTREAM_HEADERS: dict[str, Any] = {
    "x-gateway-backend": {"description": "The backend's name", "required": True, "schema": TEXT},
    "x-gateway-backend-class": {"description": "Its class", "required": True, "schema": TEXT},
    "x-gateway-upstream-latency-ms": {
        "description": "Milliseconds until the head of its answer",
        "required": True,
        "schema": {"type": "number", "minimum": 0},
    },
}
OPENAPI_EXTRA = {"responses": {"200": {"headers": _UPSTREAM_HEADERS}}}
SPEECH = Endpoint(
    "/v1/audio/speech",
    "tts",
    "Speak a text",
    SPEECH_REQUEST,
    answers={200: SPEECH_ANSWER},
    openapi_extra=OPENAPI_EXTRA,
)
TTS = replace(SPEECH, path="/v1/tts/generations", summary="Speak a text (the earlier gateway's path)")

_FILE = TEXT | {"format": "binary", "description": "The audio."}
_OF_TRANSLATION: dict[str, Any] = {
    "model": TEXT | {"maxLength": MODEL_MAX_CHARS},
    "prompt": TEXT,
    "response_format": {"type": "string", "enum": list(TRANSCRIPT_FORMATS), "default": "json"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 1},
}
_OF_TRANSCRIPTION = _OF_TRANSLATION | {
    "language": TEXT | {"description": "ISO-639-1, such as `en`."},
    "timestamp_granularities[]": {"type": "array", "items": TEXT | {"enum": ["word", "segment"]}},
    "include[]": {"type": "array", "items": TEXT},
    "chunking_strategy": TEXT,
    "stream": {"type": "boolean", "default": False},
}
_TRANSCRIPT = {
    "application/json": record(text=TEXT),
    **dict.fromkeys(("text/plain", "text/vtt", "application/x-subrip"), TEXT),
}
TRANSCRIPTIONS = Endpoint(
    "/v1/audio/transcriptions",
    "transcription",
    "Transcribe speech",
    form=record(_OF_TRANSCRIPTION, file=_FILE),
    answers={200: {**_TRANSCRIPT, **events("With `stream`: `transcript.text.delta`, then `.done`.")}},
    openapi_extra=OPENAPI_EXTRA,
)
TRANSLATIONS = Endpoint(
    "/v1/audio/translations",
    "transcription",
    "Translate speech to English text",
    form=record(_OF_TRANSLATION, file=_FILE),
    answers={200: _TRANSCRIPT},
    openapi_extra=OPENAPI_EXTRA,
)


class SpeechSettings(Section, heading="Speech and transcription"):
    tts_base_url: str = setting("", "URL of a speech server; makes a backend unless one is configured.")
    tts_timeout_sec: float = setting(60, "Longest wait for the first byte of speech.", gt=0)
    tts_generate_path: str = setting("/v1/audio/speech", "Path of the speech server's route.", pattern=URL_PATH)
    tts_backend_class: str = setting("pocket_tts", "Backend class for speech.")
    transcription_backend_class: str = setting("whisper", "Backend class for transcription.")


class Audio(Feature):
    """One request holds one slot of admission until its last byte is out; its client's leaving ends the work."""

    name = "audio"
    section = SpeechSettings

    def __init__(self, core: Core) -> None:
        self._dispatcher = core.dispatcher
        self._limit = core.dispatcher.max_response_bytes
        self._settings = core.settings[SpeechSettings]
        self.endpoints = [
            (SPEECH, self.speak),
            (TTS, self.speak),
            (TRANSCRIPTIONS, self.transcribe),
            (TRANSLATIONS, self.transcribe),
        ]

    async def speak(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Raises ApiError, also after the audio has begun, which then breaks off; ClientDisconnected."""
        request = parse(await exchange.body(), SPEECH_REQUEST)
        settings = self._settings
        model = request.get("model") or ""
        route = self._dispatcher.routes.in_class(exchange, "tts", model, settings.tts_backend_class, request)
        wanted = speech.speech_request(request, route.decision.model)
        body = dump(wanted)
        async with self._dispatcher.call(exchange, route) as call:
            deadline = asyncio.get_running_loop().time() + settings.tts_timeout_sec
            async with in_time(deadline, TTS_SILENT):
                response = await call.ask(lambda slots: to_path(slots, settings.tts_generate_path, body))
            headers = _headers(call)
            as_events = wanted.get("stream_format") == "sse"
            if as_events and _type(response).startswith(EVENTS_TYPE):
                await _pass_events(exchange, response, headers)
                return
            head, declared, is_whole = await self._begun(response, deadline)
            media = speech.audio_type(declared, head, wanted.get("response_format")).encode("latin-1")
            if is_whole and not as_events:
                await exchange.answer(200, head, [(b"content-type", media), *headers])
                return
            # A backend that does not know `stream_format` sends plain audio.
            await exchange.start_stream(EVENTS_TYPE if as_events else media, headers)
            chunk = head
            while chunk:
                await exchange.stream(speech.speech_delta(chunk) if as_events else chunk)
                chunk = await response.next_chunk()
            if as_events:
                await exchange.stream(speech.speech_done())
            await exchange.end_stream()

    async def _begun(self, response: Response, deadline: float) -> tuple[bytes, str, bool]:
        """The beginning of the audio, its type as the backend declares it, and whether that is all of it."""
        content_type = _type(response)
        if content_type.startswith(JSON_TYPE):
            return await stepwise.run(speech.audio_in_json(await response.read(self._limit))), "", True
        declared = content_type.decode("latin-1")
        if not speech.is_audio(declared):
            raise wrong_type(content_type, "audio")
        async with in_time(deadline, TTS_SILENT):  # a long text may take its time to the end
            head = await response.next_chunk()
        if not head:
            raise AnswerError("no audio")
        return head, declared, False

    async def transcribe(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Transcription and translation: the form goes on as it came, but for the model's name.

        Raises ApiError, also after a stream has begun; ClientDisconnected.
        """
        form = Form(exchange.headers.get(b"content-type"), await exchange.body())
        form.check(endpoint.form["properties"] if endpoint.form is not None else ())
        file = form.find("file")
        if file is None or file.filename is None or file.start == file.end:
            raise ApiError(400, "Send the audio as a file in the field 'file'", param="file", code="missing")
        wanted = _one_of(form, "response_format", TRANSCRIPT_FORMATS, "json")
        as_events = _one_of(form, "stream", ("true", "false"), "false") == "true"
        model = form.text("model") or ""
        usual = self._settings.transcription_backend_class
        route = self._dispatcher.routes.in_class(exchange, "transcription", model, usual)
        body = form.body if route.decision.model == model else form.with_text("model", route.decision.model)
        lines = b"Content-Type: %b\r\n" % form.content_type
        async with self._dispatcher.call(exchange, route) as call:
            response = await call.ask(lambda slots: to_path(slots, endpoint.path, body, lines))
            await self._pass_transcript(exchange, response, wanted, as_events, _headers(call))

    async def _pass_transcript(
        self, exchange: Exchange, response: Response, wanted: str, as_events: bool, headers: Headers
    ) -> None:
        content_type = _type(response)
        if as_events and content_type.startswith(EVENTS_TYPE):
            await _pass_events(exchange, response, headers)
            return
        body = await response.read(self._limit)
        is_json = content_type.startswith(JSON_TYPE)
        if response.ends_unframed and not is_json:
            raise UpstreamClosed("the transcript may be incomplete", sent_first_byte=True)
        exchange.usage = usage_in(body) if is_json else None
        if as_events and is_json:
            events = speech.transcript_events(body)
            await exchange.start_stream(EVENTS_TYPE, headers)
            await exchange.stream(events)
            await exchange.end_stream()
            return
        media, body = speech.transcript(wanted, content_type.decode("latin-1"), body)
        await exchange.answer(200, body, [(b"content-type", media.encode("latin-1")), *headers])


def _type(response: Response) -> bytes:
    return response.header(b"content-type") or b""


async def _pass_events(exchange: Exchange, response: Response, headers: Headers) -> None:
    """A backend's own events. OpenAI ends these streams without `[DONE]`."""
    await exchange.start_stream(EVENTS_TYPE, headers)
    async for said in whole_events(response, _check_end):
        exchange.usage = usage_in(said) or exchange.usage
        await exchange.stream(said)
    await exchange.end_stream()


def _check_end(response: Response, cutter: EventCutter, rest: bytes) -> None:
    """At the clean end of a stream of audio or words; raises UpstreamClosed where it may not be all of it.

    The last event of OpenAI's is `….done`; other servers' may be anything, also plain words, but whole.
    """
    events = [parse_event(event) or {} for event in split_events(cutter.last)]
    if cutter.is_done or any(str(event.get("type")).endswith(".done") for event in events):
        return
    if not cutter.last or response.ends_unframed or (rest and not is_sound(rest)):
        raise UpstreamClosed("the stream ended before its last event", sent_first_byte=True)


def _headers(call: Call) -> Headers:
    """The earlier gateway's; the latency is in milliseconds, until the head of the backend's answer."""
    backend = call.slots.backend
    return [
        (b"x-gateway-backend", backend.name.encode()),
        (b"x-gateway-backend-class", backend.record.backend_class.encode()),
        (b"x-gateway-upstream-latency-ms", f"{call.ms:.1f}".encode()),
    ]


def _one_of(form: Form, name: str, known: Sequence[str], usual: str) -> str:
    text = form.text(name) or usual
    if text.lower() not in known:
        raise invalid_value(name, f"must be one of {', '.join(known)}")
    return text.lower()
