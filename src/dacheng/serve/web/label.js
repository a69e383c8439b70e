// The labelling page: shows a pair, says which reply is better, takes back. All of the data goes in as text, never as
// markup.

import { language_now, other_language, text } from "./label_texts.js";

const byId = (id) => document.getElementById(id);
const CHOICES = ["first2", "first1", "tie", "second1", "second2", "skip"];
const KEYS = { 1: "first2", 2: "first1", 3: "tie", 4: "second1", 5: "second2", s: "skip" };
const state = { annotator: "", pair: null, done: 0, total: 0, shown: 0, busy: false, trouble: "", report: null };

async function ask(path, values) {
  if (state.busy) return null;
  state.busy = true;
  buttons();
  try {
    const answer = await fetch(`label/${path}`, values === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
    });
    const found = await answer.json();
    state.trouble = answer.ok ? "" : found.error.message;
    return answer.ok ? found : null;
  } catch {
    state.trouble = text("lost");
    return null;
  } finally {
    state.busy = false;
    draw_trouble();
    buttons();
  }
}

function take(found) {
  if (!found) return;
  Object.assign(state, { pair: found.pair, done: found.done, total: found.total, shown: performance.now() });
  byId("note").value = "";
  draw();
  for (const id of ["prompt", "first", "second"]) byId(id).scrollTop = 0;
}

async function say(said) {
  if (!state.pair) return;
  const seconds = (performance.now() - state.shown) / 1000;
  take(await ask("say", { annotator: state.annotator, pair: state.pair.id, said, seconds, note: byId("note").value.trim() }));
  if (state.report) agree();
}

async function undo() {
  take(await ask("undo", { annotator: state.annotator }));
  if (state.report) agree();
}

async function agree() {
  const found = await ask("agreement");
  if (found) state.report = found;
  draw_report();
}

function element(name, said = "", kind = "") {
  const node = document.createElement(name);
  node.textContent = said;
  if (kind) node.className = kind;
  return node;
}

function draw() {
  const begun = state.annotator !== "";
  byId("who").hidden = begun;
  byId("work").hidden = !state.pair;
  for (const id of ["after", "keys"]) byId(id).hidden = !begun;
  byId("how-far").textContent = begun ? `${state.annotator} · ${text("far")(state.done, state.total)}` : "";
  byId("bar").max = Math.max(1, state.total);
  byId("bar").value = state.done;
  byId("done").hidden = !begun || state.pair !== null;
  byId("done").textContent = text("all");
  if (state.pair) {
    byId("prompt").replaceChildren(...state.pair.prompt.map((message) => {
      const node = element("div", "", "turn");
      node.append(element("b", `${text("roles")[message.role] ?? message.role}: `), message.text);
      return node;
    }));
    byId("first").textContent = state.pair.first;
    byId("second").textContent = state.pair.second;
  }
  byId("choices").replaceChildren(...CHOICES.map((said) => {
    const button = element("button"), key = Object.keys(KEYS).find((one) => KEYS[one] === said);
    button.type = "button";
    button.append(element("kbd", key.toUpperCase()), ` ${text("choices")[said]}`);
    button.addEventListener("click", () => say(said));
    return button;
  }));
  byId("undo").replaceChildren(element("kbd", "U"), ` ${text("undo")}`);
  draw_report();
  buttons();
}

function draw_trouble() {
  byId("trouble").hidden = !state.trouble;
  byId("trouble").textContent = state.trouble;
}

function draw_report() {
  byId("agreement").hidden = !state.report;
  if (!state.report) return;
  const r = state.report;
  byId("figures").replaceChildren(...[
    text("pairs")(r.pairs), text("alpha")(r.alpha.nominal), ...r.kappa.map(text("kappa")),
    ...Object.entries(r.annotators).map(([name, one]) => text("one")(name, one)),
  ].map((line) => element("li", line)));
}

function buttons() {
  for (const node of byId("choices").querySelectorAll("button")) node.disabled = state.busy;
  byId("undo").disabled = byId("agree").disabled = state.busy;
}

function show_language() {
  document.documentElement.lang = language_now();
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  byId("language").textContent = text("other");
  byId("language").lang = language_now() === "en" ? "zh" : "en";
  draw();
}

byId("who").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = byId("name").value.trim();
  const found = name ? await ask("next", { annotator: name }) : null;
  if (!found) return;
  state.annotator = name;
  take(found);
  byId("first").focus();
});
byId("undo").addEventListener("click", undo);
byId("agree").addEventListener("click", agree);
byId("language").addEventListener("click", () => { other_language(); show_language(); });
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || !state.annotator) return;
  const key = event.key.toLowerCase();
  if (Object.hasOwn(KEYS, key)) say(KEYS[key]);
  else if (key === "u") undo();
  else return;
  event.preventDefault();
});
show_language();
