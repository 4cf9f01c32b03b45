"use strict";
// Titles are data: they are set as text, never as HTML.
const $ = (id) => document.getElementById(id);
const chosen = [];
let searches = 0;
let requests = 0;

function headers() {
  const key = $("key").value.trim();
  return key ? { "content-type": "application/json", authorization: `Bearer ${key}` } : { "content-type": "application/json" };
}

async function call(path, body) {
  const options = { headers: headers() };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail || response.statusText);
  return answer;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function state(text, wrong = false) {
  $("state").textContent = text;
  $("state").classList.toggle("wrong", wrong);
}

async function search() {
  const mine = ++searches;
  try {
    const { items } = await call(`v1/items?limit=8&q=${encodeURIComponent($("query").value)}`);
    if (mine !== searches) return;
    $("found").replaceChildren(...items.map((item) => {
      const line = document.createElement("li");
      const button = element("button", item.title || item.item, { type: "button", title: `Add ${item.item} to the history` });
      button.addEventListener("click", () => add(item));
      line.append(button);
      return line;
    }));
  } catch (error) {
    if (mine === searches) $("found").replaceChildren(element("li", error.message, { class: "wrong" }));
  }
}

function add(item) {
  chosen.push(item);
  changed();
}

// The address keeps the history, so that a list can be shown to somebody else: #item=1&item=2.
async function fromAddress() {
  for (const id of new URLSearchParams(location.hash.slice(1)).getAll("item")) {
    try {
      const { items } = await call(`v1/items?limit=1&q=${encodeURIComponent(id)}`);
      if (items.length > 0 && items[0].item === id) chosen.push(items[0]);
    } catch (error) {
      state(error.message, true);
      return;
    }
  }
  if (chosen.length > 0) changed();
}

function changed() {
  const address = new URLSearchParams(chosen.map(({ item }) => ["item", item]));
  window.history.replaceState(null, "", `#${address}`);
  $("no-history").hidden = chosen.length > 0;
  $("history").replaceChildren(...chosen.map((item, index) => {
    const line = document.createElement("li");
    line.append(element("span", item.title || item.item));
    const remove = element("button", "Remove", { type: "button", class: "remove", "aria-label": `Remove ${item.title}` });
    remove.addEventListener("click", () => {
      chosen.splice(index, 1);
      changed();
      const buttons = $("history").querySelectorAll("button");
      (buttons[Math.min(index, buttons.length - 1)] || $("query")).focus();
    });
    line.append(remove);
    return line;
  }));
  recommend();
}

async function recommend() {
  const mine = ++requests;
  if (chosen.length === 0) {
    $("answer").hidden = true;
    state("Add an item to the history.");
    return;
  }
  state("…");
  const started = performance.now();
  try {
    const answer = await call("v1/recommend", {
      history: chosen.map(({ item }) => ({ item })),
      k: Number($("k").value) || 10,
      exclude_history: $("exclude").checked,
    });
    if (mine !== requests) return;
    const rows = answer.items.map(({ rank, title, item, score }) => {
      const row = document.createElement("tr");
      const cell = document.createElement("td");
      cell.textContent = title;
      row.append(element("td", rank), cell, element("td", item), element("td", score.toFixed(4)));
      return row;
    });
    $("answer").tBodies[0].replaceChildren(...rows);
    $("answer").hidden = false;
    const notes = (answer.notes || []).map((note) => ` ${note}.`).join("");
    state(`${answer.items.length} items by ${answer.model} in ${Math.round(performance.now() - started)} ms.${notes}`);
  } catch (error) {
    if (mine !== requests) return;
    $("answer").hidden = true;
    state(error.message, true);
  }
}

async function models() {
  try {
    const { models: [model] } = await call("v1/models");
    const step = model.step === undefined ? "" : `, step ${model.step}`;
    $("model").textContent = `${model.id}${step}: ${model.items} items of ${model.corpus}`;
    search();
    if (chosen.length === 0) fromAddress();
  } catch (error) {
    $("model").textContent = error.message;
    setTimeout(models, 3000);
  }
}

$("query").addEventListener("input", search);
$("query").addEventListener("keydown", (event) => {
  const first = $("found").querySelector("button");
  if (event.key === "Enter" && first) first.click();
  if (event.key === "ArrowDown" && first) { event.preventDefault(); first.focus(); }
});
$("found").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...$("found").querySelectorAll("button")];
  (buttons[buttons.indexOf(document.activeElement) + step] || $("query")).focus();
});
$("clear").addEventListener("click", () => { chosen.length = 0; changed(); $("query").focus(); });
$("exclude").addEventListener("change", recommend);
$("k").addEventListener("change", recommend);
$("key").addEventListener("change", models);
models();
