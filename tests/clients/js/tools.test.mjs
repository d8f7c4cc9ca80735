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

test('a whole round: calls, their results, words', async () => {
  const { choices: [{ message }] } = await client.chat.completions.create(request);
  const results = message.tool_calls.map(({ id }) => ({ role: 'tool', tool_call_id: id, content: '18' }));
  const stream = client.chat.completions.stream({ ...request, messages: [...request.messages, message, ...results] });
  assert.equal((await stream.finalMessage()).content, expected.final);
});

test('structured output', async () => {
  const schema = { type: 'object', properties: { city: { type: 'string' }, degrees: { type: 'integer' } } };
  const response_format = { type: 'json_schema', json_schema: { name: 'place', schema } };
  const { choices: [{ message }] } = await client.chat.completions.create({ ...request, response_format });
  assert.deepEqual(JSON.parse(message.content), expected.structured);
});

const asked = {
  model: expected.model,
  input: 'Hello',
  tools: expected.names.map((name) => ({ type: 'function', name, parameters: { type: 'object' }, strict: false })),
};

test('calls of a response', async () => {
  const { output } = await client.responses.create(asked);
  const calls = output.filter(({ type }) => type === 'function_call');
  assert.deepEqual(calls.map(({ name }) => name), expected.names);
  assert.deepEqual(calls.map((call) => call.arguments), expected.arguments);
});

test("events of a response's stream name their item, and reassemble to every character", async () => {
  const pieces = {};
  let completed = null;
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === 'response.function_call_arguments.delta') (pieces[event.item_id] ??= []).push(event.delta);
    if (event.type === 'response.completed') completed = event.response;
  }
  assert.deepEqual(Object.values(pieces).map((parts) => parts.join('')), expected.arguments);
  const calls = completed.output.filter(({ type }) => type === 'function_call');
  assert.deepEqual(calls.map((call) => call.arguments), expected.arguments);
  assert.deepEqual(calls.map(({ id }) => id), Object.keys(pieces));
});

test('a response continues another', async () => {
  const first = await client.responses.create(asked);
  const input = first.output
    .filter(({ type }) => type === 'function_call')
    .map(({ call_id }) => ({ type: 'function_call_output', call_id, output: '18' }));
  const second = await client.responses.create({ ...asked, input, previous_response_id: first.id });
  assert.equal(second.output_text, expected.final);
  assert.equal((await client.responses.retrieve(second.id)).output_text, expected.final);
  await client.responses.delete(second.id);
  await assert.rejects(client.responses.retrieve(second.id), (error) => error.status === 404);
});
