// Ollama's JavaScript client, unmodified, is content with the double of its server.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Ollama } from "ollama";

const ollama = new Ollama({ host: process.env.OLLAMA_URL });
const user = (content, more = {}) => [{ role: "user", content, ...more }];
const tool = (name) => ({
  type: "function",
  function: {
    name,
    description: "",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
});

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

test("lists models and chats, whole and streamed", async () => {
  const { models } = await ollama.list();
  assert.ok(models.some(({ name }) => name === "echo:latest"));
  const request = { model: "echo", messages: user("Say hello."), options: { num_predict: 3 } };
  const whole = await ollama.chat(request);
  assert.deepEqual([whole.message.content, whole.eval_count], ["You said: Say", 3]);
  const parts = await collect(await ollama.chat({ ...request, stream: true }));
  assert.equal(parts.map(({ message }) => message.content).join(""), whole.message.content);
  assert.deepEqual(parts.map(({ done }) => done).filter(Boolean), [true]);
});

test("calls several tools, thinks, and sees images", async () => {
  const tools = ["get_weather", "get_time", "get_date"].map(tool);
  const parts = await collect(
    await ollama.chat({ model: "echo", messages: user("Now?"), tools, think: true, stream: true }),
  );
  assert.ok(parts.map(({ message }) => message.thinking ?? "").join("").length > 0);
  const calls = parts.flatMap(({ message }) => message.tool_calls ?? []);
  assert.deepEqual(calls.map((call) => call.function.name), ["get_weather", "get_time", "get_date"]);
  assert.equal(typeof calls[0].function.arguments.city, "string");
  const seen = await ollama.chat({ model: "echo", messages: user("Look", { images: [new Uint8Array([1, 2, 3])] }) });
  assert.match(seen.message.content, /1 images of 3 bytes/);
});

test("fills in schemas, completes texts, embeds", async () => {
  const format = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const filled = await ollama.chat({ model: "echo", messages: user("A city as JSON."), format });
  assert.equal(typeof JSON.parse(filled.message.content).city, "string");
  const completed = await ollama.generate({ model: "echo", prompt: "Once", suffix: "end" });
  assert.equal(completed.response, "You said: Once … end");
  const { embeddings } = await ollama.embed({ model: "minilm", input: ["a", "b"], dimensions: 4 });
  assert.deepEqual(embeddings.map(({ length }) => length), [4, 4]);
});

test("tells what goes wrong, also in mid-stream", async () => {
  await assert.rejects(ollama.chat({ model: "smollm2:135m", messages: user("Hi"), think: true }), { status_code: 400 });
  await assert.rejects(async () => {
    await collect(await ollama.chat({ model: "error-mid", messages: user("Hi"), stream: true }));
  }, /CUDA error/);
});
