// OpenAI's JavaScript SDK, unmodified, in front of a backend that calls tools; EXPECTED is what that backend sent.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const { APPLIANCE_URL: baseURL, APPLIANCE_TOKEN: apiKey } = process.env;
const expected = JSON.parse(process.env.EXPECTED);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
const request = {
  model: expected.model,
  messages: [{ role: 'user', content: 'Hello' }],
  tools: expected.names.map((name) => ({ type: 'function', function: { name, parameters: { type: 'object' } } })),
};

test('tool calls of an answer', async () => {
  const answer = await client.chat.completions.create(request);
  const calls = answer.choices[0].message.tool_calls;
  assert.deepEqual(calls.map((call) => call.function.name), expected.names);
  assert.deepEqual(calls.map((call) => call.function.arguments), expected.arguments);
});

test('deltas of a stream keep their index and id, and reassemble to every character', async () => {
  const calls = [];
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    for (const { index, id, function: { name, arguments: piece } } of chunk.choices[0].delta.tool_calls ?? []) {
      calls[index] ??= { id, name, arguments: '' };
      calls[index].arguments += piece;
    }
  }
  assert.deepEqual(calls.map((call) => call.id), ['call_0', 'call_1']);
  assert.deepEqual(calls.map((call) => call.name), expected.names);
  assert.deepEqual(calls.map((call) => call.arguments), expected.arguments);
});

test("the SDK's own accumulator reads the stream", async () => {
  const completion = await client.chat.completions.stream(request).finalChatCompletion();
  const calls = completion.choices[0].message.tool_calls;
  assert.deepEqual(calls.map((call) => call.function.arguments), expected.arguments);
});
