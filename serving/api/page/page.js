"use strict";
const find = (id) => document.getElementById(id);
const history_ = []; // {item_id, title}, oldest first
const settings = { terms: [], attributes: {} };
let token = "";
let pending = null; // the pending request for recommendations
let similarTo = null;

/** An element with attributes and children; text is always text, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").className = isError ? "error" : "";
}

/** Return the JSON answer of a route; errors have the message of the server. */
async function ask(path, options = {}) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(options.body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { ...options, headers });
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) find("token-form").hidden = false;
  if (!answer.ok) throw new Error(body.error?.message ?? `The endpoint answered ${answer.status}.`);
  return body;
}

/** Run `work`, and show errors; an aborted request is not an error. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function later(work, milliseconds = 150) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => attempt(work), milliseconds);
  };
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

async function loadModel() {
  const model = await ask("v1/model");
  const { at_export: exported, live } = model.recall;
  const recall = live !== null ? `, recall of live answers ${percent(live)}` : exported !== null ? `, recall at export ${percent(exported)}` : "";
  find("model").textContent =
    `Model ${model.model_version}: ${model.items} items (${model.new_items} new, ${model.live_items} live), ` +
    `${model.users} users, ${model.retriever} search${recall}`;
  Object.assign(settings, model);
  find("factors").replaceChildren(...model.terms.map(slider));
  const options = (values) => values.map((value) => make("option", { value }, value));
  find("attribute").replaceChildren(make("option", { value: "" }, "(any)"), ...options(Object.keys(model.attributes)));
  find("by").replaceChildren(...options(["all", "model", ...model.terms]));
  const named = model.rules.filter((name) => name !== "default");
  find("rules").replaceChildren(make("option", { value: "default" }, "default"), make("option", { value: "" }, "(none)"), ...options(named));
  find("token-form").hidden = true;
  say("");
}

function slider(term) {
  const id = `factor-${term}`;
  const output = make("output", { for: id }, "1.0");
  const input = make("input", { id, type: "range", min: 0, max: 3, step: 0.1, value: 1, "data-term": term });
  input.addEventListener("input", () => {
    output.textContent = Number(input.value).toFixed(1);
    refresh();
  });
  return make("div", { class: "slider" }, make("label", { for: id }, term), output, input);
}

function attributesOf(item) {
  return Object.entries(item.attributes ?? {}).map(([name, values]) => `${name}: ${values.join(", ")}`).join(" · ");
}

async function search() {
  const text = find("search").value.trim();
  const items = text ? (await ask(`v1/items?query=${encodeURIComponent(text)}`)).items : [];
  find("found").replaceChildren(
    ...items.map((item) => make("li", {}, make("span", {}, item.title || item.item_id),
      make("button", { type: "button", "aria-label": `Add ${item.title} to the history`, onclick: () => add(item) }, "Add"))),
  );
  say(text && !items.length ? `No title contains “${text}”.` : "");
}

function add(item) {
  history_.push({ item_id: item.item_id, title: item.title });
  showHistory();
  refresh();
}

function showHistory() {
  find("history").replaceChildren(
    ...history_.map((item, at) => make("li", {}, make("span", {}, item.title || item.item_id),
      make("button", { type: "button", "aria-label": `Remove ${item.title} from the history`, onclick: () => remove(at) }, "Remove"))),
  );
}

function remove(at) {
  history_.splice(at, 1);
  showHistory();
  refresh();
  (find("history").querySelectorAll("button")[Math.min(at, history_.length - 1)] ?? find("search")).focus();
}

async function loadUser() {
  const user = find("user").value.trim();
  if (!user) return;
  const past = (await ask(`v1/users/${encodeURIComponent(user)}/history?limit=50`)).items.reverse();
  const titled = await Promise.all(past.map((item) =>
    ask(`v1/items/${encodeURIComponent(item.item_id)}`).catch(() => null)));
  history_.splice(0, history_.length, ...titled.filter(Boolean));
  showHistory();
  say(history_.length ? `${history_.length} items of user ${user}.` : `User ${user} has no history.`);
  refresh();
}

function requestBody() {
  const factors = {};
  for (const input of find("factors").querySelectorAll("input")) {
    if (Number(input.value) !== 1) factors[input.dataset.term] = Number(input.value);
  }
  const body = {
    history: history_.map((item) => item.item_id), k: Number(find("k").value) || 10, explain: true, factors,
    diversity: Number(find("diversity").value), new_only: find("new-only").checked, rules: find("rules").value || null,
  };
  if (find("attribute").value && find("value").value) {
    body.filter = { attribute: find("attribute").value, equals: find("value").value };
  }
  return body;
}

async function recommend() {
  pending?.abort();
  if (!history_.length) {
    find("items").replaceChildren();
    find("slots-panel").hidden = true;
    return;
  }
  pending = new AbortController();
  const answer = await ask("v1/recommend", { method: "POST", body: JSON.stringify(requestBody()), signal: pending.signal });
  find("items").replaceChildren(...answer.items.map(recommendation));
  find("slots-panel").hidden = !Object.keys(answer.slots ?? {}).length;
  find("slots").replaceChildren(...Object.entries(answer.slots ?? {}).flatMap(([kind, items]) => [
    make("dt", {}, kind), make("dd", {}, items.map((item) => item.title || item.item_id).join(" · ")),
  ]));
  say(`${answer.items.length} recommendations.`);
}

const refresh = later(recommend);

function recommendation(item, at) {
  const because = (item.because ?? []).map((effect) => `${effect.title || effect.item_id} (${effect.effect.toFixed(2)})`);
  const summary = because.length ? `Because of ${because.join(", ")}` : "Shares of the score";
  const largest = Math.max(...Object.values(item.shares).map(Math.abs), 1e-9);
  const shares = Object.entries(item.shares).flatMap(([name, share]) => [
    make("span", {}, name),
    make("meter", { min: 0, max: largest, value: Math.max(share, 0), "aria-label": `Share of ${name}` }),
    make("span", {}, share.toFixed(2)),
  ]);
  return make("li", {},
    make("div", { class: "head" }, make("span", {}, `${at + 1}.`), make("b", {}, item.title || item.item_id),
      make("span", { class: "actions" },
        make("button", { type: "button", "aria-label": `Add ${item.title} to the history`, onclick: () => add(item) }, "Add"),
        make("button", { type: "button", "aria-label": `Items similar to ${item.title}`, onclick: () => attempt(() => similar(item, true)) }, "Similar"))),
    make("div", { class: "why" }, make("p", { class: "attributes" }, attributesOf(item)),
      make("details", {}, make("summary", {}, summary), make("div", { class: "shares" }, ...shares))));
}

async function similar(item, isMoved = false) {
  similarTo = item;
  const by = find("by").value || "all";
  const answer = await ask(`v1/items/${encodeURIComponent(item.item_id)}/similar?by=${encodeURIComponent(by)}`);
  find("similar-panel").hidden = false;
  find("similar-title").textContent = `Similar to ${item.title || item.item_id}`;
  find("similar").replaceChildren(...answer.items.map((other, at) => make("li", {}, make("div", { class: "head" },
    make("span", {}, `${at + 1}.`), make("b", {}, other.title || other.item_id),
    make("button", { type: "button", "aria-label": `Add ${other.title} to the history`, onclick: () => add(other) }, "Add")))));
  if (isMoved) find("similar-title").focus();
}

function chooseAttribute() {
  const values = settings.attributes[find("attribute").value] ?? [];
  find("value").replaceChildren(...values.map((value) => make("option", { value }, value)));
  find("value").disabled = !values.length;
  refresh();
}

find("search").addEventListener("input", later(search));
find("clear").addEventListener("click", () => { history_.length = 0; showHistory(); refresh(); });
find("user-form").addEventListener("submit", (event) => { event.preventDefault(); attempt(loadUser); });
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  attempt(loadModel);
});
find("diversity").addEventListener("input", () => {
  find("diversity-value").textContent = Number(find("diversity").value).toFixed(2);
  refresh();
});
find("attribute").addEventListener("change", chooseAttribute);
find("by").addEventListener("change", () => similarTo && attempt(() => similar(similarTo)));
for (const id of ["value", "new-only", "rules", "k"]) find(id).addEventListener("change", refresh);
attempt(loadModel);
