// An answer as tokens, and the tooltip with the probabilities of the one that is pointed at or has the focus.
// What a model says is only ever put into the page as text (textContent), never as markup.

const UNSURE = 0.5, GUESS = 0.1; // probabilities under which a token is tinted
const FENCE = /^\s*(```|~~~)/;
const tip = document.getElementById("tip");
const entries_of = new WeakMap(); // token's node -> its log-probabilities, as the API sends them

// What one answer says, piece by piece. From a line that opens a fence to the one that closes it, a block of its own.
export class Answer {
  constructor(node) {
    this.node = this.block = node;
    this.line = ""; // the last line so far, and its nodes
    this.nodes = [];
  }

  get text() { return this.node.textContent; }

  push(piece, logprobs) {
    for (const [part, entries] of parts_of(piece, logprobs ?? [])) this.add(part, entries);
  }

  add(part, entries) {
    const node = document.createElement("span");
    node.textContent = part;
    if (entries.length) {
      const sure = Math.exp(entries[0].logprob);
      node.className = sure < GUESS ? "token guess" : sure < UNSURE ? "token unsure" : "token";
      node.tabIndex = this.node.querySelector(".token") ? -1 : 0; // one stop for the tab key; arrows go on
      entries_of.set(node, entries);
    }
    this.block.append(node);
    this.nodes.push(node);
    const lines = (this.line + part).split("\n");
    this.line = lines.pop();
    if (lines.filter((line) => FENCE.test(line)).length % 2) this.turn(node);
    if (lines.length) this.nodes = [];
  }

  turn(node) {
    if (this.block === this.node) {
      this.block = document.createElement("span");
      this.block.className = "code";
      this.nodes[0].before(this.block);
      this.block.append(...this.nodes);
    } else {
      const code = this.block;
      this.block = this.node;
      if (!node.textContent.trim()) { // the line break behind the fence
        this.block.append(node);
        code.classList.add("closed");
      }
    }
  }
}

// [text, entries] of each token of a piece. Tokens that are parts of one character stay together; a piece that is not
// what its tokens spell (a cut, a decoder's own space) is one part with all of them.
function parts_of(piece, logprobs) {
  const parts = [];
  let bytes = [], entries = [];
  for (const entry of logprobs) {
    bytes.push(...(entry.bytes ?? []));
    entries.push(entry);
    try {
      parts.push([new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes)), entries]);
    } catch { continue; } // not a whole character yet
    bytes = []; entries = [];
  }
  const shown = parts.filter(([part]) => part);
  return !entries.length && shown.map(([part]) => part).join("") === piece ? shown : piece ? [[piece, logprobs]] : [];
}

// A token's name as it can be read: blanks, line breaks and what cannot be seen have signs.
function visible(name) {
  return name.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥")
    .replace(/[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]/gu, (sign) => `‹U+${hexadecimal(sign.codePointAt(0))}›`);
}

const hexadecimal = (number) => number.toString(16).toUpperCase().padStart(4, "0");

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 0.1 ? `${value.toFixed(1)}%` : value > 0 ? "<0.1%" : "0%";
}

function row(entry, is_chosen) {
  const node = document.createElement("div");
  node.className = is_chosen ? "chosen" : "";
  const name = document.createElement("bdi");
  name.textContent = visible(entry.token);
  const bar = document.createElement("meter");
  bar.max = 1;
  bar.value = Math.exp(entry.logprob);
  const share = document.createElement("span");
  share.textContent = percent(entry.logprob);
  node.append(name, bar, share);
  return node;
}

function show(node) {
  const entries = entries_of.get(node);
  if (!entries) return;
  hide();
  if (entries.length > 1) { // one character of several tokens
    const whole = document.createElement("bdi");
    whole.textContent = visible(node.textContent);
    tip.append(whole);
  }
  for (const entry of entries) {
    const others = (entry.top_logprobs ?? []).filter((other) => String(other.bytes) !== String(entry.bytes));
    tip.append(row(entry, true), ...others.map((other) => row(other, false)));
  }
  tip.hidden = false;
  node.setAttribute("aria-describedby", "tip");
  const place = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const above = place.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(4, Math.min(place.left, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${above >= 4 ? above : place.bottom + 6}px`;
}

function hide() {
  tip.hidden = true;
  tip.replaceChildren();
  for (const node of document.querySelectorAll("[aria-describedby=tip]")) node.removeAttribute("aria-describedby");
}

function move(event) {
  const node = event.target;
  const tokens = [...node.closest(".said").querySelectorAll(".token")];
  const here = tokens.indexOf(node);
  const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (to === undefined || !tokens[to]) return;
  event.preventDefault();
  node.tabIndex = -1;
  tokens[to].tabIndex = 0;
  tokens[to].focus();
}

// Watches the tokens inside a node.
export function watch(node) {
  const token_at = (event) => event.target.closest?.(".token");
  for (const name of ["pointerover", "focusin"]) {
    node.addEventListener(name, (event) => { if (token_at(event)) show(token_at(event)); });
  }
  for (const name of ["pointerout", "focusout"]) node.addEventListener(name, hide);
  node.addEventListener("scroll", () => {
    if (document.activeElement.classList.contains("token")) show(document.activeElement); // the focus scrolled it here
    else hide();
  });
  node.addEventListener("keydown", (event) => { if (token_at(event)) move(event); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
}
