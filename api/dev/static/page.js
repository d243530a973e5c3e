// The pool, the pods and the events of one node. Events only wake: what is shown is read anew each time.
import { kinds, parsed, told, toldTogether } from "/dev/events.js";

const READ_AFTER_MS = 300; // several events, one reading; the agent answers at most 50 requests a second on this port
const READ_ANYWAY_MS = 15000;
const RECONNECT_MS = 2000;
const SHOWN_EVENTS = 60;

const $ = (id) => document.getElementById(id);
let chosen = null; // the address whose detail is shown
let holders = new Map(); // address -> allocation

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Make the children of `parent` those of `items`, and keep the nodes of those that stay: focus stays with them. */
function reconcile(parent, items, keyOf, create, update) {
  const wanted = new Set(items.map(keyOf));
  const known = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  }
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const node = known.get(key) ?? create(item);
    node.dataset.key = key;
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    update(node, item);
  }
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---- reading

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok && !path.endsWith("/startup")) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

let timer = null;
let reading = false;
let again = false;

function wake(delay = READ_AFTER_MS) {
  timer ??= setTimeout(read, delay);
}

async function read() {
  timer = null;
  if (reading) {
    again = true;
    return;
  }
  reading = true;
  try {
    const paths = ["/v1/startup", "/v1/pool", "/v1/enis", "/v1/allocations"];
    show(...(await Promise.all(paths.map(ask))));
  } catch {
    wake(RECONNECT_MS);
  } finally {
    reading = false;
    if (again) wake();
    again = false;
  }
}

// ---- showing

function show(startup, pool, enis, allocations) {
  holders = new Map(allocations.flatMap((one) => one.addresses.map((address) => [address, one])));
  showTrouble(startup, pool);
  const counts = [
    ["held", pool.counts.held_count],
    ["free", pool.counts.free_count],
    ["cooling", pool.counts.cooling_count],
    ["waiting", pool.waiter_count],
  ];
  reconcile(
    $("counts"), counts, ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd")),
    (node, [, count]) => setText(node.lastChild, String(count)),
  );
  setText($("reason"), pool.reason);
  const shares = new Map(pool.enis.map((one) => [one.eni_id, one.addresses]));
  reconcile($("enis"), enis, (eni) => eni.eni_id, makeEni, (node, eni) => showEni(node, eni, shares.get(eni.eni_id) ?? []));
  showPods(allocations);
  showDetail();
}

function showTrouble(startup, pool) {
  const stages = startup.ready ? [] : startup.stages.filter((stage) => ["running", "failed"].includes(stage.state));
  const all = [
    ...stages.map((stage) => ({ cause: `starting: ${stage.name}`, message: stage.reason || "under way", remedy: "" })),
    ...pool.conditions,
  ];
  $("trouble").hidden = all.length === 0;
  reconcile(
    $("conditions"), all, (one) => one.cause + one.message,
    () => make("li", {}, make("strong"), make("p"), make("p", { class: "quiet" })),
    (node, one) => {
      setText(node.children[0], one.cause);
      setText(node.children[1], one.message);
      setText(node.children[2], one.remedy);
    },
  );
}

function makeEni(eni) {
  const strip = make("div", { class: "strip", role: "group", "aria-label": `Addresses of ${eni.eni_id}` });
  strip.addEventListener("keydown", onStripKey);
  return make("section", { class: "eni", "aria-label": eni.eni_id }, make("h3"), make("p", { class: "quiet" }), strip);
}

function showEni(node, eni, addresses) {
  const [title, about, strip] = node.children;
  setText(title, eni.eni_id);
  const kind = eni.managed ? "" : ", somebody else's: never touched";
  const where = eni.card === 0 && eni.device === 0 ? "primary" : `card ${eni.card}, device ${eni.device}`;
  setText(about, `${where}, ${eni.primary_address} in ${eni.subnet_cidr}, ${eni.blocks.length} of ${eni.slot_count} slots${kind}`);
  const blocks = blocksOf(eni, addresses);
  reconcile(
    strip, blocks, (block) => block.name,
    (block) => (block.prefix ? make("div", { class: "block" }, make("p", { class: "quiet" }, block.name)) : make("div", { class: "single" })),
    (holder, block) => {
      let cells = holder.querySelector(":scope > .single");
      if (!cells) holder.append((cells = make("div", { class: "single" })));
      reconcile(cells, block.addresses, (one) => one.address, makeCell, showCell);
    },
  );
  const cells = [...strip.querySelectorAll("button")];
  if (!cells.some((cell) => cell.tabIndex === 0) && cells.length) cells[0].tabIndex = 0;
}

/** Prefixes with their addresses, and one block of all the single addresses. */
function blocksOf(eni, addresses) {
  const prefixes = eni.blocks.filter((block) => !block.endsWith("/32")).map((name) => ({ name, prefix: true, addresses: [] }));
  const single = { name: "single", prefix: false, addresses: [] };
  for (const one of addresses) {
    (prefixes.find((block) => contains(block.name, one.address)) ?? single).addresses.push(one);
  }
  return [...(single.addresses.length ? [single] : []), ...prefixes];
}

const asNumber = (address) => address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);

function contains(network, address) {
  const [base, length] = network.split("/");
  const size = 2 ** (32 - Number(length));
  const offset = asNumber(address) - asNumber(base);
  return offset >= 0 && offset < size;
}

function makeCell({ address }) {
  const cell = make("button", { type: "button", class: "cell", tabindex: "-1" }, address.split(".").at(-1));
  const choose = () => {
    chosen = address;
    for (const other of cell.closest(".strip").querySelectorAll("button")) other.tabIndex = other === cell ? 0 : -1;
    showDetail();
  };
  cell.addEventListener("focus", choose);
  cell.addEventListener("click", choose);
  return cell;
}

function showCell(cell, { address, state }) {
  const one = holders.get(address);
  const label = one ? `${address}, held by ${podOf(one)}` : `${address}, ${state}`;
  if (cell.getAttribute("aria-label") === label && cell.dataset.state === state) return;
  cell.dataset.state = state;
  cell.setAttribute("aria-label", label);
  cell.title = label;
}

function onStripKey(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const cells = [...event.currentTarget.querySelectorAll("button")];
  const at = cells.indexOf(document.activeElement);
  const to = event.key === "Home" ? 0 : event.key === "End" ? cells.length - 1 : at + step;
  if (Number.isNaN(to) || at < 0) return;
  event.preventDefault();
  cells[Math.max(0, Math.min(cells.length - 1, to))].focus();
}

const podOf = (one) => (one.pod ? `${one.namespace}/${one.pod}` : one.container_id);

function showDetail() {
  const cells = [...document.querySelectorAll("button.cell")];
  for (const cell of cells) cell.setAttribute("aria-pressed", String(cell.dataset.key === chosen));
  const cell = cells.find((each) => each.dataset.key === chosen);
  if (!cell) return;
  const one = holders.get(chosen);
  setText($("detail"), one ? `${cell.title}, on ${one.host_ifname} since ${when(one.since)}` : cell.title);
}

function showPods(allocations) {
  $("pods").hidden = allocations.length === 0;
  $("no-pods").hidden = allocations.length !== 0;
  const labels = ["Pod", "Address", "Host interface", "ENI", "Since"];
  reconcile(
    $("pods").tBodies[0], allocations, (one) => `${one.container_id} ${one.ifname}`,
    () => make("tr", { role: "row" }, ...labels.map((label) => make("td", { role: "cell", "data-label": label }, make(label === "Since" ? "time" : "span")))),
    (row, one) => {
      const [pod, address, link, eni, since] = [...row.cells].map((cell) => cell.firstChild);
      if (pod.textContent !== podOf(one)) {
        pod.replaceChildren(make("span", { class: "namespace" }, one.pod ? `${one.namespace}/` : ""), one.pod || one.container_id);
      }
      for (const node of [address, link, eni]) node.className = "address";
      setText(address, one.addresses.join(", "));
      setText(link, one.host_ifname);
      setText(eni, one.eni_id);
      setText(since, when(one.since));
    },
  );
}

function when(text) {
  const at = new Date(text);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-GB")} ${time}`;
}

// ---- events

let newest = 0;
let latest = []; // the events of the newest line

/** Put an event into the list; what is worth saying aloud of it, which the pool's own bookkeeping is not. */
function tell(event) {
  newest = event.id;
  const list = $("events");
  const { text, bad, group } = told(event);
  const line = list.firstElementChild;
  if (group && line?.dataset.group === group) {
    latest.push(event);
    setText(line.lastChild, toldTogether(latest));
  } else {
    latest = [event];
    const time = make("time", { datetime: event.at }, new Date(event.at).toLocaleTimeString("en-GB"));
    list.prepend(make("li", { "data-group": group }, time, make("span", bad ? { class: "bad" } : {}, text)));
  }
  while (list.children.length > SHOWN_EVENTS) list.lastElementChild.remove();
  return group ? "" : text;
}

let newsTimer = null;

function announce(text) {
  if (!text) return;
  // A burst is one announcement: its last sentence.
  clearTimeout(newsTimer);
  newsTimer = setTimeout(() => setText($("news"), text), 500);
}

function linkIs(state, text) {
  $("link").dataset.state = state;
  setText($("link"), text);
}

let source = null;

function follow() {
  source = new EventSource(`/v1/events?after=${newest}`);
  source.onopen = () => {
    linkIs("live", "live");
    wake(0);
  };
  source.onerror = () => {
    linkIs("lost", "the agent is away, reconnecting");
    // The browser comes back by itself after a lost connection, not after a refusal.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, RECONNECT_MS);
  };
  for (const kind of kinds) {
    source.addEventListener(kind, (message) => {
      announce(tell(JSON.parse(message.data)));
      wake();
    });
  }
  source.addEventListener("missed", () => announce("some events are missing"));
}

async function begin() {
  try {
    const answer = await fetch("/v1/events?after=0&follow=false", { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    for (const event of parsed(await answer.text())) tell(event);
  } catch {
    linkIs("lost", "the agent is away, reconnecting");
    setTimeout(begin, RECONNECT_MS);
    return;
  }
  follow();
}

// A browser that keeps a left page for its back button keeps its connections too, of which it allows six.
addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", (event) => event.persisted && follow());

wake(0);
begin();
setInterval(() => document.visibilityState === "visible" && wake(), READ_ANYWAY_MS);
