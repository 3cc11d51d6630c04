// The page's requests to the server. URLs are relative, because a proxy may serve the page under another path.

let key = "";

export const setKey = (value) => (key = value);

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Refusal(0, "The server does not answer: check whether it runs.");
  }
  if (!answer.ok) throw new Refusal(answer.status, await sentence(answer));
  return answer;
}

async function sentence(answer) {
  if (answer.status === 401) return "This server requires an API key: enter a valid one.";
  try {
    const { error } = await answer.json();
    return error.message ?? error;
  } catch {
    return `The server refused the request with status ${answer.status}.`;
  }
}

export const get = async (path) => (await ask(path)).json();

export const picture = async (path) => (await ask(path)).blob();

// Sends a request, passes each piece of the answer to `onText`, and returns the routing.
export async function inspect(body, onText) {
  const answer = await ask("v1/routing/inspect", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
  });
  for await (const { name, data } of events(answer.body)) {
    if (name === "routing") return JSON.parse(data);
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(500, chunk.error.message);
    for (const choice of chunk.choices) if (choice.delta?.content) onText(choice.delta.content);
  }
  throw new Refusal(500, "The answer ended without its routing: ask again.");
}

// Yields the server-sent events of a body.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) yield event(part);
  }
}

function event(part) {
  const field = (name) =>
    part
      .split("\n")
      .find((line) => line.startsWith(`${name}: `))
      ?.slice(name.length + 2);
  return { name: field("event"), data: field("data") ?? "{}" };
}
