// The list of jobs: one line each, followed live while it waits or runs.

import * as api from "./api.js";
import { size } from "./choices.js";
import { show } from "./viewer.js";

const ENDED = ["succeeded", "failed", "canceled", "expired"];
// Browsers open six connections to a server at most: the rest is for uploads and results.
const STREAMS = 3;
const POLL_MS = 3000;

const list = document.getElementById("jobs");
const template = document.getElementById("job-template");
const lines = new Map();
let streams = 0;
let next = null;

class Line {
  constructor(job, file) {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.part = (name) => this.element.querySelector(name);
    this.file = file;
    this.job = job;
    this.part(".view").addEventListener("click", () => this.view());
    this.part(".cancel").addEventListener("click", () => this.cancel());
    this.part(".name").textContent = job.input.filename || "photograph";
    if (file) this.thumbnail();
    else this.part(".thumb").textContent = job.input.format;
    this.update(job);
  }

  thumbnail() {
    const image = new Image();
    image.alt = "";
    image.src = URL.createObjectURL(this.file);
    image.onload = () => URL.revokeObjectURL(image.src);
    // TIFF, in most browsers.
    image.onerror = () => image.replaceWith(this.job.input.format);
    this.part(".thumb").append(image);
  }

  get ended() {
    return ENDED.includes(this.job.state);
  }

  update(news) {
    this.job = { ...this.job, ...news };
    this.element.className = `job row ${this.job.state}`;
    this.part(".state").textContent = describe(this.job);
    const bar = this.part("progress");
    bar.hidden = this.ended;
    bar.setAttribute("aria-label", `Progress of ${this.part(".name").textContent}`);
    bar.value = this.job.progress?.fraction || 0;
    this.part(".view").hidden = this.job.state !== "succeeded";
    this.part(".cancel").hidden = this.ended || this.job.cancel_requested;
  }

  fail(error) {
    this.part(".state").textContent = error.message;
    this.element.classList.add("failed");
  }

  async view() {
    try {
      await show(this.job, this.file);
    } catch (error) {
      // The result is still there when the service has only had enough for now.
      if ([429, 503].includes(error.status)) this.part(".state").textContent = error.message;
      else this.fail(error);
    }
  }

  async cancel() {
    try {
      this.update(await api.cancel(this.job.id));
    } catch (error) {
      // What it is now says more than the refusal.
      this.update(await api.job(this.job.id));
    }
  }

  async follow() {
    if (this.followed || this.ended || streams >= STREAMS) return;
    this.followed = true;
    streams++;
    try {
      await api.follow(this.job.id, (news) => this.update(news), new AbortController().signal);
      if (this.job.state === "succeeded" && this.file) finished(this);
    } catch (error) {
      this.fail(error);
    } finally {
      streams--;
      for (const line of lines.values()) line.follow();
    }
  }
}

function describe(job) {
  const at = job.progress;
  switch (job.state) {
    case "queued":
      return job.queue_position > 1 ? `waits, ${job.queue_position - 1} before it` : "waits";
    case "processing": {
      if (job.cancel_requested) return "stops at its next step";
      if (!at) return "begins";
      const step = at.stage === "denoise" ? ` ${at.step} of ${at.steps}` : "";
      const left = at.eta_seconds ? `, about ${Math.ceil(at.eta_seconds)} s left` : "";
      return `${at.stage}${step}${left}`;
    }
    case "succeeded":
      return `${job.result.width} × ${job.result.height}, ${size(job.result.bytes)}`;
    case "failed":
      return job.error.detail || job.error.title;
    case "expired":
      return "its result is gone";
    default:
      return job.state;
  }
}

// The first picture that comes while nothing is looked at is shown at once.
function finished(line) {
  if (document.getElementById("viewer").hidden) line.view();
}

export function add(job, file, { last = false } = {}) {
  document.getElementById("none").hidden = true;
  let line = lines.get(job.id);
  if (line) {
    line.update(job);
    return;
  }
  line = new Line(job, file);
  lines.set(job.id, line);
  if (last) list.append(line.element);
  else list.prepend(line.element);
  line.follow();
}

export async function load(path) {
  const page = await api.list(path);
  next = page.next;
  for (const job of page.jobs) add(job, null, { last: true });
  document.getElementById("older").hidden = !next;
}

export function forget() {
  for (const line of lines.values()) line.element.remove();
  lines.clear();
  document.getElementById("none").hidden = false;
}

document.getElementById("older").addEventListener("click", () => load(next));

// What is not followed live is asked for now and then: all of it with one request, and what is
// older than the newest hundred jobs one by one, one a round. A service that refuses is left alone
// as long as it says; a round that takes long is not overtaken by the next.
let rounds = 0;

async function round() {
  const waiting = [...lines.values()].filter(
    (line) => !line.ended && !line.followed && !line.gone,
  );
  if (!waiting.length || document.hidden) return;
  const { jobs } = await api.list("jobs?limit=100");
  const newest = new Map(jobs.map((job) => [job.id, job]));
  const older = waiting.filter((line) => !newest.has(line.job.id));
  for (const line of waiting) {
    if (newest.has(line.job.id)) learn(line, newest.get(line.job.id));
  }
  if (!older.length) return;
  const line = older[rounds++ % older.length];
  try {
    learn(line, await api.job(line.job.id));
  } catch (error) {
    if (error.status !== 404) throw error;
    line.gone = true;
    line.fail(error);
  }
}

function learn(line, job) {
  // It may have been taken up live in between, and then knows better.
  if (line.followed || line.ended) return;
  line.update(job);
  if (job.state === "succeeded" && line.file) finished(line);
}

async function poll() {
  let pause = POLL_MS;
  try {
    await round();
  } catch (error) {
    pause = Math.max(POLL_MS, (error.retryAfter || 0) * 1000);
  }
  setTimeout(poll, pause);
}

setTimeout(poll, POLL_MS);
