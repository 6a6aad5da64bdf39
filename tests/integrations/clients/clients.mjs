// replicate, @fal-ai/client and openai of npm; changed: their addresses, key, and the model's name.
import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";
import Replicate, { validateWebhook } from "replicate";
import { createFalClient } from "@fal-ai/client";

const { URL: BASE, TLS_URL, KEY, HOOK, PNG, BROKEN } = process.env;
const MODEL = "stablesr/tiny";
const photo = () => new Blob([Buffer.from(PNG, "base64")], { type: "image/png" });
const uri = (text = PNG) => `data:image/png;base64,${text}`;

function sides(buffer) {
  const view = new DataView(buffer);
  return `${view.getUint32(16)}x${view.getUint32(20)}`;
}

function same(actual, expected) {
  if (actual !== expected) throw new Error(`${actual} in place of ${expected}`);
}

async function refused(call, word) {
  let text;
  try {
    await call();
  } catch (error) {
    text = `${error} ${JSON.stringify(error.body ?? "")}`;
  }
  if (!text?.includes(word)) throw new Error(`not refused with ${word}: ${text}`);
}

const fetched = async (url) => sides(await (await fetch(url)).arrayBuffer());

const replicate = new Replicate({ auth: KEY, baseUrl: `${TLS_URL}/v1` });
const ofReplicate = {
  single: async () => {
    const output = await replicate.run(MODEL, { input: { image: photo(), scale: 2 } });
    same(sides(await (await output.blob()).arrayBuffer()), "48x32");
  },
  "single, by version": async () => {
    const version = (await replicate.models.get("stablesr", "tiny")).latest_version.id;
    const output = await replicate.run(`${MODEL}:${version}`, { input: { image: uri(), factor: 2 } });
    same(sides(await (await output.blob()).arrayBuffer()), "48x32");
  },
  batch: async () => {
    const input = { image: uri() };
    await Promise.all([1, 2, 3].map((seed) => replicate.run(MODEL, { input: { ...input, seed } })));
    let count = 0;
    for await (const page of replicate.paginate(replicate.predictions.list)) count += page.length;
    if (count < 5) throw new Error(`${count} predictions`);
  },
  wait: async () => {
    const input = { image: uri(), num_inference_steps: 60 };
    const output = await replicate.run(MODEL, { input, wait: { mode: "block", timeout: 1 } });
    same(sides(await (await output.blob()).arrayBuffer()), "96x64");
  },
  poll: async () => {
    const seen = [];
    const options = { input: { image: uri() }, wait: { mode: "poll", interval: 50 } };
    await replicate.run(MODEL, options, (prediction) => seen.push(prediction.status));
    same(seen.at(-1), "succeeded");
  },
  cancel: async () => {
    const input = { image: uri(), num_inference_steps: 1000 };
    const prediction = await replicate.predictions.create({ model: MODEL, input });
    await replicate.predictions.cancel(prediction.id);
    same((await replicate.wait(prediction, {})).status, "canceled");
  },
  failure: () => refused(() => replicate.run(MODEL, { input: { image: uri(BROKEN) } }), "failed"),
  "bad input": async () => {
    const input = { image: uri(), face_enhance: true };
    await refused(() => replicate.run(MODEL, { input }), "face_enhance");
    await refused(() => replicate.run("a/b", { input: { image: uri() } }), MODEL);
  },
  webhook: async () => {
    const events = { webhook: HOOK, webhook_events_filter: ["completed"] };
    const prediction = await replicate.predictions.create({ model: MODEL, input: { image: uri() }, ...events });
    const { key } = await replicate.webhooks.default.secret.get();
    console.log(`hook ${prediction.id}`);
    const delivery = JSON.parse(readFileSync(0, "utf8").split("\n")[0]);
    same(await validateWebhook({ ...delivery, secret: key }), true);
    same(JSON.parse(delivery.body).status, "succeeded");
  },
};

const fal = createFalClient({
  credentials: KEY,
  requestMiddleware: async (request) => ({
    ...request,
    url: request.url
      .replace("https://queue.fal.run", `${BASE}/fal/queue`)
      .replace("https://fal.run", `${BASE}/fal/run`),
  }),
});
const ofFal = {
  single: async () => {
    const { data } = await fal.subscribe(MODEL, { input: { image_url: uri(), scale: 2 }, logs: true });
    same(await fetched(data.image.url), "48x32");
  },
  wait: async () => {
    const { data } = await fal.run(MODEL, { input: { image_url: uri(), scale: 2 } });
    same(await fetched(data.image.url), "48x32");
  },
  poll: async () => {
    const { request_id } = await fal.queue.submit(MODEL, { input: { image_url: uri() } });
    await fal.queue.subscribeToStatus(MODEL, { requestId: request_id, pollInterval: 50 });
    const { requestId } = await fal.queue.result(MODEL, { requestId: request_id });
    same(requestId, request_id);
  },
  cancel: async () => {
    const input = { image_url: uri(), steps: 1000 };
    const { request_id: requestId } = await fal.queue.submit(MODEL, { input });
    await fal.queue.cancel(MODEL, { requestId });
    await fal.queue.subscribeToStatus(MODEL, { requestId, pollInterval: 50 });
    await refused(() => fal.queue.result(MODEL, { requestId }), "canceled");
  },
  failure: () => refused(() => fal.subscribe(MODEL, { input: { image_url: uri(BROKEN) } }), "detail"),
  "bad input": async () => {
    await refused(() => fal.run(MODEL, { input: { image_url: uri(), creativity: 1 } }), "creativity");
    await refused(() => fal.run("fal-ai/esrgan", { input: { image_url: uri() } }), MODEL);
  },
};

const openai = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY });
const image = () => toFile(Buffer.from(PNG, "base64"), "photo.png", { type: "image/png" });
const ofOpenAI = {
  single: async () => {
    const { data } = await openai.images.edit({ model: "tiny", image: await image(), prompt: "" });
    same(sides(Uint8Array.from(Buffer.from(data[0].b64_json, "base64")).buffer), "96x64");
  },
  "bad input": async () => {
    const square = { image: await image(), prompt: "", size: "1024x1024" };
    await refused(() => openai.images.edit(square), "1536 x 1024");
  },
};

const all = { replicate: ofReplicate, "@fal-ai/client": ofFal, openai: ofOpenAI };
const name = process.argv[2];
const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
for (const [label, run] of Object.entries(all[name])) {
  let fault = "";
  try {
    await run();
  } catch (error) {
    fault = error.stack ?? String(error);
  }
  console.log("case " + JSON.stringify({ client: `${name} (npm)`, version, case: label, fault }));
}
