// OpenAI's JavaScript SDK, unmodified, against the appliance that APPLIANCE_URL and APPLIANCE_TOKEN name.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const { APPLIANCE_URL: baseURL, APPLIANCE_TOKEN: apiKey } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: 'user', content: 'Say hello to the world.' }];

const refused = (request, status, check) =>
  assert.rejects(request, (error) => {
    assert.ok(error instanceof OpenAI.APIError, `${error}`);
    assert.equal(error.status, status);
    check(error);
    return true;
  });

test('models are listed, aliases among them', async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  for (const id of ['default', 'fast']) assert.ok(ids.includes(id), `${id} is not among ${ids}`);
  const model = await client.models.retrieve('default');
  assert.equal(model.id, 'default');
});

test('a chat has words and usage, and its headers say who answered', async () => {
  const { data, response } = await client.chat.completions
    .create({ model: 'default', messages, max_tokens: 16 })
    .withResponse();
  assert.ok(data.choices[0].message.content.trim().length > 0);
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.ok(data.usage.completion_tokens > 0 && data.usage.completion_tokens <= 16);
  assert.equal(response.headers.get('x-backend-used'), 'llamacpp');
  assert.ok(response.headers.get('x-request-id'));
});

test('a stream comes in pieces, ends by itself, and tells its usage when asked', async () => {
  const stream = await client.chat.completions.create({
    model: 'fast', messages, max_tokens: 24, stream: true, stream_options: { include_usage: true },
  });
  const pieces = [];
  let usage = null;
  let finish = null;
  for await (const chunk of stream) {
    if (chunk.usage) usage = chunk.usage;
    if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
    finish = chunk.choices[0]?.finish_reason ?? finish;
  }
  assert.ok(pieces.length > 1, 'the answer came in one piece');
  assert.ok(['stop', 'length'].includes(finish));
  assert.ok(usage.completion_tokens > 0);
});

test('a stream that is left does not stand in the way of the next request', async () => {
  const stream = await client.chat.completions.create({ model: 'default', messages, max_tokens: 512, stream: true });
  for await (const _ of stream) break; // the SDK aborts the request
  const answer = await client.chat.completions.create({ model: 'default', messages, max_tokens: 4 });
  assert.ok(answer.usage.completion_tokens > 0);
});

test('embeddings are the same as floats and as base64', async () => {
  const ask = (encoding_format) => client.embeddings.create({ model: 'all-minilm-l6-v2', input: 'A sentence.', encoding_format });
  const [floats, usual, packed] = [await ask('float'), await ask(undefined), await ask('base64')];
  const vector = floats.data[0].embedding;
  assert.ok(vector.length > 100);
  assert.deepEqual(usual.data[0].embedding.length, vector.length);
  const bytes = Buffer.from(packed.data[0].embedding, 'base64');
  const unpacked = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  vector.forEach((value, index) => assert.ok(Math.abs(value - unpacked[index]) < 1e-6));
});

test('a wrong token is a 401', async () => {
  const stranger = new OpenAI({ baseURL, apiKey: 'not-the-token-of-this-one', maxRetries: 0 });
  await refused(stranger.models.list(), 401, (error) => assert.ok(error instanceof OpenAI.AuthenticationError));
});

test('an unknown model is a 404 with the nearest names', async () => {
  const request = client.chat.completions.create({ model: 'defualt', messages });
  await refused(request, 404, (error) => {
    assert.equal(error.code, 'model_not_found');
    assert.match(error.message, /default/);
  });
});

test('a wrong field is a 400 that names it', async () => {
  const request = client.chat.completions.create({ model: 'default', messages, temperature: 'warm' });
  await refused(request, 400, (error) => assert.equal(error.param, 'temperature'));
});

test('a body that is too large is a 413 that names the setting', async () => {
  const large = [{ role: 'user', content: 'x'.repeat(1_100_000) }];
  const request = client.chat.completions.create({ model: 'default', messages: large });
  await refused(request, 413, (error) => assert.match(error.message, /MAX_REQUEST_BYTES/));
});

test('requests in parallel each get their own answer', async () => {
  const answers = await Promise.all(
    [4, 5, 6, 7].map((max_tokens) => client.chat.completions.create({ model: 'default', messages, max_tokens, ignore_eos: true })),
  );
  assert.deepEqual(answers.map((answer) => answer.usage.completion_tokens), [4, 5, 6, 7]);
  assert.equal(new Set(answers.map((answer) => answer.id)).size, 4);
});

test('a response of the real model, whole and as a stream', async () => {
  const asked = { model: 'default', input: 'Say hello.', max_output_tokens: 16 };
  const response = await client.responses.create(asked);
  assert.ok(response.output_text.trim().length > 0);
  assert.ok(response.usage.output_tokens > 0);
  const types = [];
  for await (const event of await client.responses.create({ ...asked, stream: true })) types.push(event.type);
  assert.equal(types[0], 'response.created');
  assert.ok(types.filter((type) => type === 'response.output_text.delta').length > 1);
  assert.ok(['response.completed', 'response.incomplete'].includes(types.at(-1)));
});

test('structured output of the real model', async () => {
  const city = { type: 'string', maxLength: 40 }; // a small model may go on with a name for ever
  const schema = { type: 'object', properties: { city }, required: ['city'], additionalProperties: false };
  const response_format = { type: 'json_schema', json_schema: { name: 'place', schema, strict: true } };
  const answer = await client.chat.completions.create({
    model: 'default', messages: [{ role: 'user', content: 'Name a city.' }], max_tokens: 100, response_format,
  });
  assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)), ['city']);
});

test('an image, without a GPU backend', async () => {
  const { data } = await client.images.generate({ prompt: 'A lighthouse', response_format: 'b64_json' });
  assert.ok(Buffer.from(data[0].b64_json, 'base64').length > 0);
});
