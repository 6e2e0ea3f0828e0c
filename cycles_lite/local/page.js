"use strict";

// What the ledger tells is put on the page with `textContent` alone; the page's policy forbids everything else.

const byId = (id) => document.getElementById(id);

// ---- Values ----

const UNITS = new Map([["TOKENS", "tokens"], ["CREDITS", "credits"], ["RISK_POINTS", "risk points"]]);
const DOLLAR = 100000000n; // microcents
const WINDOW = 60000; // milliseconds that count as the last minute
const GRACE = 60000; // the most milliseconds for which a hold outlives its expiry

/** JSON, in which integers that a double may not hold become strings. Strings are matched too, and left as they are. */
const parse = (text) => JSON.parse(text.replace(/"[^"\\]*(?:\\[^][^"\\]*)*"|-?\d[\d.eE+-]*/g, (found) => (
  /^-?\d{16,}$/.test(found) ? `"${found}"` : found
)));

const amountOf = (told) => (told === undefined ? 0n : BigInt(told.amount));
const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");

/** An amount as people read it, to its last digit. */
function worded(amount, unit) {
  const sign = amount < 0n ? "−" : "";
  const size = amount < 0n ? -amount : amount;
  if (unit !== "USD_MICROCENTS") return `${sign}${grouped(size)} ${UNITS.get(unit) || unit}`;
  const part = String(size % DOLLAR).padStart(8, "0").replace(/0{1,6}$/, "");
  return `${sign}$${grouped(size / DOLLAR)}.${part}`;
}

const signed = (amount, unit) => (amount > 0n ? "+" : "") + worded(amount, unit);

/** A number of milliseconds as a person says it, in two units at the most. */
function span(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (minutes < 1) return `${seconds} s`;
  if (hours < 1) return `${minutes} min ${seconds % 60} s`;
  if (days < 2) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

/** A time in milliseconds since 1970, in the reader's own zone. */
function instant(milliseconds) {
  const date = new Date(Number(milliseconds));
  if (Number.isNaN(date.getTime())) return "an impossible time";
  return date.toLocaleString(undefined, {day: "numeric", month: "short", hour: "2-digit", minute: "2-digit"});
}

// ---- Elements ----

function make(tag, name = "", text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function tell(element, text) { // only what differs, because screen readers are told of each change
  if (element.textContent !== text) element.textContent = text;
}

/** Lets `parent` have one element for each item, in their order. Those that were there stay: what is focused, selected
    or unfolded in them stays so, too. */
function keep(parent, items, keyOf, create, update) {
  const known = parent.known || new Map();
  parent.known = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!parent.known.has(key)) parent.known.set(key, known.get(key) || create(item));
  }
  for (const [key, old] of known) if (!parent.known.has(key)) old.remove();
  let next = parent.firstElementChild;
  for (const item of items) {
    const element = parent.known.get(keyOf(item));
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
    update(element, item);
  }
}

/** An element with a number of others in it, which are in its `its` by their class names. */
function assemble(tag, name, parts) {
  const made = make(tag, name);
  made.its = {};
  for (const [part, kind] of Object.entries(parts)) made.append(made.its[part] = make(kind, part), " ");
  return made;
}

function empty(section, isEmpty, more = "") {
  byId(section).querySelector(".empty").hidden = !isEmpty;
  const note = byId(section).querySelector(".more");
  note.hidden = !more;
  tell(note, more);
}

// ---- Asking the server ----

const PATIENCE = 10000; // milliseconds for one answer
const MOST_PAGES = 5; // of 200 budgets: a page with ten times as many would stand still for seconds at each look

const REFUSALS = new Map([
  [401, "The server does not take this key: it is unknown, revoked or over."],
  [403, "This key may not look at budgets (403)."],
]);

class KeyRefused extends Error {}
class NoAnswer extends Error {}

async function ask(path, query, signal) {
  const controller = new AbortController();
  const stop = () => controller.abort();
  const timer = setTimeout(stop, PATIENCE);
  signal.addEventListener("abort", stop);
  try {
    const options = {headers: {"X-Cycles-API-Key": key}, cache: "no-store", credentials: "omit", redirect: "error"};
    const response = await fetch(`${path}?${new URLSearchParams(query)}`, {...options, signal: controller.signal});
    const text = await response.text();
    if (REFUSALS.has(response.status)) throw new KeyRefused(REFUSALS.get(response.status));
    if (!response.ok) throw new NoAnswer(`The server cannot tell at present (${response.status}).`);
    return {data: parse(text), tenant: response.headers.get("X-Cycles-Tenant")};
  } catch (error) {
    if (error instanceof KeyRefused || error instanceof NoAnswer) throw error;
    if (error instanceof SyntaxError) throw new NoAnswer("What answers here is not a Cycles server.");
    throw new NoAnswer("The server does not answer.");
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

/** All that the server knows of the key's tenant, by one request after the other. */
async function look(signal) {
  const soonest = {status: "ACTIVE", sort_by: "expires_at_ms", sort_dir: "asc", limit: 200};
  const live = await ask("v1/reservations", soonest, signal);
  const tenant = live.tenant;
  const {data: extra} = await ask("v1/budgets/periods", {}, signal);
  const [now, at] = [Number(extra.now_ms), performance.now()];
  const balances = [];
  let page = {};
  for (let pages = 0; pages < MOST_PAGES && (pages === 0 || page.has_more); pages += 1) {
    const cursor = page.next_cursor === undefined ? {} : {cursor: page.next_cursor};
    page = (await ask("v1/balances", {tenant, limit: 200, ...cursor}, signal)).data;
    balances.push(...page.balances);
  }
  const since = (milliseconds) => new Date(now - milliseconds).toISOString();
  const list = async (query) => (await ask("v1/reservations", {limit: 50, ...query}, signal)).data;
  // Whatever ended just now expired a grace ago at the earliest: the server finds by that, and need not read them all.
  const lately = {expires_from: since(WINDOW + GRACE)};
  const lists = [
    await list({from: since(WINDOW)}),
    await list({finalized_from: since(WINDOW), ...lately}),
    await list({status: "EXPIRED", ...lately}),
  ];
  const budgets = balances.map(budgetOf);
  return {live: live.data, tenant, extra, now, at, lists, budgets, isCut: page.has_more === true};
}

function budgetOf(told) {
  const found = {path: told.scope_path, unit: told.remaining.unit, isOver: told.is_over_limit === true};
  for (const part of ["remaining", "allocated", "spent", "reserved", "debt", "overdraft_limit"]) {
    found[part] = amountOf(told[part]);
  }
  found.id = `${found.path} ${found.unit}`;
  found.hasTotal = told.allocated !== undefined;
  return found;
}

// ---- Budgets ----

/** The scopes that have budgets, each below the nearest one above it. */
function treeOf(budgets) {
  const nodes = new Map();
  for (const budget of budgets) {
    const node = nodes.get(budget.path) || {path: budget.path, budgets: [], below: []};
    node.budgets.push(budget);
    nodes.set(budget.path, node);
  }
  const roots = [];
  for (const node of nodes.values()) {
    let above = node.path;
    do above = above.slice(0, Math.max(0, above.lastIndexOf("/"))); while (above && !nodes.has(above));
    node.name = above ? node.path.slice(above.length + 1) : node.path;
    (above ? nodes.get(above).below : roots).push(node);
  }
  return roots;
}

let ids = 0;

function showTree(list, nodes, isOpen) {
  const create = () => {
    const made = assemble("li", "scope", {fold: "button", label: "p", budgets: "ul", tree: "ul"});
    const {fold, label, tree: below} = made.its;
    fold.type = "button";
    fold.className = label.className = "name";
    below.id = `below-${ids += 1}`;
    fold.setAttribute("aria-controls", below.id);
    const unfold = (open) => {
      fold.setAttribute("aria-expanded", String(open));
      below.hidden = !open;
    };
    fold.addEventListener("click", () => unfold(below.hidden));
    unfold(isOpen);
    return made;
  };
  keep(list, nodes, (node) => node.path, create, ({its}, node) => {
    const isLeaf = node.below.length === 0;
    its.fold.hidden = isLeaf;
    its.label.hidden = !isLeaf;
    nameScope(isLeaf ? its.label : its.fold, node.name);
    keep(its.budgets, node.budgets, (budget) => budget.unit, newBudget, showBudget);
    showTree(its.tree, node.below, isOpen && nodes.length < 30);
  });
}

/** Shows `agent:bot` so that what differs stands out. */
function nameScope(element, path) {
  if (element.textContent === path) return;
  element.textContent = "";
  for (const [at, segment] of path.split("/").entries()) {
    const colon = segment.indexOf(":") + 1;
    element.append(make("b", "", (at ? "/" : "") + segment.slice(0, colon)), segment.slice(colon));
  }
}

function newBudget() {
  const made = assemble("li", "budget", {figures: "p", bar: "div", parts: "p", why: "p"});
  const {figures, bar, parts} = made.its;
  figures.append(made.its.amount = make("strong"), made.its.of = make("span"), " ", made.its.marks = make("span"));
  bar.setAttribute("aria-hidden", "true"); // the figures say the same
  [bar.its, parts.its] = [{}, {}];
  for (const part of ["spent", "reserved", "debt", "limit"]) bar.append(bar.its[part] = make("i", part));
  for (const part of ["spent", "reserved", "debt", "ends"]) parts.append(parts.its[part] = make("span"), " ");
  return made;
}

/** What is odd about a budget: a word, and a sentence where it lets nothing new be reserved. */
function oddities(budget) {
  const found = [];
  const status = budget.status || "ACTIVE";
  if (status === "FROZEN") found.push(["frozen", "It takes no new reservation until it is unfrozen."]);
  else if (status !== "ACTIVE") found.push([status.toLowerCase(), "It takes no new reservation any more."]);
  if (budget.isOver) found.push(["over limit", "It takes no new reservation until it is funded."]);
  else if (budget.debt > 0n && budget.overdraft_limit === 0n) {
    found.push(["in debt", "It takes no new reservation until the debt is repaid."]);
  } else if (budget.remaining <= 0n) found.push(["nothing left", "New reservations are denied."]);
  else if (budget.hasTotal && budget.remaining * 5n < budget.allocated) found.push(["running low", ""]);
  return found;
}

function showBudget({its}, budget) {
  const {unit, remaining, allocated, spent, reserved, debt} = budget;
  tell(its.amount, worded(remaining, unit));
  tell(its.of, budget.hasTotal ? ` left of ${worded(allocated, unit)}` : " left");
  const odd = oddities(budget);
  keep(its.marks, odd, ([word]) => word, () => make("span"), (mark, [word, why]) => {
    mark.className = why ? "mark denies" : "mark";
    tell(mark, word);
  });
  tell(its.why, odd.map(([, why]) => why).find(Boolean) || "");
  its.bar.hidden = !budget.hasTotal;
  const used = spent + reserved + debt;
  const whole = used > allocated ? used : allocated;
  const share = (part) => (whole > 0n ? Number((part * 100000n) / whole) / 1000 : 0);
  const [bar, parts] = [its.bar.its, its.parts.its];
  for (const part of ["spent", "reserved", "debt"]) {
    bar[part].style.width = `${share(budget[part])}%`;
    bar[part].classList.toggle("some", budget[part] > 0n);
    tell(parts[part], budget[part] > 0n || part === "spent" ? `${part} ${worded(budget[part], unit)}` : "");
  }
  bar.limit.hidden = used <= allocated;
  bar.limit.style.left = `${share(allocated)}%`;
  if (budget.running) until(parts.ends, "starts over in ", budget.running.end_ms);
  else untimed(parts.ends);
}

// ---- Times that go on ----

/** Lets an element show how long ago a time was, or how long it is until then, also between two looks. */
const since = (element, text, time) => timed(element, {text, time: Number(time), direction: 1});
const until = (element, text, time) => timed(element, {text, time: Number(time), direction: -1});

function timed(element, what) {
  element.timed = what;
  element.setAttribute("data-timed", "");
  showTime(element);
}

function untimed(element) {
  element.removeAttribute("data-timed");
  tell(element, "");
}

function showTime(element) {
  const {text, time, direction} = element.timed;
  const past = (shown.now + performance.now() - shown.at - time) * direction;
  tell(element, direction < 0 && past <= 0 ? "due" : text + span(past));
}

// ---- What changed ----

const before = new Map(); // by budget, its amounts of the last minute: the first are those at its beginning

/** What moved in the last minute, as far as this page has seen it. */
function movesOf(budgets) {
  const moved = [];
  const now = performance.now();
  for (const budget of budgets) {
    const seen = before.get(budget.id) || [];
    const last = seen[seen.length - 1];
    const parts = ["spent", "reserved", "debt", "allocated", "remaining"];
    if (!last || parts.some((part) => last.budget[part] !== budget[part])) seen.push({at: now, budget});
    while (seen.length > 1 && seen[1].at < now - WINDOW) seen.shift();
    before.set(budget.id, seen);
    const deltas = parts.map((part) => [part, budget[part] - seen[0].budget[part]]).filter(([, by]) => by !== 0n);
    const words = deltas.map(([part, by]) => `${part === "remaining" ? "left" : part} ${signed(by, budget.unit)}`);
    if (words.length > 0) moved.push({id: budget.id, path: budget.path, words: words.join(", ")});
  }
  const known = new Set(budgets.map((budget) => budget.id));
  for (const id of before.keys()) if (!known.has(id)) before.delete(id);
  return moved;
}

/** The reservations of the last minute: what became of each, the newest first; and the refusals. */
function changesOf({lists, extra, now}) {
  const found = new Map();
  const [created, finalized, expired] = lists.map((list) => list.reservations);
  const add = (word, row, at, amount) => {
    if (at < now - WINDOW) return;
    const text = amount === undefined ? "" : worded(amountOf(amount), amount.unit);
    const action = `${row.action.kind} ${row.action.name}`;
    found.set(`${word} ${row.reservation_id}`, {word, at, text: `${text} ${action}`, where: row.scope_path});
  };
  for (const row of created) add("reserved", row, row.created_at_ms, row.reserved);
  for (const row of expired) add("expired", row, row.expires_at_ms, row.reserved);
  for (const row of finalized) {
    const isSpent = row.committed !== undefined;
    add(isSpent ? "spent" : "released", row, row.finalized_at_ms, isSpent ? row.committed : row.reserved);
  }
  for (const {age_ms: age, request_id: id, code, scope, unit, requested, remaining} of extra.denials) {
    const amounts = unit === undefined ? [] : [requested, remaining].map((amount) => worded(BigInt(amount), unit));
    const text = amounts.length ? `${amounts[0]} asked, ${amounts[1]} left (${code})` : code;
    found.set(`denied ${id}`, {word: "denied", at: now - age, text, where: scope || ""});
  }
  return [...found].map(([id, change]) => ({id, ...change})).sort((one, other) => other.at - one.at);
}

function showChanges(found) {
  const moved = movesOf(found.budgets);
  const changes = changesOf(found);
  const newMove = () => assemble("li", "", {where: "span", words: "span"});
  keep(byId("moves"), moved, (move) => move.id, newMove, ({its}, move) => {
    nameScope(its.where, move.path);
    tell(its.words, move.words);
  });
  const create = () => assemble("li", "", {age: "time", word: "span", text: "span", where: "span"});
  keep(byId("changes"), changes, (change) => change.id, create, ({its}, change) => {
    since(its.age, "", change.at);
    its.word.classList.toggle("denied", change.word === "denied");
    for (const part of ["word", "text", "where"]) tell(its[part], change[part]);
  });
  const isCut = found.extra.has_more_denials || found.lists.some((list) => list.has_more);
  empty("of-changes", moved.length + changes.length === 0, isCut ? "There was more: the newest are shown." : "");
}

// ---- Live reservations ----

function newReservation() {
  const made = assemble("tr", "", {action: "td", scope: "td", holds: "td", age: "td", expires: "td"});
  made.setAttribute("role", "row"); // told, because on a narrow screen they are not laid out as a table
  for (const cell of made.children) cell.setAttribute("role", "cell");
  made.its.action.append(made.its.name = make("span"), made.its.id = make("span", "id"));
  return made;
}

function showReservations({reservations: rows, has_more: isCut}) {
  keep(byId("reservations"), rows, (row) => row.reservation_id, newReservation, ({its}, row) => {
    tell(its.name, `${row.action.kind} ${row.action.name}`);
    tell(its.id, row.reservation_id);
    nameScope(its.scope, row.scope_path);
    tell(its.holds, worded(amountOf(row.reserved), row.reserved.unit));
    since(its.age, "", row.created_at_ms);
    until(its.expires, "in ", row.expires_at_ms);
  });
  byId("of-reservations").querySelector("table").hidden = rows.length === 0;
  tell(byId("count"), rows.length ? ` ${rows.length}${isCut ? " and more" : ""}` : "");
  empty("of-reservations", rows.length === 0, isCut ? "There are more: those that expire first are shown." : "");
}

// ---- Periods ----

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

/** What was spent in each period of a budget, the running one at the end. */
function showPeriods({budgets, extra}) {
  const closed = new Map();
  for (const period of extra.periods) {
    const id = `${period.scope} ${period.unit}`;
    if (!closed.has(id)) closed.set(id, []);
    closed.get(id).push(columnOf(period));
  }
  const charts = budgets.filter((budget) => budget.running || closed.has(budget.id));
  keep(byId("periods"), charts, (budget) => budget.id, newChart, (element, budget) => {
    const {its} = element;
    const columns = closed.get(budget.id) || [];
    nameScope(its.path, budget.path);
    tell(its.says, budget.running ? periodWords(budget.running) : "It does not start over any more.");
    if (budget.running) {
      until(its.ends, `Next on ${instant(budget.running.end_ms)}, in `, budget.running.end_ms);
      columns.push({...budget, id: "running", when: `since ${instant(budget.running.start_ms)}`});
    } else untimed(its.ends);
    showColumns(element, columns, budget.unit);
  });
  const cut = "There are more budgets: the periods of the first ones are shown.";
  empty("of-periods", charts.length === 0, extra.has_more ? cut : "");
}

function columnOf({start_ms: start, end_ms: end, allocated, spent, debt}) {
  const amounts = {allocated: BigInt(allocated), spent: BigInt(spent), debt: BigInt(debt)};
  return {id: String(start), when: `${instant(start)} to ${instant(end)}`, ...amounts};
}

const ROLLOVERS = new Map([
  ["CARRY_FORWARD", ", with what is left added"],
  ["CAP_AT_ALLOCATED", ", with what is left added up to the allocation"],
]);

function periodWords({period, rollover_policy: policy}) {
  const each = /^\d+h$/.test(period) ? `every ${span(parseInt(period, 10) * 3600000)}` : `each ${period}`;
  return `Starts over ${each}${ROLLOVERS.get(policy) || ""}.`;
}

function newChart() {
  const made = assemble("li", "chart", {path: "h3", says: "p", ends: "p"});
  const {its} = made;
  its.path.className = "name";
  its.svg = draw("svg", {preserveAspectRatio: "none", "aria-hidden": "true"}); // the table says the same
  const [numbers, table] = [make("details"), make("table")];
  const head = table.createTHead().insertRow();
  for (const title of ["Period", "Spent", "Of"]) {
    const cell = make("th", "", title);
    cell.scope = "col";
    head.append(cell);
  }
  its.rows = table.createTBody();
  numbers.append(make("summary", "", "In numbers"), table);
  made.append(its.svg, numbers);
  return made;
}

function showColumns({its}, columns, unit) {
  let most = 1n;
  for (const {allocated, spent, debt} of columns) {
    for (const one of [allocated, spent + debt]) if (one > most) most = one;
  }
  const height = (amount) => Number((amount * 10000n) / most) / 100;
  const slots = Math.max(columns.length, 6);
  its.svg.setAttribute("viewBox", `0 0 ${slots * 10} 100`);
  keep(its.svg, columns, ({id}) => id, newColumn, (element, {id, when, allocated, spent, debt}) => {
    element.setAttribute("class", id === "running" ? "running" : "");
    tell(element.its.title, `${when}: ${worded(spent, unit)} of ${worded(allocated, unit)}`);
    const x = (slots - columns.length + columns.findIndex((one) => one.id === id)) * 10 + 1;
    place(element.its.allocated, x, 0, height(allocated));
    place(element.its.spent, x, 0, height(spent));
    place(element.its.debt, x, height(spent), height(debt));
  });
  keep(its.rows, columns, ({id}) => id, newRow, (row, {when, allocated, spent, debt}) => {
    tell(row.cells[0], when);
    tell(row.cells[1], worded(spent, unit) + (debt > 0n ? ` and ${worded(debt, unit)} of debt` : ""));
    tell(row.cells[2], worded(allocated, unit));
  });
}

function place(rect, x, bottom, height) {
  rect.setAttribute("x", String(x));
  rect.setAttribute("y", String(100 - bottom - height));
  rect.setAttribute("height", String(height));
}

function newColumn() {
  const made = draw("g", {});
  made.its = {};
  made.append(made.its.title = draw("title", {}));
  for (const part of ["allocated", "spent", "debt"]) {
    made.append(made.its[part] = draw("rect", {class: part, width: 8}));
  }
  return made;
}

function newRow() {
  const made = make("tr");
  for (let cell = 0; cell < 3; cell += 1) made.insertCell();
  return made;
}

// ---- The whole ----

let shown = null; // what was found last
let seenAt = ""; // when, as text
let isOld = false; // whether a look has failed since

function show(found) {
  const focused = document.activeElement;
  const byBudget = (rows) => new Map((rows || []).map((row) => [`${row.scope} ${row.unit}`, row]));
  const running = byBudget(found.extra.running);
  const states = byBudget(found.extra.states);
  for (const budget of found.budgets) {
    budget.running = running.get(budget.id);
    budget.status = (states.get(budget.id) || {}).status;
  }
  if (shown && found.at - shown.at > WINDOW) before.clear(); // nobody saw what moved when
  if (isOld) tell(byId("told"), "The server answers again.");
  [shown, isOld] = [found, false];
  showTree(byId("budgets"), treeOf(found.budgets), true);
  empty("of-budgets", found.budgets.length === 0, found.isCut ? "There are more budgets than are shown." : "");
  showChanges(found);
  showReservations(found.live);
  showPeriods(found);
  tell(byId("tenant"), found.tenant ? ` of ${found.tenant}` : "");
  for (const element of document.querySelectorAll(".its-tenant")) tell(element, found.tenant || "TENANT");
  seenAt = new Date().toLocaleTimeString();
  tell(byId("updated"), `live, ${seenAt}`);
  document.body.classList.remove("is-old");
  byId("again").hidden = true;
  const wasAsked = !byId("ask").hidden;
  showPart(true);
  if (wasAsked || focused.hidden) byId("h-budgets").focus({preventScroll: true}); // what had it is gone
  else if (focused !== document.activeElement && focused.isConnected) focused.focus({preventScroll: true}); // was moved
}

/** The ledger, or the form that asks for a key. */
function showPart(hasLedger) {
  byId("ask").hidden = hasLedger;
  for (const id of ["ledger", "live", "forget"]) byId(id).hidden = !hasLedger;
}

function showTrouble(text) {
  isOld = true;
  document.body.classList.add("is-old");
  tell(byId("told"), shown ? `${text} What you see is old, from ${seenAt}.` : text);
  tell(byId("updated"), `old, ${seenAt}`);
  for (const id of ["again", "forget"]) byId(id).hidden = false;
}

// ---- The key, and looking again and again ----

const PLACE = "cycles-api-key";
const PAUSE = 2500; // milliseconds from the end of one look to the next
const LONGEST_PAUSE = 20000;

/** The tab's own storage. A browser that is told to keep nothing refuses it; then a reload asks for the key again. */
const storage = (() => {
  try {
    return window.sessionStorage;
  } catch {
    return {getItem: () => null, setItem() {}, removeItem() {}};
  }
})();

let key = storage.getItem(PLACE);
let looking = null; // what stops the look that is under way
let timer = 0;
let failures = 0;

async function refresh() {
  clearTimeout(timer);
  if (key === null || looking || document.hidden) return;
  const own = looking = new AbortController();
  const started = performance.now();
  try {
    const found = await look(own.signal);
    if (looking !== own) return;
    show(found);
    failures = 0;
  } catch (error) {
    if (looking !== own) return; // the key was forgotten meanwhile
    if (error instanceof KeyRefused) {
      forget(error.message);
      return;
    }
    failures += 1;
    if (!(error instanceof NoAnswer)) console.error(error);
    showTrouble(error instanceof NoAnswer ? error.message : "The server's answer is not the protocol's.");
  }
  looking = null;
  // Where a look takes long, because of the server or of many budgets, they are to be fewer.
  const pause = Math.max(PAUSE, 2 * (performance.now() - started)) * 2 ** Math.min(failures, 3);
  timer = setTimeout(refresh, Math.min(pause, LONGEST_PAUSE));
}

function forget(why = "") {
  clearTimeout(timer);
  if (looking) looking.abort();
  storage.removeItem(PLACE);
  [key, looking, shown, isOld, failures] = [null, null, null, false, 0];
  before.clear();
  for (const id of ["budgets", "moves", "changes", "reservations", "periods"]) keep(byId(id), [], String);
  for (const id of ["tenant", "updated", "count", "told"]) tell(byId(id), "");
  for (const element of document.querySelectorAll(".its-tenant")) tell(element, "");
  document.body.classList.remove("is-old");
  byId("again").hidden = true;
  showPart(false);
  tell(byId("problem"), why);
  byId("key").setAttribute("aria-invalid", String(why !== ""));
  byId("key").focus();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("key").value.trim();
  byId("key").value = "";
  if (!/^[\x21-\x7e]{1,256}$/.test(given)) {
    forget(given ? "A key is 1 to 256 visible ASCII characters without a space." : "Enter a key.");
    return;
  }
  if (looking) looking.abort(); // it asks with another key
  [key, looking] = [given, null];
  storage.setItem(PLACE, key);
  tell(byId("problem"), "");
  refresh();
});
byId("forget").addEventListener("click", () => forget());
byId("again").addEventListener("click", refresh);
document.addEventListener("visibilitychange", refresh);
window.addEventListener("online", refresh);
setInterval(() => {
  if (shown && !isOld && !document.hidden) document.querySelectorAll("[data-timed]").forEach(showTime);
}, 1000);

byId("plain").hidden = window.isSecureContext;
if (key === null) forget();
else refresh();
