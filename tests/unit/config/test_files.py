"""backends.yaml, model_aliases.json, the env file: what is wrong with one is said in a line, before anything opens."""

import json
from pathlib import Path
from typing import Any

import pytest
from gateway.access.settings import AccessSettings
from gateway.app import App, load_settings
from gateway.backends.records import load_backends
from gateway.backends.settings import UpstreamSettings
from gateway.config.core import ListenerSettings
from gateway.config.settings import Section, Settings
from gateway.errors import Refusal
from gateway.routing.aliases import Alias, load_aliases
from gateway.routing.settings import RoutingSettings
from gateway.web.settings import RequestSettings

from tests.support.gateways import write_files

GOOD = "backends: {a: {class: test, base_url: 'http://127.0.0.1:1/v1', supported_capabilities: [chat]"


def naming(path: Path) -> Settings:
    return load_settings(gateway_backends_path=path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            GOOD + ", base_ulr: x}}",
            "base_ulr: unknown key; remove it or correct its spelling (did you mean",
        ),
        (GOOD.replace("base_url", "bas_url") + "}}", "bas_url: unknown key"),
        ("backends: {a: {class: test}}", "base_url: Field required"),
        (GOOD.replace("[chat]", "[caht]") + "}}", "supported_capabilities.0"),
        (GOOD.replace("http:", "ftp:") + "}}", "base_url"),
        (GOOD.replace("class: test", "class: 'a b'") + "}}", "class"),
        (GOOD + ", concurrency_limits: {chat: 0}}}", "concurrency_limits.chat"),
        (GOOD + ", protocol: heartmula}}", "protocol 'heartmula' has no chat; it has music"),
        (
            GOOD + ", protocol: olama}}",
            "no protocol 'olama'; did you mean 'ollama'? there are openai, llamacpp, ollama, nexa, a1111, ",
        ),
        (GOOD + ", queue: {max: 0, timeout_sec: 1}}}", "queue.max"),
        (GOOD + ", api_key: '${NOT_SET}'}}", "${NOT_SET} is not set"),
        (GOOD + ', api_key: "a\\r\\nX: y"}}', "api_key"),
        ("backends: [", "not YAML"),
        ("backends: {a: 2026-99-99}", "not YAML"),
        ("\x00", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("backends: &a {b: *a}", "nested too deep"),
        (GOOD + ", health: {liveness: //elsewhere/health}}}", "health.liveness"),
        ("backends: {}", "at least one record"),
        ("- a", "at least one record"),
        ("", "at least one record"),
    ],
)
def test_wrong_backends(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "backends.yaml"
    path.write_text(text)
    with pytest.raises(Refusal) as caught:
        load_backends(naming(path), {})
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "Field required" not in str(caught.value) or says.endswith("Field required")


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[" * 100_000, "9" * 10_000, "[]"),
        *('{"a": 1}', '{"a": "no-colon"}', '{"a": {"backend": "x"}}', '{"a": "x:"}', '{"a": ":m"}'),
        '{"a": {"backend": "x", "model": "m", "max_tokens_cap": 0}}',
        '{"a": {"backend": "x", "model": "m", "mdoel": 1}}',
    ],
)
def test_wrong_aliases(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model_aliases.json"
    path.write_text(text)
    with pytest.raises(Refusal) as caught:
        load_aliases(load_settings(model_aliases_path=path)[RoutingSettings])
    assert str(path) in str(caught.value)


def test_wrong_aliases_of_a_setting_are_told_by_its_name() -> None:
    with pytest.raises(Refusal, match=r"^MODEL_ALIASES_JSON: line 1: "):
        load_aliases(load_settings(model_aliases_json="{")[RoutingSettings])


@pytest.mark.parametrize(
    ("field", "earlier"),
    [
        ("context", ["context_window", "window"]),
        ("max_tokens_cap", ["max_tokens", "max_output_tokens"]),
        ("temperature_cap", ["temp_cap"]),
    ],
)
def test_the_earlier_names_of_an_alias_s_fields(field: str, earlier: list[str]) -> None:
    for name in earlier:
        text = json.dumps({"a": {"backend": "x", "model": "m", name: 5}})
        expected: Any = {"a": Alias("x", "m", **{field: 5})}  # type: ignore[arg-type]  # each of them takes a 5
        assert load_aliases(load_settings(model_aliases_json=text)[RoutingSettings]) == expected


def test_aliases_in_each_of_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "model_aliases.json"
    old = '"c": {"backend": "x", "model": "m", "window": 8000, "temp_cap": 0.5, "max_output_tokens": 9, "tools": false}'
    path.write_text('{"aliases": {"A": "x:m:1", "b": {"backend": "x", "upstream_model": "m"}, ' + old + "}}")
    expected = {"a": Alias("x", "m:1"), "b": Alias("x", "m"), "c": Alias("x", "m", 8000, False, 9, 0.5)}
    assert load_aliases(load_settings(model_aliases_path=path)[RoutingSettings]) == expected
    assert load_aliases(load_settings(model_aliases_json=path.read_text())[RoutingSettings]) == expected


def test_alias_that_stands_twice_is_refused() -> None:
    with pytest.raises(Refusal, match="fast: is there twice"):
        load_aliases(load_settings(model_aliases_json='{"Fast": "x:m", "fast": "x:n"}')[RoutingSettings])


def test_settings_imply_the_earlier_aliases(tmp_path: Path) -> None:
    path = tmp_path / "model_aliases.json"
    path.write_text('{"fast": "x:m"}')
    settings = load_settings(model_aliases_path=path, ollama_model_strong="big", mlx_model_strong="long")[
        RoutingSettings
    ]
    assert load_aliases(settings) == {
        "default": Alias("ollama", "big", tools=True),
        "fast": Alias("x", "m"),
        "coder": Alias("ollama", "big", tools=True),
        "long": Alias("mlx", "long", tools=False),
    }


def test_one_address_is_enough() -> None:
    file = load_backends(load_settings(ollama_base_url="http://127.0.0.1:11434"), {})
    (record,) = file.records.values()
    assert (record.backend_class, record.protocol) == ("ollama", "ollama")
    with pytest.raises(Refusal, match=r"OLLAMA_BASE_URL: .*http"):
        load_backends(load_settings(ollama_base_url="ftp://x"), {})


def test_a_class_of_the_file_beats_an_address(tmp_path: Path) -> None:
    path = tmp_path / "backends.yaml"
    path.write_text(GOOD.replace("class: test", "class: local_mlx") + "}}\nlegacy_mapping: {mlx: local_mlx}\n")
    settings = load_settings(
        gateway_backends_path=path, mlx_base_url="http://127.0.0.1:2/v1", ollama_base_url="http://127.0.0.1:3"
    )
    assert list(load_backends(settings, {}).records) == ["a", "ollama"]


def test_a_record_is_not_lost_to_an_address_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "backends.yaml"
    path.write_text(GOOD.replace("a:", "ollama:", 1) + "}}")
    with pytest.raises(Refusal, match="ollama: a setting makes a backend of this name"):
        load_backends(load_settings(gateway_backends_path=path, ollama_base_url="http://127.0.0.1:3"), {})


def test_hosts_of_a_class_share_one_queue(tmp_path: Path) -> None:
    path = tmp_path / "backends.yaml"
    record = GOOD.removeprefix("backends: {a: ")
    path.write_text(f"backends: {{a: {record}, queue: {{max: 2, timeout_sec: 1}}}}, b: {record}}}}}")
    with pytest.raises(Refusal, match=r"b\.queue: differs from that of a"):
        load_backends(naming(path), {})


def test_env_file_is_read_and_the_environment_beats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".env"
    path.write_text("GATEWAY_PORT=1234\nMAX_REQUEST_BYTES=99\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("MAX_REQUEST_BYTES", "77")
    settings = load_settings(path)
    assert settings[ListenerSettings].gateway_port == 1234
    assert settings[RequestSettings].max_request_bytes == 77
    with pytest.raises(Refusal, match="does not exist"):
        load_settings(tmp_path / "missing")


def test_variables_of_files_may_stand_in_the_env_file(tmp_path: Path) -> None:
    """Also where they are settings, as in the earlier gateway's own list of backends."""
    env_file, path = tmp_path / ".env", tmp_path / "backends.yaml"
    env_file.write_text("KEY=from-file\nOLLAMA_BASE_URL=http://127.0.0.1:7\nOTHER=1\nTTS_BASE_URL=\n")
    settings = load_settings(env_file, gateway_backends_path=path, mlx_base_url="http://127.0.0.1:8")
    for name, environment, filled in (
        ("KEY", {}, "from-file"),
        ("KEY", {"KEY": "from-environment"}, "from-environment"),
        ("OLLAMA_BASE_URL", {}, "http://127.0.0.1:7"),
        ("MLX_BASE_URL", {}, "http://127.0.0.1:8"),
    ):
        path.write_text(GOOD + f", api_key: '${{{name}}}'}}}}")
        assert load_backends(settings, environment).records["a"].api_key == filled
    for name in ("TTS_BASE_URL", "GATEWAY_PORT", "GATEWAY_BEARER_TOKEN", "NOWHERE"):
        path.write_text(GOOD + f", api_key: '${{{name}}}'}}}}")
        with pytest.raises(Refusal, match="is not set; set it in the environment or the env file"):
            load_backends(settings, {})


def test_paths_that_are_left_empty_are_not_set(tmp_path: Path) -> None:
    names: dict[type[Section], list[str]] = {
        ListenerSettings: ["GATEWAY_TLS_CERT_PATH", "GATEWAY_TLS_KEY_PATH"],
        AccessSettings: ["GATEWAY_TOKEN_POLICIES_PATH"],
        UpstreamSettings: ["BACKEND_CA_BUNDLE"],
    }
    path = tmp_path / ".env"
    path.write_text("".join(f"{name}=\n" for several in names.values() for name in several))
    settings = load_settings(path)
    for section, several in names.items():
        assert [getattr(settings[section], name.lower()) for name in several] == [None] * len(several)


def test_aliases_need_no_file_unless_one_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, "http://127.0.0.1:9/v1")
    given: dict[str, Any] = {"gateway_bearer_token": "x" * 32, "gateway_backends_path": tmp_path / "backends.yaml"}
    App(load_settings(**given))
    with pytest.raises(Refusal, match="does not exist"):
        App(load_settings(**given, model_aliases_path=tmp_path / "missing.json"))


def test_a_fallback_serves_only_where_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unprovisioned host's own directory offers is beaten by environment, env file and command line."""
    env_file = tmp_path / ".env"
    env_file.write_text("GATEWAY_LOG_LEVEL=debug\n")
    monkeypatch.setenv("GATEWAY_HOST", "127.0.0.2")
    monkeypatch.delenv("GATEWAY_TLS_KEY_PATH", raising=False)
    offered = {"gateway_host": "h", "gateway_log_level": "l", "gateway_port": 1, "gateway_tls_key_path": tmp_path}
    read = load_settings(env_file, fallback=offered, gateway_port=2)[ListenerSettings]
    assert (read.gateway_host, read.gateway_log_level, read.gateway_port) == ("127.0.0.2", "debug", 2)
    assert read.gateway_tls_key_path == tmp_path
