"""OpenAI's requests in Ollama's words: the bodies of /api/chat, /api/generate and /api/embed.

Fields that Ollama has under another name are renamed, fields that change the answer in a way that Ollama has no means
for are refused by name, all others (Ollama's own, such as `keep_alive`, `think`, `truncate` or `raw`, among them) are
forwarded as they came. Names and meanings are those of Ollama's `api/types.go`, 0.12.11 (the first with log
probabilities) and newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.backends.protocols.base import THOUGHTS
from gateway.errors import ApiError, invalid_value, unsupported_value

Json = dict[str, Any]

# The values that ask for nothing Ollama would not do anyway; any other one is refused.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": (),
    "functions": (),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# OpenAI's name: the name within Ollama's `options`. The later one of two wins.
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
}
_TRANSLATED = {
    *_HARMLESS,
    *_OPTIONS,
    *("encoding_format", "logprobs", "messages", "model", "options", "parallel_tool_calls", "reasoning_effort"),
    *("response_format", "stop", "stream", "stream_options", "tool_choice", "tools", "top_logprobs"),
}
# The names that the bodies below are made of.
_WRITTEN = frozenset(
    {
        *("format", "input", "logprobs", "messages", "model", "options", "prompt"),
        *("stream", "think", "tools", "top_logprobs"),
    }
)
# OpenAI's scale is longer than Ollama's at its lower end, and calls the top differently.
_THINK = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


def chat(request: Mapping[str, Any], model: str) -> Json:
    """The body of /api/chat; raises ApiError."""
    body = _common(request, model)
    body["messages"] = _messages(request["messages"])
    if request.get("logprobs"):
        body["logprobs"] = True
        if request.get("top_logprobs") is not None:
            body["top_logprobs"] = request["top_logprobs"]
    elif request.get("top_logprobs"):
        raise invalid_value("top_logprobs", "needs 'logprobs': true")
    if (tools := _tools(request)) and request.get("tool_choice") != "none":
        body["tools"] = tools
    if function := forced_function(request):
        body["format"] = function.get("parameters") or {"type": "object"}
    return body


def completion(request: Mapping[str, Any], model: str) -> Json:
    """The body of /api/generate; raises ApiError. As with Ollama, the model's template is applied unless `raw`."""
    body = _common(request, model)
    prompt = request["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise unsupported_value("prompt", "must be one string on this backend")
    body["prompt"] = prompt
    if request.get("logprobs") is not None:
        body |= {"logprobs": True, "top_logprobs": request["logprobs"]}
    return body


def embedding(request: Mapping[str, Any], model: str) -> Json:
    """The body of /api/embed; raises ApiError. `dimensions` is forwarded, `encoding_format` is done to the answer."""
    texts = request["input"]
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise unsupported_value("input", "must be a string or a list of strings on this backend")
    body = {name: value for name, value in request.items() if value is not None and name != "encoding_format"}
    _check_case(body)
    return body | {"model": model}


def forced_function(request: Mapping[str, Any]) -> Json | None:
    """The one function that `tool_choice` asks for, which Ollama is held to by the schema of its arguments.

    Raises ApiError for a choice that this cannot do.
    """
    choice = request.get("tool_choice")
    if choice in (None, "auto", "none"):
        return None
    functions: list[Json] = [tool["function"] for tool in _tools(request)]
    if choice == "required":
        if len(functions) != 1:
            raise unsupported_value("tool_choice", "takes 'required' here only with one tool; name the function")
        return functions[0]
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise unsupported_value("tool_choice", "must be 'auto', 'none', 'required' or one named function here")
    name = _dict(choice.get("function")).get("name")
    for function in functions:
        if function["name"] == name:
            return function
    raise invalid_value("tool_choice", "must name a function of 'tools'")


def dump(body: Json, request: Mapping[str, Any]) -> bytes:
    """The body as JSON; raises ApiError that names the field of `request` which holds what cannot be passed on."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"Invalid request: {error}", param=_undumpable(request), code="invalid_value") from None


def _undumpable(request: Mapping[str, Any]) -> str | None:
    for name, value in request.items():
        try:
            orjson.dumps({name: value})
        except orjson.JSONEncodeError:
            return name
    return None


def _common(request: Mapping[str, Any], model: str) -> Json:
    for name, harmless in _HARMLESS.items():
        value = request.get(name)
        if value is not None and value not in harmless:
            raise unsupported_value(name, "is not supported by Ollama; leave it out, or choose another model")
    body = {name: value for name, value in request.items() if name not in _TRANSLATED and value is not None}
    _check_case(body)
    # Ollama streams unless told otherwise.
    body |= {"model": model, "stream": bool(request.get("stream")), "options": _options(request)}
    if (form := _format(request.get("response_format"))) is not None:
        body["format"] = form
    if (effort := request.get("reasoning_effort")) is not None and "think" not in body:
        if not isinstance(effort, str) or effort not in _THINK:
            raise invalid_value("reasoning_effort", f"must be one of {', '.join(_THINK)}")
        body["think"] = _THINK[effort]
    return body


def _check_case(body: Json) -> None:
    """Ollama reads a field's name in any case, and takes the last of two: none may stand beside one that is written."""
    for name in body:
        if name not in _WRITTEN and name.casefold() in _WRITTEN:
            raise invalid_value(name, f"must be written '{name.casefold()}'")


def _options(request: Mapping[str, Any]) -> Json:
    options = request.get("options")
    if options is not None and not isinstance(options, dict):
        raise invalid_value("options", "must be an object of Ollama's options")
    options = dict(options or {})
    for name, option in _OPTIONS.items():
        if request.get(name) is not None:
            options[option] = request[name]
    if (stop := request.get("stop")) is not None:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    return options


def _format(wanted: Any) -> Any:
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case {"type": "json_schema"}:
            raise invalid_value("response_format.json_schema.schema", "must be a JSON schema")
    raise unsupported_value("response_format.type", "must be 'text', 'json_object' or 'json_schema' on this backend")


def _tools(request: Mapping[str, Any]) -> list[Json]:
    tools: list[Json] = request.get("tools") or []
    for index, tool in enumerate(tools):
        if tool.get("type", "function") != "function":
            raise unsupported_value(f"tools.{index}.type", "must be 'function' on this backend")
        if not isinstance(_dict(tool.get("function")).get("name"), str):
            raise invalid_value(f"tools.{index}.function.name", "must be the function's name")
    return tools


def _messages(messages: list[Json]) -> list[Json]:
    names: dict[str, str] = {}  # of the functions called so far, by the call's id
    return [_message(message, f"messages.{index}", names) for index, message in enumerate(messages)]


def _message(message: Json, at: str, names: dict[str, str]) -> Json:
    if message["role"] == "function":
        raise unsupported_value(f"{at}.role", "takes 'tool' instead of 'function' on this backend")
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise unsupported_value(f"{at}.{name}", "is not supported by Ollama")
    said = {name: value for name, value in message.items() if value is not None}
    if said["role"] == "developer":
        said["role"] = "system"
    if thoughts := [said.pop(name) for name in THOUGHTS if name in said]:
        said["thinking"] = thoughts[0]
    said |= _content(said.get("content", ""), f"{at}.content")
    if "tool_calls" in said:
        said["tool_calls"] = _calls(said["tool_calls"], f"{at}.tool_calls", names)
    if said["role"] == "tool" and "tool_name" not in said:
        tool = said.get("name") or names.get(str(said.get("tool_call_id")))
        if tool is not None:
            said["tool_name"] = tool
    return said


def _content(content: str | list[Json], at: str) -> Json:
    """`content` as one text, and `images` where there are some (which is also where Ollama takes audio)."""
    if isinstance(content, str):
        return {"content": content}
    texts, images = [], []
    for index, part in enumerate(content):
        match part:
            case {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)} as image}:
                images.append(_image(url, image.get("detail"), f"{at}.{index}.image_url"))
            case {"type": "input_audio", "input_audio": {"data": str(data)}}:
                images.append(data)
            case _:
                raise unsupported_value(f"{at}.{index}", "must be a text, an 'image_url' or an 'input_audio' here")
    said: Json = {"content": "\n".join(texts)}
    return said | {"images": images} if images else said


def _image(url: str, detail: Any, at: str) -> str:
    """Base64 as Ollama wants it; it sees every image in full detail."""
    if detail not in (None, "auto", "high"):
        raise unsupported_value(f"{at}.detail", "must be 'auto' or 'high' on this backend")
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise unsupported_value(f"{at}.url", "must be a data: URL in base64: this backend fetches no images")
    return data


def _calls(calls: Any, at: str, names: dict[str, str]) -> list[Json]:
    if not isinstance(calls, list):
        raise invalid_value(at, "must be a list")
    said = []
    for index, call in enumerate(calls):
        function = _dict(_dict(call).get("function"))
        name = function.get("name")
        if not isinstance(name, str):
            raise unsupported_value(f"{at}.{index}", "must be a call of a function on this backend")
        told: Json = {"function": function | {"index": index, "arguments": _arguments(function, f"{at}.{index}")}}
        if call.get("id") is not None:
            told["id"] = call["id"]
            names[str(call["id"])] = name
        said.append(told)
    return said


def _arguments(function: Json, at: str) -> orjson.Fragment:
    """OpenAI's string is an object in Ollama's protocol: the same text, without the quotes around it."""
    text = function.get("arguments")
    if text is None or text == "":
        text = "{}"
    try:
        if isinstance(text, str) and isinstance(orjson.loads(text), dict):
            return orjson.Fragment(text)
    except orjson.JSONDecodeError:
        pass
    raise invalid_value(f"{at}.function.arguments", "must be a JSON object as a string")


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}
