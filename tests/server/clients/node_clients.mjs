// npm's clients against a server on the bundled model, under Node's test runner (`make clients`).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

// The packages lie in an environment of their own.
const require = createRequire(pathToFileURL(`${process.env.PRISMOE_PACKAGES}/`));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI } = await load("openai");
const { generateObject, generateText, streamText } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const baseURL = `${process.env.PRISMOE_URL}/v1`;
const picture = readFileSync(process.env.PRISMOE_PICTURE);
const url = `data:image/png;base64,${picture.toString("base64")}`;
const model = "prismoji";
const answer = "maple leaf";
const text = { type: "text", text: "What is this?" };
const messages = [{ role: "user", content: [{ type: "image_url", image_url: { url } }, text] }];

const openai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const provider = createOpenAICompatible({ name: "prismoe", baseURL, supportsStructuredOutputs: true });
const question = [{ role: "user", content: [{ type: "image", image: picture }, text] }];
const options = { model: provider(model), messages: question, temperature: 0, maxRetries: 0 };

test("openai: a picture, and its stream", async () => {
  const whole = await openai.chat.completions.create({ model, messages, temperature: 0, max_tokens: 9 });
  assert.equal(whole.choices[0].message.content, answer);
  const stream = await openai.chat.completions.create({
    model, messages, temperature: 0, max_tokens: 9, stream: true,
  });
  let streamed = "";
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(streamed, answer);
});

test("openai: models and errors", async () => {
  assert.equal((await openai.models.retrieve(model)).id, model);
  await assert.rejects(
    openai.chat.completions.create({ model, messages: [{ role: "wizard", content: "a" }] }),
    (error) => error.status === 400 && error.message.includes("The roles are"),
  );
});

test("ai: a picture, and its stream", async () => {
  assert.equal((await generateText({ ...options, maxOutputTokens: 9 })).text, answer);
  let streamed = "";
  for await (const piece of streamText({ ...options, maxOutputTokens: 9 }).textStream) streamed += piece;
  assert.equal(streamed, answer);
});

test("ai: structured output", async () => {
  const schema = z.object({
    kind: z.enum(["plant", "animal", "thing"]),
    colours: z.number().int().min(1).max(9),
    sure: z.boolean(),
  });
  const { object } = await generateObject({ ...options, schema, maxOutputTokens: 60 });
  assert.ok(["plant", "animal", "thing"].includes(object.kind) && object.colours >= 1 && object.colours <= 9);
});
