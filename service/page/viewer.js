// The before/after slider. The handle is a range input over the pictures, so that a mouse, a
// finger and the arrow keys move it alike.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
let calls = 0;

export async function show(job, file) {
  const call = ++calls;
  const blob = await api.result(job.result.url);
  if (call !== calls) return;
  for (const image of [$("after"), $("before")]) URL.revokeObjectURL(image.src);
  const name = (job.input.filename || "photograph").replace(/\.[^.]*$/, "");
  const end = { "image/jpeg": "jpg", "image/tiff": "tiff" }[blob.type] || blob.type.split("/")[1];
  $("after").src = $("download").href = URL.createObjectURL(blob);
  $("download").download = `${name}-${job.result.width}x${job.result.height}.${end}`;
  $("frame").classList.toggle("alone", !file);
  if (file) {
    $("before").src = URL.createObjectURL(file);
    // A browser that cannot show the photograph (TIFF) shows the result alone.
    $("before").onerror = () => $("frame").classList.add("alone");
  } else {
    $("before").removeAttribute("src");
  }
  const { width, height } = job.input;
  const seconds = job.timings ? `, ${job.timings.total.toFixed(1)} s` : "";
  $("caption").textContent =
    `${width} × ${height} → ${job.result.width} × ${job.result.height}, seed ${job.seed}${seconds}`;
  $("viewer").hidden = false;
  cutAt(50);
  $("cut").value = 50;
  await $("after").decode().catch(() => {});
  $("viewer").scrollIntoView({ block: "nearest" });
  $(file ? "cut" : "close").focus({ preventScroll: true });
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
