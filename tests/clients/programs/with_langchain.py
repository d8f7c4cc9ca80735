"""LangChain's OpenAI integration, used as its documentation does."""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.clients.programs import where

TOOLS = [tool(where.get_weather), tool(where.get_time)]
BY_NAME = {one.name: one for one in TOOLS}


class Place(BaseModel):
    city: str
    degrees: int


def real() -> dict[str, Any]:
    chat = ChatOpenAI(model=where.REAL, max_tokens=16, max_retries=0, stream_usage=True, **where.APPLIANCE)
    answer = chat.invoke("Say hello.")
    chunks = list(chat.stream("Say hello."))
    embedder = OpenAIEmbeddings(model=where.EMBEDDER, check_embedding_ctx_length=False, **where.APPLIANCE)
    return {
        "answer": answer.content,
        "usage": answer.usage_metadata,
        "pieces": [chunk.content for chunk in chunks if chunk.content],
        "stream_usage": [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata],
        "vectors": [len(vector) for vector in embedder.embed_documents(["One.", "Two."])],
    }


def calls(chat: ChatOpenAI) -> dict[str, Any]:
    """Calls of an answer, calls of a stream, and the words after the client has run them."""
    bound = chat.bind_tools(TOOLS)
    answer = bound.invoke(where.QUESTION)
    streamed: Any = None
    for chunk in bound.stream(where.QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    results = [
        ToolMessage(BY_NAME[call["name"]].invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls
    ]
    final = bound.invoke([HumanMessage(where.QUESTION), answer, *results])
    return {
        "called": [[call["name"], call["args"]] for call in answer.tool_calls],
        "streamed": [[call["name"], call["args"]] for call in streamed.tool_calls],
        "results": [result.content for result in results],
        "final": final.text,
    }


def agent(chat: ChatOpenAI) -> list[str]:
    """An agent's whole round; the text of each of its messages."""
    state = create_agent(chat, TOOLS).invoke({"messages": [HumanMessage(where.QUESTION)]})
    return [message.text for message in state["messages"] if isinstance(message, AIMessage | ToolMessage)]


def main() -> None:
    caller = ChatOpenAI(model=where.CALLER, max_retries=0, **where.TOOLS)
    responses = ChatOpenAI(model=where.CALLER, max_retries=0, use_responses_api=True, **where.TOOLS)
    where.say(
        real=real(),
        chat=calls(caller),
        responses=calls(responses),
        agent=agent(caller),
        structured=caller.with_structured_output(Place).invoke("Name a place.").model_dump(),
    )


main()
