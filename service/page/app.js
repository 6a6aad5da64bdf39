// The form: choosing photographs, the settings, the key.

import * as api from "./api.js";
import * as choices from "./choices.js";
import * as jobs from "./jobs.js";

const $ = (id) => document.getElementById(id);
let catalogue = null;

const AMOUNTS = {
  scale: { value: 4, min: 1, max: 16, step: "any" },
  width: { value: 2048, min: 1, max: 65535, step: 1 },
  height: { value: 2048, min: 1, max: 65535, step: 1 },
  megapixels: { value: 12, min: 0.001, max: 1000, step: "any" },
};
const LOSSY = ["webp", "jpeg", "avif"];

// What can be sent, after every choice is told what it costs.
function update() {
  const ready = catalogue ? choices.judge(fields(), catalogue) : [];
  $("submit").disabled = !ready.length;
  $("submit").textContent = ready.length > 1 ? `Upscale ${ready.length} photographs` : "Upscale";
  return ready;
}

function choose(files) {
  refuse("");
  choices.choose(files, update);
}

function refuse(sentence) {
  $("refused").textContent = sentence;
  $("refused").hidden = !sentence;
}

function fields() {
  const entries = [...new FormData($("form"))];
  return Object.fromEntries(entries.filter(([, value]) => typeof value === "string" && value));
}

function inWords(error) {
  const more = (error.fields || []).map((fault) => fault.detail || fault.message).filter(Boolean);
  const sentence = error instanceof TypeError ? "The service cannot be reached." : error.message;
  return [sentence, ...more.filter((detail) => !sentence.includes(detail))].join(" ");
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  refuse("");
  const refusals = new Map();
  try {
    for (const choice of update()) {
      $("submit").disabled = true;
      try {
        jobs.add(await api.submit(choice.file, fields()), choice.file);
        choice.remove();
      } catch (error) {
        // What is wrong with this file need not be with the next.
        if (![413, 415, 422].includes(error.status)) throw error;
        refusals.set(choice, inWords(error));
      }
    }
  } catch (error) {
    if (error.status === 401) askForKey();
    refuse(inWords(error));
  }
  update();
  for (const [choice, sentence] of refusals) choice.refuse(sentence);
});
$("form").addEventListener("input", update);

$("unit").addEventListener("change", () => {
  Object.assign($("amount"), { name: $("unit").value, ...AMOUNTS[$("unit").value] });
  update();
});
$("format").addEventListener("change", () => {
  $("quality-field").hidden = $("quality").disabled = !LOSSY.includes($("format").value);
});

$("files").addEventListener("change", (event) => {
  choose(event.target.files);
  // The same file chosen again must count as a choice.
  event.target.value = "";
});
const drop = $("drop");
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  choose(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  const images = event.clipboardData?.files || [];
  if (images.length) choose(images);
});

function sayFidelity() {
  $("fidelity-value").textContent = Number($("fidelity").value).toFixed(2);
}
$("fidelity").addEventListener("input", sayFidelity);

$("preset").addEventListener("change", () => {
  const model = catalogue.models.find((one) => one.name === $("preset").value);
  if (!model) return;
  $("fidelity").value = model.fidelity_weight;
  $("steps").value = "";
  $("steps").placeholder = String(model.steps);
  sayFidelity();
  update();
});

async function greet() {
  catalogue = await api.models();
  const ready = catalogue.models.filter((one) => one.available).map((one) => one.name);
  const reasons = catalogue.models.filter((one) => one.reason).map((one) => `${one.name}: ${one.reason}`);
  const sentences = [];
  if (ready.length) sentences.push(`Ready: ${ready.join(", ")}`);
  if (reasons.length) sentences.push(`Not ready: ${reasons.join("; ")}`);
  $("served").textContent = sentences.join(". ") || "No worker is running: jobs wait until one does.";
  const options = catalogue.models
    .filter((one) => one.available || one.default)
    .map((one) => new Option(one.title, one.name, one.default, one.default));
  $("preset").replaceChildren(...options);
  $("preset").dispatchEvent(new Event("change"));
  const megapixels = (pixels) => Math.round(pixels / 1e6);
  $("limits").textContent =
    `${catalogue.formats.join(", ")}; up to ${Math.floor(catalogue.max_upload_bytes / 1e6)} MB and ` +
    `${megapixels(catalogue.max_input_pixels)} megapixels; results up to ${megapixels(catalogue.max_output_pixels)} megapixels`;
}

function askForKey() {
  $("key").value = api.key();
  $("key-dialog").showModal();
}
$("key-button").addEventListener("click", askForKey);
$("key-dialog").addEventListener("close", async () => {
  if ($("key-dialog").returnValue !== "ok") return;
  api.setKey($("key").value.trim());
  jobs.forget();
  await begin();
});

async function begin() {
  try {
    await greet();
    await jobs.load();
  } catch (error) {
    if (error.status === 401) askForKey();
    else $("served").textContent = error instanceof TypeError ? "The service cannot be reached." : error.message;
  }
}

sayFidelity();
begin();
