// Questions to the documents: answers with marks that open their passage, and the passages themselves.

import { events_of } from "./stream.js";
import { text } from "./run_texts.js";
import { element, number, ROWS } from "./run_view.js";

const byId = (id) => document.getElementById(id);
const answers = []; // [node, what draws it]: drawn again in another language
let asking = false;

export function start_chat(state) {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = byId("question").value.trim();
    if (!question || asking) return;
    byId("question").value = "";
    ask(question, chosen(), state);
  });
  byId("passage-close").addEventListener("click", () => byId("passage").close());
}

// The ways to answer that there are by now; the best one is chosen until the user chooses.
export function show_modes(state) {
  const there = ROWS.filter((mode) => mode === "quote" || (state.model && state.gate_known && (mode !== "adapted" || state.rows.adapted)));
  const before = chosen();
  const key = JSON.stringify([there, text("mode")]);
  byId("question").placeholder = text("write");
  byId("question").setAttribute("aria-label", text("write"));
  if (byId("modes").dataset.key === key) return;
  byId("modes").dataset.key = key;
  for (const node of [...byId("modes").querySelectorAll("label")]) node.remove();
  const best = byId("modes").dataset.touched && there.includes(before) ? before
    : there.includes(state.verdict.winner) ? state.verdict.winner : there.includes("adapted") ? "adapted" : there.at(-1);
  for (const mode of there) {
    const label = element("label"), radio = element("input");
    radio.type = "radio"; radio.name = "mode"; radio.value = mode; radio.checked = mode === best;
    radio.addEventListener("change", () => { byId("modes").dataset.touched = "yes"; });
    label.append(radio, ` ${text(mode)}`);
    byId("modes").append(label);
  }
}

export function retell() { for (const [node, fill] of answers) fill(node); }

const chosen = () => document.querySelector("#modes input:checked")?.value ?? "quote";

async function ask(question, mode, state) {
  const talk = byId("talk"), node = element("div", "", "answer");
  talk.append(element("p", question, "asked"), node);
  talk.scrollTop = talk.scrollHeight;
  asking = true;
  byId("busy").textContent = text(state.running && mode !== "quote" ? "waiting_paused" : "waiting");
  try {
    const response = await fetch("run/ask", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ question, mode }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events_of(response)) {
      if (event.answer) show(node, (here) => fill_answer(here, event.answer));
    }
  } catch (error) {
    show(node, (here) => here.replaceChildren(element("p", error.message, "bad")));
  }
  asking = false;
  byId("busy").textContent = "";
  talk.scrollTop = talk.scrollHeight;
  byId("question").focus();
}

function show(node, fill) {
  answers.push([node, fill]);
  fill(node);
}

function fill_answer(node, answer) {
  const said = element("p", "", "said");
  const by_number = new Map(answer.citations.map((citation) => [citation.number, citation]));
  if (answer.abstained) said.append(element("span", text("not_there"), "none"));
  else {
    for (const part of answer.text.split(/(\[\d+\])/)) {
      const citation = by_number.get(+(/^\[(\d+)\]$/.exec(part)?.[1] ?? NaN));
      said.append(citation ? cite(citation, part) : part);
    }
  }
  const how = element("p", `${text(answer.mode)} · ${number(answer.seconds, 2)} s`, "how");
  node.replaceChildren(said, ...(answer.abstained ? nearest(answer) : answer.citations.map(source)), how);
}

function cite(citation, mark) {
  const button = element("button", mark, "cite");
  button.type = "button";
  button.title = `${citation.source} · ${citation.heading}`;
  button.addEventListener("click", () => open_passage(citation.passage_id, citation.quote));
  return button;
}

function source(citation) {
  const button = element("button", "", "source");
  button.type = "button";
  button.append(element("b", `[${citation.number}] `),
    `${citation.source} · ${citation.heading} · ${text("lines")(citation.first_line, citation.last_line)}`);
  button.addEventListener("click", () => open_passage(citation.passage_id, citation.quote));
  return button;
}

function nearest(answer) {
  const buttons = answer.nearest.map((hit) => {
    const button = element("button", `${hit.source} · ${hit.heading}`, "source");
    button.type = "button";
    button.addEventListener("click", () => open_passage(hit.passage_id, ""));
    return button;
  });
  return [element("p", text("nearest"), "how"), ...buttons];
}

async function open_passage(number, quote) {
  const answer = await fetch(`run/passages/${number}`);
  const found = await answer.json();
  const box = byId("passage-text");
  byId("passage-where").textContent = answer.ok
    ? `${found.source} · ${found.heading} · ${text("lines")(found.first_line, found.last_line)}` : found.error.message;
  box.replaceChildren(...(answer.ok ? with_quote(found.text, quote) : []));
  byId("passage").showModal();
  box.querySelector("mark")?.scrollIntoView({ block: "center" });
}

// The text with the quote marked, whatever the white space between its words.
function with_quote(whole, quote) {
  const words = quote.trim().split(/\s+/).filter(Boolean).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const at = words.length ? new RegExp(words.join("\\s+"), "u").exec(whole) : null;
  if (!at) return [whole];
  return [whole.slice(0, at.index), element("mark", at[0]), whole.slice(at.index + at[0].length)];
}
