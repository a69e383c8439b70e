// What a run's journal says, drawn. Everything from outside is put into the page as text, never as markup.

import { text } from "./run_texts.js";

export const ROWS = ["bare", "sources", "adapted", "quote"];
const STAGES = ["reading", "before", "training", "after", "ready"];
const MEASURES = ["all_right", "right", "cited_right", "abstained_right", "invented"];
const byId = (id) => document.getElementById(id);

export function element(name, said = "", kind = "") {
  const node = document.createElement(name);
  node.textContent = said;
  if (kind) node.className = kind;
  return node;
}

export const number = (value, digits = 3) => (Number.isFinite(+value) ? String(+(+value).toPrecision(digits)) : "–");

const short = (said) => (said.length > 220 ? `${said.slice(0, 220)}…` : said);

function size(bytes) {
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) if (bytes >= unit) return `${number(bytes / unit)} ${name}`;
  return `${bytes ?? 0} B`;
}

export function draw(state) {
  byId("job").textContent = [state.source, state.model && `→ ${state.model}`, state.minutes && text("minutes")(state.minutes)]
    .filter(Boolean).join(" ");
  stages(state);
  byId("trouble").hidden = !state.failed;
  if (state.failed) byId("trouble").textContent = text("failed")({ problem: state.failed.problem, remedy: state.failed.remedy ?? "" }).trim();
  reading(state);
  probes(state);
  training(state);
  exam(state);
  byId("chat").hidden = !state.reading.done;
  reach(state);
}

function stages(state) {
  const now = STAGES.indexOf({ questions: "before", gate: "training" }[state.stage] ?? state.stage);
  byId("stages").replaceChildren(...STAGES.map((name, at) => {
    const node = element("li", text(name), at < now || (name === "ready" && state.stage === "ready") ? "done" : "");
    if (at === now) node.setAttribute("aria-current", "step");
    return node;
  }));
}

function reading(state) {
  const r = state.reading;
  byId("reading").hidden = r.files === undefined;
  if (r.files === undefined) return;
  byId("read").textContent = text("read")({ ...r, bytes: size(r.bytes), seconds: number(r.seconds) });
  byId("notes").replaceChildren(...state.notes.map((note) => element("li", note)));
  const counts = Object.entries(r.drops?.dropped ?? r.drops ?? {}).filter(([, n]) => typeof n === "number");
  byId("drops-box").hidden = !counts.length;
  byId("drops").replaceChildren(...counts.map(([why, n]) => {
    const example = r.drops?.examples?.[why];
    return element("li", `${why.replaceAll("_", " ")}: ${n}${example ? ` (${example})` : ""}`);
  }));
}

function probes(state) {
  const asked = Object.entries(state.probes);
  byId("probes").hidden = !asked.length;
  const columns = []; // [mode, step], in the order in which they came
  for (const [, answers] of asked) {
    for (const { mode, step } of answers) if (!columns.some(([m, s]) => m === mode && s === step)) columns.push([mode, step]);
  }
  columns.sort((a, b) => a[1] - b[1]);
  const shown = [...columns.filter(([, step]) => !step), ...columns.filter(([, step]) => step).slice(-2)];
  const head = document.createElement("tr");
  head.append(element("th", text("question")),
    ...shown.map(([mode, step]) => element("th", step ? `${text(mode)}, ${text("step")(step)}` : text(mode))));
  byId("probe-head").replaceChildren(head);
  byId("probe-body").replaceChildren(...asked.map(([question, answers]) => {
    const row = document.createElement("tr");
    row.append(element("td", question));
    for (const [mode, step] of shown) {
      const given = answers.find((one) => one.mode === mode && one.step === step);
      row.append(element("td", given ? (given.abstained ? text("not_there") : short(given.answer)) : ""));
    }
    return row;
  }));
}

const money = (t) => `${number(t.money, 2)} ${t.currency ?? ""}`;

function training(state) {
  const t = state.training, steps = Object.keys(state.losses).map(Number);
  byId("training").hidden = !steps.length && state.stage !== "training";
  const at_work = state.stage === "training" && !state.failed && steps.length > 0 && state.running;
  byId("plug").hidden = !at_work;
  byId("plug-why").textContent = at_work ? text("plug_why") : "";
  const figures = { ...t, loss: number(state.losses[t.step], 4), speed: number(t.tokens_per_s), joules: number(t.joules),
    kind: text("kinds")[t.joules_kind] ?? t.joules_kind, money: money(t) };
  const said = steps.length ? text("trained")(figures) : "…";
  byId("trained").textContent = state.paused ? `${said} · ${text("paused")[state.paused] ?? state.paused}` : said;
  if (steps.length) byId("cost").textContent = `${number(t.joules)} J · ${money(t)}`;
  if (steps.length > 1) byId("curve").replaceChildren(curve(state));
  byId("plugs").replaceChildren(...state.plugs.map((p) => {
    const known = { step: p.step, from: p.from_step, compared: p.compared };
    const rest = p.from_step === null ? "" : p.identical === null ? text("going")(known)
      : text(p.identical ? "same" : "differs")(known);
    return element("li", text(p.pulled ? "pulled" : "ended")(known) + rest, p.identical === null ? "" : p.identical ? "good" : "bad");
  }));
}

function curve(state) {
  const [width, height, left, bottom] = [800, 176, 44, 20];
  const svg = svg_node("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", text("loss"));
  const points = Object.entries(state.losses).map(([step, loss]) => [+step, +loss]).filter(([, loss]) => Number.isFinite(loss));
  points.sort((a, b) => a[0] - b[0]);
  const most = Math.max(state.training.steps ?? 1, 2), top = Math.max(...points.map(([, loss]) => loss)) || 1;
  const x = (step) => left + (step - 1) / (most - 1) * (width - left - 6);
  const y = (loss) => 8 + (1 - loss / top) * (height - bottom - 8);
  svg.append(svg_node("line", { class: "axis", x1: left, x2: width, y1: y(0), y2: y(0) }));
  for (const plug of state.plugs) {
    svg.append(svg_node("line", { class: "plug", x1: x(plug.step), x2: x(plug.step), y1: 8, y2: y(0) }));
  }
  svg.append(svg_node("polyline", { class: "loss", points: points.map(([s, l]) => `${x(s).toFixed(1)},${y(l).toFixed(1)}`).join(" ") }));
  const label = (said, at) => { const node = svg_node("text", at); node.textContent = said; svg.append(node); };
  label(number(top), { x: 2, y: 16 });
  label("0", { x: 2, y: y(0) });
  label(text("step")(most), { x: width - 70, y: height - 4 });
  return svg;
}

function svg_node(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function exam(state) {
  const rows = ROWS.filter((row) => state.rows[row]);
  byId("after").hidden = !rows.length;
  const head = document.createElement("tr");
  head.append(...["row", ...MEASURES, "seconds"].map((name) => element("th", text(name))));
  byId("exam-head").replaceChildren(head);
  byId("exam-body").replaceChildren(...rows.map((name) => {
    const row = document.createElement("tr"), known = state.rows[name];
    if (state.verdict.winner === name) row.className = "win";
    row.append(element("td", text(name)));
    for (const measure of MEASURES) row.append(share(known.scores?.[measure], known));
    row.append(element("td", known.scores && known.done ? number((known.seconds ?? 0) / known.done, 2) : ""));
    return row;
  }));
  const said = state.verdict[text("sentences")] ?? [];
  const [plain, apart] = [said.filter((line) => !/\[[+-]/.test(line)), said.filter((line) => /\[[+-]/.test(line))];
  byId("verdict").replaceChildren(...plain.map((line) => element("p", line)));
  byId("differences-box").hidden = !apart.length;
  byId("differences").replaceChildren(...apart.map((line) => element("li", line)));
}

function share(score, row) {
  if (!row.scores) return element("td", row.total ? text("exam_done")(row) : "…");
  if (!score) return element("td", "–");
  const [mean, low, high] = score.map((value) => Math.round(100 * value));
  const node = element("td", `${mean}%`);
  node.append(element("span", `${low}–${high}`, "span"));
  return node;
}

function reach(state) {
  byId("reach").hidden = !(state.stage === "ready" && state.url && state.model);
  if (byId("reach").hidden) return;
  const base = state.url.replace(/\/run$/, ""), question = Object.keys(state.probes)[0] ?? text("write");
  const messages = [{ role: "user", content: question }];
  const body = JSON.stringify({ model: "documents", messages }).replaceAll("'", "'\\''");
  byId("curl").textContent = `curl ${base}/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d '${body}'`;
  byId("python").textContent = `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}/v1", api_key="none")\n`
    + `answer = client.chat.completions.create(model="documents", messages=${JSON.stringify(messages)})\n`
    + "print(answer.choices[0].message.content)";
}
