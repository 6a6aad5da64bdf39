#!/usr/bin/env bash
# Guess: run() of replicate (npm) gives an output file that is fetched when it is read, by the client's
# token, as every other request and as the Python client does.
# What happens: it is fetched at once, read or not, and without the token: an output that needs the
# token cannot be had, and one that nothing reads has been downloaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-fund --no-audit replicate@1.4.0
cat > run.mjs <<'JS'
import { readFileSync } from "node:fs";
import Replicate from "replicate";

const { version } = JSON.parse(readFileSync("node_modules/replicate/package.json", "utf8"));
const asked = [];
const fetch = async (url, init = {}) => {
  asked.push([String(url), init.headers?.Authorization]);
  if (String(url).endsWith("/predictions")) {
    const output = "https://files.example.org/output.png";
    return Response.json({ id: "p", status: "succeeded", output }, { status: 201 });
  }
  return new Response("pixels");
};
const client = new Replicate({ auth: "token", fetch });
const output = await client.run("ada/up", { input: {} });
await new Promise((resolve) => setTimeout(resolve, 100));
console.log("replicate", version, "- the output was not read:", `${output.url()}`);
for (const [url, authorization] of asked) console.log(url, "-", authorization ?? "no token");
const [first, second] = asked;
if (first[1] !== "Bearer token" || asked.length !== 2 || second[1] !== undefined) process.exit(1);
JS
node run.mjs
