// The chat page. What a model says is only ever put into the page as text (textContent), never as markup.
"use strict";

const TEXTS = {
  en: { model: "Model", key: "Key", reset: "New chat", settings: "Settings", system: "System", temperature: "Temperature",
        tokens: "Most tokens", send: "Send", stop: "Stop", write: "Write a message. Enter sends, Shift+Enter breaks the line.",
        stopped: "stopped", length: "cut off: no tokens left", speed: "tokens/s", other: "中文" },
  zh: { model: "模型", key: "密钥", reset: "新对话", settings: "设置", system: "系统提示", temperature: "温度",
        tokens: "最多词元", send: "发送", stop: "停止", write: "输入消息。回车发送，Shift+回车换行。",
        stopped: "已停止", length: "已截断：词元用完", speed: "词元/秒", other: "English" },
};
const byId = (id) => document.getElementById(id);
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let messages = [];
let running = null; // the AbortController of the answer that is being written

function show_language() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = TEXTS[language][node.dataset.text];
  byId("language").textContent = TEXTS[language].other;
  byId("text").placeholder = TEXTS[language].write;
  byId("text").setAttribute("aria-label", TEXTS[language].write);
}

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function state(text) { byId("state").textContent = text; }

async function load_models() {
  try {
    const answer = await fetch("v1/models", { headers: headers() });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error.message);
    byId("model").replaceChildren(...found.data.map((model) => new Option(model.id, model.id)));
    state("");
  } catch (error) { state(error.message); }
}

function add_message(role, text) {
  const node = document.createElement("div");
  node.className = `message ${role}`;
  const thought = document.createElement("span");
  thought.className = "thought";
  const said = document.createElement("span");
  said.textContent = text;
  node.append(thought, said);
  byId("chat").append(node);
  node.scrollIntoView({ block: "end" });
  return { thought, said };
}

function busy(is_busy) {
  byId("send").hidden = is_busy;
  byId("stop").hidden = !is_busy;
}

// Server-sent events of one answer, as objects; a piece from the network may end anywhere.
async function* events_of(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const line = held.slice(0, end).split("\n").find((part) => part.startsWith("data: "));
      held = held.slice(end + 2);
      if (line === undefined) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function ask(text) {
  const mine = messages; // a new chat may begin meanwhile
  mine.push({ role: "user", content: text });
  add_message("user", text);
  const { thought, said } = add_message("assistant", "");
  const system = byId("system").value.trim();
  running = new AbortController();
  busy(true);
  state("");
  const began = performance.now();
  let reason = null;
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({
        model: byId("model").value, stream: true, stream_options: { include_usage: true },
        messages: system ? [{ role: "system", content: system }, ...mine] : mine,
        temperature: byId("temperature").valueAsNumber, max_tokens: byId("tokens").valueAsNumber,
      }),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events_of(answer)) {
      for (const choice of event.choices) {
        thought.textContent += choice.delta.reasoning_content ?? "";
        said.textContent += choice.delta.content ?? "";
        reason = choice.finish_reason ?? reason;
      }
      if (event.usage) {
        const speed = event.usage.completion_tokens / ((performance.now() - began) / 1000);
        state(`${event.usage.completion_tokens} · ${speed.toFixed(1)} ${TEXTS[language].speed}`);
      }
      said.scrollIntoView({ block: "end" });
    }
    if (reason === "length") state(TEXTS[language].length);
  } catch (error) {
    state(error.name === "AbortError" ? TEXTS[language].stopped : error.message);
  }
  if (said.textContent) mine.push({ role: "assistant", content: said.textContent });
  else mine.pop(); // unanswered: it is not part of what comes next
  running = null;
  busy(false);
  byId("text").focus();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value;
  if (running || !text.trim()) return;
  byId("text").value = "";
  ask(text);
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
byId("stop").addEventListener("click", () => { if (running) running.abort(); });
byId("reset").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  byId("chat").replaceChildren();
  state("");
});
byId("key").addEventListener("change", load_models);
byId("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; show_language(); });
show_language();
load_models();
