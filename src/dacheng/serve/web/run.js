// The page of a run: follows its journal, and draws what it says.

import { retell, show_modes, start_chat } from "./run_chat.js";
import { language_now, other_language, text } from "./run_texts.js";
import { draw } from "./run_view.js";

const byId = (id) => document.getElementById(id);
const state = {
  last: 0, stage: "reading", source: "", model: "", minutes: 0, reading: {}, plan: {}, rows: {}, losses: {}, training: {},
  probes: {}, paused: null, plugs: [], verdict: {}, notes: [], url: null, failed: null, running: false, gate_known: false,
};

const heard = {
  started: (e) => {
    Object.assign(state, { source: e.source, model: e.model ?? "", minutes: e.minutes, failed: null, paused: null, url: null,
      stage: "reading", running: false, notes: [] });
  },
  reading: (e) => { state.reading = e; state.stage = "reading"; },
  note: (e) => { if (!state.notes.includes(e.text)) state.notes.push(e.text); },
  questions: () => { state.stage = "before"; },
  plan: (e) => { state.plan = e; },
  gate: (e) => { state.stage = "training"; state.gate_known = true; },
  probe: (e) => {
    const answers = state.probes[e.question] ??= [];
    const at = answers.findIndex((one) => one.step === e.step && one.mode === e.mode);
    answers.splice(at < 0 ? answers.length : at, 1, e);
  },
  train_step: (e) => {
    Object.assign(state, { stage: "training", paused: null, running: true, training: e });
    state.losses[e.step] = e.loss;
  },
  paused: (e) => { state.paused = e.reason; },
  resumed: () => { state.paused = null; },
  plug_pulled: (e) => { state.plugs.push({ step: e.step, pulled: true, from_step: null, identical: null, compared: 0 }); },
  restarted: (e) => {
    let plug = state.plugs.at(-1);
    if (!plug || plug.identical !== null) {
      plug = { step: Math.max(0, ...Object.keys(state.losses).map(Number)) };
      state.plugs.push(plug);
    }
    Object.assign(plug, { from_step: e.from_step, identical: e.bit_identical, compared: e.compared_steps });
  },
  exam_progress: (e) => {
    Object.assign(state.rows[e.row] ??= {}, { done: e.done, total: e.total });
    Object.assign(state, { stage: "after", running: false });
  },
  exam_row: (e) => {
    Object.assign(state.rows[e.row] ??= {}, { scores: e.scores, seconds: e.seconds });
    Object.assign(state, { stage: "after", running: false });
  },
  verdict: (e) => { state.verdict = e; state.stage = "ready"; state.running = false; },
  ready: (e) => { state.stage = "ready"; state.url = e.url; },
  failed: (e) => { state.failed = e; state.running = false; },
};

let drawing = false;
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw(state);
    show_modes(state);
  });
}

function show_language() {
  document.documentElement.lang = language_now();
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  byId("language").textContent = text("other");
  byId("language").lang = language_now() === "en" ? "zh" : "en";
  retell();
  redraw();
}

const events = new EventSource("run/events");
events.addEventListener("message", (message) => {
  const event = JSON.parse(message.data);
  if (event.n <= state.last) return; // a connection that came back
  state.last = event.n;
  if (Object.hasOwn(heard, event.kind)) heard[event.kind](event);
  redraw();
});
events.addEventListener("error", () => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = text("lost");
});
events.addEventListener("open", redraw);

byId("plug").addEventListener("click", async () => {
  byId("plug").disabled = true;
  await fetch("run/plug", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" }).catch(() => {});
  setTimeout(() => { byId("plug").disabled = false; }, 1500);
});
byId("language").addEventListener("click", () => { other_language(); show_language(); });
start_chat(state);
show_language();
