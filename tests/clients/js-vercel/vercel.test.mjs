// Vercel's AI SDK, unmodified: the provider for OpenAI-compatible servers (chat completions) and OpenAI's (responses).
// Chat, streams and embeddings are the appliance's real models; tools and structure those of a scripted model, whose
// answers EXPECTED holds.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import { z } from 'zod';

const { APPLIANCE_URL, APPLIANCE_TOKEN, TOOLS_URL, TOOLS_TOKEN } = process.env;
const expected = JSON.parse(process.env.EXPECTED);
const appliance = createOpenAICompatible({ name: 'appliance', baseURL: APPLIANCE_URL, apiKey: APPLIANCE_TOKEN, includeUsage: true });
const compatible = createOpenAICompatible({
  name: 'tools', baseURL: TOOLS_URL, apiKey: TOOLS_TOKEN, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: TOOLS_URL, apiKey: TOOLS_TOKEN });
const models = { 'openai-compatible': compatible(expected.model), 'openai responses': openai(expected.model), 'openai chat': openai.chat(expected.model) };
const once = { maxRetries: 0 };
const prompt = 'What is the weather in Zürich?';
const tools = {
  get_weather: tool({ inputSchema: z.object({ city: z.string(), note: z.string() }), execute: ({ city }) => `18 degrees in ${city}` }),
  get_time: tool({ inputSchema: z.object({ zone: z.string() }), execute: ({ zone }) => `noon in ${zone}` }),
};
const place = z.object({ city: z.string(), degrees: z.number() });

const calls = (steps) => steps[0].toolCalls.map(({ toolName, input }) => [toolName, input]);
const wanted = expected.names.map((name, index) => [name, JSON.parse(expected.arguments[index])]);

test('the real model chats and tells its usage', async () => {
  const { text, usage, finishReason } = await generateText({ ...once, model: appliance('default'), prompt: 'Say hello.', maxOutputTokens: 16 });
  assert.ok(text.trim().length > 0);
  assert.ok(usage.outputTokens > 0 && usage.outputTokens <= 16);
  assert.ok(['stop', 'length'].includes(finishReason));
});

test('the real model streams in pieces', async () => {
  const stream = streamText({ ...once, model: appliance('default'), prompt: 'Say hello.', maxOutputTokens: 16, onError: () => {} });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  assert.ok(pieces.length > 1, `${pieces.length} pieces`);
  assert.ok((await stream.usage).outputTokens > 0);
});

test('texts are embedded', async () => {
  const { embeddings, usage } = await embedMany({ ...once, model: appliance.embeddingModel('all-minilm-l6-v2'), values: ['One.', 'Two.'] });
  assert.deepEqual(embeddings.map((vector) => vector.length), [384, 384]);
  assert.ok(usage.tokens > 0);
});

test('an unknown model is an error that says so', async () => {
  const request = generateText({ ...once, model: appliance('defualt'), prompt });
  await assert.rejects(request, (error) => {
    assert.equal(error.statusCode, 404);
    assert.match(error.message, /default/);
    return true;
  });
});

for (const [kind, model] of Object.entries(models)) {
  test(`${kind}: a whole round of calls, results and words`, async () => {
    const { steps, text } = await generateText({ ...once, model, prompt, tools, stopWhen: stepCountIs(3) });
    assert.deepEqual(calls(steps), wanted);
    assert.deepEqual(steps[0].toolResults.map(({ output }) => output), ['18 degrees in Zürich', 'noon in Europe/Zurich']);
    assert.equal(text, expected.final);
  });

  test(`${kind}: the same as a stream`, async () => {
    const stream = streamText({ ...once, model, prompt, tools, stopWhen: stepCountIs(3), onError: () => {} });
    const deltas = {};
    for await (const part of stream.fullStream) {
      assert.notEqual(part.type, 'error', `${part.error}`);
      if (part.type === 'tool-input-delta') (deltas[part.id] ??= []).push(part.delta);
    }
    assert.deepEqual(Object.values(deltas).map((pieces) => pieces.join('')), expected.arguments);
    assert.deepEqual(calls(await stream.steps), wanted);
    assert.equal(await stream.text, expected.final);
  });

  test(`${kind}: an object by its schema, whole and as a stream`, async () => {
    const { object } = await generateObject({ ...once, model, schema: place, prompt });
    assert.deepEqual(object, expected.structured);
    const stream = streamObject({ ...once, model, schema: place, prompt, onError: () => {} });
    const partial = [];
    for await (const one of stream.partialObjectStream) partial.push(one);
    assert.ok(partial.length > 1, 'the object came in one piece');
    assert.deepEqual(await stream.object, expected.structured);
  });
}
