// The before/after slider. The handle is a range input over the pictures, so that a mouse, a
// finger and the arrow keys move it alike.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
let calls = 0;

export async function show(job, file) {
  const call = ++calls;
  const blob = await api.result(job.result.url);
  if (call !== calls) return;
  const name = (job.input.filename || "photograph").replace(/\.[^.]*$/, "");
  const end = { "image/jpeg": "jpg", "image/tiff": "tiff" }[blob.type] || blob.type.split("/")[1];
  const [after, before] = await Promise.all([load($("after"), blob), load($("before"), file)]);
  if (call !== calls) return;
  $("download").href = $("after").src;
  $("download").download = `${name}-${job.result.width}x${job.result.height}.${end}`;
  $("pictures").hidden = !after;
  $("frame").classList.toggle("alone", !before);
  const { width, height, format } = job.input;
  const seconds = job.timings ? `, ${job.timings.total.toFixed(1)} s` : "";
  const sentences = [
    `${width} × ${height} → ${job.result.width} × ${job.result.height}, seed ${job.seed}${seconds}`,
  ];
  if (!after) sentences.push(`This browser cannot show ${end.toUpperCase()}; download it`);
  else if (file && !before) sentences.push(`This browser cannot show ${format}, so the result is alone`);
  $("caption").textContent = sentences.join(". ");
  $("viewer").hidden = false;
  cutAt(50);
  $("cut").value = 50;
  $("viewer").scrollIntoView({ block: "nearest" });
  $(after && before ? "cut" : "close").focus({ preventScroll: true });
}

// Whether the browser can show it.
async function load(image, blob) {
  URL.revokeObjectURL(image.src);
  image.removeAttribute("src");
  if (!blob) return false;
  image.src = URL.createObjectURL(blob);
  await image.decode().catch(() => {});
  return image.naturalWidth > 0;
}

function cutAt(percent) {
  $("pictures").style.setProperty("--cut", `${percent}%`);
}

$("cut").addEventListener("input", (event) => cutAt(event.target.value));
$("zoom").addEventListener("click", () => {
  const on = $("frame").classList.toggle("one-to-one");
  $("zoom").setAttribute("aria-pressed", String(on));
});
$("close").addEventListener("click", () => {
  calls++;
  $("viewer").hidden = true;
  $("files").focus();
});
