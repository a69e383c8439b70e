// One conversation with one model: its selector, its messages, its line of state.

import { events_of } from "./stream.js";
import { text } from "./texts.js";
import { Answer, watch } from "./tokens.js";

const NEAR_END = 60; // pixels from the end within which new text scrolls along

export class Column {
  constructor(select, chat, state) {
    this.select = select;
    this.chat = chat;
    this.state_node = state;
    this.clear();
    watch(chat);
  }

  clear() {
    this.messages = [];
    this.chat.replaceChildren();
    this.state(() => "");
  }

  // say: a function, so that it can be said again in another language.
  state(say) {
    this.say = say;
    this.retell();
  }

  retell() {
    this.state_node.textContent = this.say();
    for (const node of this.chat.querySelectorAll(".said")) node.setAttribute("aria-label", text("answer"));
  }

  offer(names, at) {
    const before = this.select.value;
    this.select.replaceChildren(...names.map((name) => new Option(name, name)));
    this.select.value = names.includes(before) ? before : names[Math.min(at, names.length - 1)] ?? "";
  }

  // Begins with what another column has said so far.
  follow(other) {
    this.clear();
    this.messages = [...other.messages];
    for (const message of this.messages) this.add(message.role).answer.push(message.content);
  }

  add(role) {
    const node = document.createElement("div");
    node.className = `message ${role}`;
    node.dir = "auto";
    const thought = document.createElement("span");
    thought.className = "thought";
    const said = document.createElement("span");
    said.className = "said";
    if (role === "assistant") {
      said.setAttribute("role", "group");
      said.setAttribute("aria-label", text("answer"));
    }
    node.append(thought, said);
    this.chat.append(node);
    this.chat.scrollTop = this.chat.scrollHeight;
    return { thought, answer: new Answer(said) };
  }

  // settings: fields of the request beside model and messages. system: "" for none.
  async ask(prompt, system, settings, headers, signal) {
    const mine = this.messages; // a new chat may begin meanwhile
    mine.push({ role: "user", content: prompt });
    this.add("user").answer.push(prompt);
    const shown = this.add("assistant");
    this.state(() => "");
    this.chat.setAttribute("aria-busy", "true"); // announced when it is whole
    try {
      const answer = await fetch("v1/chat/completions", {
        method: "POST", headers, signal,
        body: JSON.stringify({
          model: this.select.value, stream: true, stream_options: { include_usage: true },
          messages: system ? [{ role: "system", content: system }, ...mine] : mine, ...settings,
        }),
      });
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      await this.write(answer, shown);
    } catch (error) {
      if (mine === this.messages) this.state(() => (error.name === "AbortError" ? text("stopped") : error.message));
    }
    if (shown.answer.text) mine.push({ role: "assistant", content: shown.answer.text });
    else mine.pop(); // unanswered: it is not part of what comes next
    this.chat.setAttribute("aria-busy", "false");
  }

  async write(answer, { thought, answer: said }) {
    const began = performance.now();
    let reason = null;
    for await (const event of events_of(answer)) {
      const follows = this.chat.scrollHeight - this.chat.scrollTop - this.chat.clientHeight < NEAR_END;
      for (const choice of event.choices) {
        thought.textContent += choice.delta.reasoning_content ?? "";
        said.push(choice.delta.content ?? "", choice.logprobs?.content);
        reason = choice.finish_reason ?? reason;
      }
      if (follows) this.chat.scrollTop = this.chat.scrollHeight;
      if (event.usage) {
        const count = event.usage.completion_tokens, speed = count / ((performance.now() - began) / 1000);
        const cut = () => (reason === "length" ? ` · ${text("length")}` : "");
        this.state(() => `${count} · ${speed.toFixed(1)} ${text("speed")}${cut()}`);
      }
    }
  }
}
