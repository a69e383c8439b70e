// The chat page: what is around the columns. Talks to this server only.

import { Column } from "./column.js";
import { language_now, other_language, text } from "./texts.js";

const byId = (id) => document.getElementById(id);
const columns = ["", "2"].map((n) => new Column(byId(`model${n}`), byId(`chat${n}`), byId(`state${n}`)));
const second = byId("columns").children[1];
let running = null; // the AbortController of the answers that are being written

function show_language() {
  document.documentElement.lang = language_now();
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  byId("language").textContent = text("other");
  byId("language").lang = language_now() === "en" ? "zh" : "en";
  byId("text").placeholder = text("write");
  byId("text").setAttribute("aria-label", text("write"));
  for (const column of columns) column.retell();
}

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function load_models() {
  try {
    const answer = await fetch("v1/models", { headers: headers() });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error.message);
    columns.forEach((column, at) => column.offer(found.data.map((model) => model.id), at));
    columns[0].state(() => "");
  } catch (error) {
    columns[0].state(() => error.message);
    if (!byId("key").value) document.querySelector("details").open = true; // where the key goes
  }
}

function busy(is_busy) {
  byId("send").hidden = is_busy;
  byId("stop").hidden = !is_busy;
}

async function ask(prompt) {
  const with_probabilities = byId("probabilities").checked;
  const settings = {
    temperature: byId("temperature").valueAsNumber, max_tokens: byId("tokens").valueAsNumber,
    ...(with_probabilities ? { logprobs: true, top_logprobs: 5 } : {}),
  };
  const asked = second.hidden ? columns.slice(0, 1) : columns;
  const mine = running = new AbortController();
  busy(true);
  await Promise.all(
    asked.map((column) => column.ask(prompt, byId("system").value.trim(), settings, headers(), mine.signal)));
  running = null;
  busy(false);
  if (document.activeElement === document.body || document.activeElement === byId("stop")) byId("text").focus();
}

function stop() { if (running) running.abort(); }

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = byId("text").value;
  if (running || !prompt.trim()) return;
  byId("text").value = "";
  ask(prompt);
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
byId("stop").addEventListener("click", stop);
byId("reset").addEventListener("click", () => {
  stop();
  for (const column of columns) column.clear();
  byId("text").focus();
});
byId("compare").addEventListener("click", () => {
  if (running) return;
  second.hidden = !second.hidden;
  byId("compare").setAttribute("aria-pressed", String(!second.hidden));
  document.body.classList.toggle("two", !second.hidden);
  if (!second.hidden) {
    columns[1].follow(columns[0]);
    load_models(); // adapters may have come since
  }
  byId("text").focus();
});
byId("key").addEventListener("change", load_models);
byId("language").addEventListener("click", () => { other_language(); show_language(); });
show_language();
load_models();
