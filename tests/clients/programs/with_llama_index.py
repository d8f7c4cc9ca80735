"""LlamaIndex's classes for OpenAI-like servers, used as its documentation does."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.clients.programs import where

TOOLS = [FunctionTool.from_defaults(where.get_weather), FunctionTool.from_defaults(where.get_time)]


class Place(BaseModel):
    city: str
    degrees: int


def server(place: dict[str, str]) -> dict[str, str]:
    return {"api_base": place["base_url"], "api_key": place["api_key"]}


def real() -> dict[str, Any]:
    chat = OpenAILike(model=where.REAL, is_chat_model=True, max_tokens=16, max_retries=0, **server(where.APPLIANCE))
    text = OpenAILike(model=where.REAL, is_chat_model=False, max_tokens=16, max_retries=0, **server(where.APPLIANCE))
    message = [ChatMessage(role="user", content="Say hello.")]
    embedder = OpenAILikeEmbedding(model_name=where.EMBEDDER, **server(where.APPLIANCE))
    return {
        "answer": chat.chat(message).message.content,
        "pieces": [chunk.delta for chunk in chat.stream_chat(message) if chunk.delta],
        "completion": text.complete("Once upon a time").text,
        "vectors": [len(vector) for vector in embedder.get_text_embedding_batch(["One.", "Two."])],
    }


def calls(llm: OpenAILike) -> dict[str, Any]:
    answer = llm.chat_with_tools(TOOLS, where.QUESTION, allow_parallel_tool_calls=True)
    *_, last = llm.stream_chat_with_tools(TOOLS, where.QUESTION, allow_parallel_tool_calls=True)
    asked, streamed = (llm.get_tool_calls_from_response(response) for response in (answer, last))
    return {
        "called": [[call.tool_name, call.tool_kwargs] for call in asked],
        "streamed": [[call.tool_name, call.tool_kwargs] for call in streamed],
    }


async def agent(llm: OpenAILike) -> dict[str, Any]:
    """A whole round as a stream: the agent runs the tools itself."""
    answer = await FunctionAgent(tools=TOOLS, llm=llm).run(where.QUESTION)
    return {"results": [call.tool_output.content for call in answer.tool_calls], "final": str(answer)}


def main() -> None:
    caller = OpenAILike(
        model=where.CALLER,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        max_retries=0,
        **server(where.TOOLS),
    )
    structured = caller.as_structured_llm(Place).chat([ChatMessage(role="user", content="Name a place.")])
    where.say(real=real(), chat=calls(caller), agent=asyncio.run(agent(caller)), structured=structured.raw.model_dump())


main()
