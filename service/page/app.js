// The form: choosing photographs, the settings, the key.

import * as api from "./api.js";
import * as jobs from "./jobs.js";

const $ = (id) => document.getElementById(id);
let files = [];
let catalogue = null;

function choose(more) {
  files = [...files, ...more];
  refuse("");
  $("chosen").replaceChildren(...files.map(entry));
  $("submit").disabled = files.length === 0;
  $("submit").textContent = files.length > 1 ? `Upscale ${files.length} photographs` : "Upscale";
}

function entry(file) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = `${file.name || "pasted picture"} (${jobs.size(file.size)})`;
  const away = document.createElement("button");
  away.type = "button";
  away.className = "plain";
  away.textContent = "✕";
  away.setAttribute("aria-label", `Remove ${file.name || "the pasted picture"}`);
  away.addEventListener("click", () => {
    files = files.filter((other) => other !== file);
    choose([]);
    $("files").focus();
  });
  item.append(name, away);
  return item;
}

function refuse(sentence) {
  $("refused").textContent = sentence;
  $("refused").hidden = !sentence;
}

function fields() {
  const entries = [...new FormData($("form"))];
  return Object.fromEntries(entries.filter(([, value]) => typeof value === "string" && value));
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("submit").disabled = true;
  refuse("");
  try {
    while (files.length) {
      const file = files[0];
      const job = await api.submit(file, fields());
      jobs.add(job, file);
      files = files.slice(1);
      choose([]);
    }
  } catch (error) {
    if (error.status === 401) askForKey();
    const more = (error.fields || []).map((fault) => fault.detail || fault.message).filter(Boolean);
    const who = files[0]?.name ? `${files[0].name}: ` : "";
    const network = error instanceof TypeError ? "The service cannot be reached." : error.message;
    refuse(who + [network, ...more].join(" "));
  } finally {
    $("submit").disabled = files.length === 0;
  }
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
  const megabytes = Math.floor(catalogue.max_upload_bytes / 1e6);
  const megapixels = Math.round(catalogue.max_output_pixels / 1e6);
  $("limits").textContent =
    `${catalogue.formats.join(", ")}; up to ${megabytes} MB, results up to ${megapixels} megapixels`;
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
