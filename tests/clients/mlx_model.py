"""Writes a model for MLX that says what it is told to: each token has one successor, whatever came before it.

usage: mlx_model.py DIRECTORY        (run by the Python of mlx.txt's environment)

It is a Llama of one layer whose attention and feed-forward are zero, so that only the embedding of the last token
reaches the output. The server, its tokenizer, its streams and its parser of tool calls are the real ones, and every
answer is the same each time. The prompt's last token chooses among three answers: words, two tool calls (tools are
offered), and what is said after a tool's result.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# One token each. A piece stands once in all three: that is what a model of successors can say. The two halves of a
# character outside ASCII are tokens of their own, and the second call's marks are cut as no tokenizer would.
SAY: tuple[str | bytes, ...] = ("<|say|>", "Hello", " from", " Z", b"\xc3", b"\xbc", "rich", ".", "<|end|>")
CALL: tuple[str | bytes, ...] = (
    "<|call|>",
    "<tool_call>",
    '{"name": "get_weather", ',
    '"arguments": {"city": ',
    '"Zürich"}}',
    "</tool_call>",
)
CALL += ("\n", "<tool", "_call>", '{"name": "get_time", "arg', 'uments": {"zone"', ': "Europe/Zurich"}}', "</", "tool")
CALL += ("_call", ">", "<|end|>")
ANSWER: tuple[str | bytes, ...] = ("<|answer|>", "It", " is", " 18", " degrees", " there", "!", "<|end|>")
TEMPLATE = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{%- for tool_call in message.tool_calls or [] %}<tool_call>{{ tool_call.name }}</tool_call>{% endfor %}
{% endfor %}
{%- if messages[-1].role == 'tool' %}<|answer|>{% elif tools %}<|call|>{% else %}<|say|>{% endif %}"""
CERTAIN = 50.0  # a logit that leaves nothing to chance


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, as byte-level tokenizers write their vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def write(directory: Path) -> None:
    characters = byte_characters()

    def spelled(piece: str | bytes) -> str:
        return "".join(characters[byte] for byte in (piece.encode() if isinstance(piece, str) else piece))

    chains = [[spelled(piece) for piece in chain] for chain in (SAY, CALL, ANSWER)]
    words = list(dict.fromkeys([*characters.values(), *(piece for chain in chains for piece in chain)]))
    number = {word: n for n, word in enumerate(words)}
    write_tokenizer(directory, number)
    write_weights(directory, number, chains)


def write_tokenizer(directory: Path, number: dict[str, int]) -> None:
    tokenizer = Tokenizer(models.BPE(vocab=number, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SAY[0], CALL[0], ANSWER[0], SAY[-1]])
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(described))


def write_weights(directory: Path, number: dict[str, int], chains: list[list[str]]) -> None:
    count = len(number)
    width = (count + 7) // 8 * 8
    successor = dict.fromkeys(range(count), number[chains[0][1]])
    for chain in chains:
        successor |= {number[one]: number[after] for one, after in pairwise(chain)}
    embedding = mx.eye(count, width)
    head = mx.zeros((count, width))
    for one, after in successor.items():
        head[after, one] = CERTAIN / width**0.5  # the norm before it makes width**0.5 of the one
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "eos_token_id": number["<|end|>"],
    }
    shapes = {"mlp.gate_proj": (8, width), "mlp.up_proj": (8, width), "mlp.down_proj": (width, 8)}
    shapes |= {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    weights = {f"model.layers.0.{name}.weight": mx.zeros(shape) for name, shape in shapes.items()}
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    weights |= {f"{name}.weight": mx.ones((width,)) for name in norms}
    weights |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    (directory / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
