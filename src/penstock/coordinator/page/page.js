"use strict";
// Shows what /events tells: one snapshot of the job a second. Text is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const HUES = 8;
const SEVERAL = -2;
const QUIET_MS = 6000; // without an event for so long, we say that it is quiet
const AGAIN_MS = 3000;
const $ = (id) => document.getElementById(id);

// Numbers, with their units.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const exact = (number) => whole.format(number);
const plural = (number, noun) => `${exact(number)} ${noun}${number === 1 ? "" : "s"}`;

function scaled(number, step, units) {
  let unit = 0;
  while (number >= step && unit < units.length - 1) { number /= step; unit += 1; }
  return `${number < 9.95 && unit ? number.toFixed(1) : exact(number)} ${units[unit]}`.trim();
}

const rateText = (rate) => (rate >= 1e6 ? scaled(rate, 1000, ["", "k", "M", "G"]) : rate && rate < 10 ? rate.toFixed(1) : exact(rate));
const bytes = (count) => scaled(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
const megabytes = (rate) => (rate / 1e6).toLocaleString("en", { minimumFractionDigits: rate < 99.5e6 ? 1 : 0, maximumFractionDigits: rate < 99.5e6 ? 1 : 0 });

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${plural(Math.floor(s / 86400), "day")} ${Math.floor((s % 86400) / 3600)} h`;
}

function percent(part, whole_) {
  if (!whole_) return "100 %";
  const share = Math.floor((part / whole_) * 1000) / 10; // 100 % is only said when it is
  return `${share.toFixed(share < 100 ? 1 : 0)} %`;
}

// The document is changed only where something differs, so a selection and the focus stay.

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function make(tag, attributes = {}, ...inside) {
  const element = ["svg", "path"].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

function keep(parent, key, build) { // the child of a key, made if it isn't there
  parent.kept ??= new Map();
  let child = parent.kept.get(key);
  if (!child) { child = build(); parent.kept.set(key, child); }
  return child;
}

function arrange(parent, keys) { // exactly these children, in this order
  const wanted = new Set(keys);
  for (const [key, child] of parent.kept ?? []) if (!wanted.has(key)) { child.remove(); parent.kept.delete(key); }
  keys.forEach((key, place) => {
    const child = parent.kept.get(key);
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
}

const hue = (rank) => (rank === SEVERAL ? "several" : `rank${rank % HUES}`);

// Progress.

const PHASES = { gathering: "Gathering nodes", running: "Running", drained: "Drained", failed: "Failed", following: "Standing by" };

function showProgress(job) {
  const all = job.samples * job.epochs;
  const share = percent(job.done_of_all_epochs, all);
  put($("percent"), share);
  put($("done"), `${exact(job.done_of_all_epochs)} of ${plural(all, "sample")}`);
  const place = `${job.epoch - job.first_epoch + 1} of ${job.epochs}`;
  put($("epoch"), job.epochs > 1 ? `epoch ${job.epoch} (${place}): ${percent(job.done, job.samples)}` : "");
  document.title = `${share} · ${PHASES[job.phase]} · Penstock`;
  put($("left"), job.phase === "drained" ? "0 s" : job.left_s === null ? "–" : duration(job.left_s));
  const unknown = job.nodes.live ? "no rate yet" : "nobody works on it";
  put($("left-note"), job.phase === "running" && job.left_s === null ? unknown : `${plural(job.left_of_all_epochs, "sample")} left`);
  put($("rate"), `${rateText(job.samples_per_s)} samples/s`);
  put($("rate-note"), `${megabytes(job.nodes.bytes_per_s)} MB/s of payload`);
  put($("live"), `${exact(job.nodes.live)} of ${exact(job.world_size)}`);
  const absent = [[job.nodes.silent, "silent"], [job.nodes.gone, "gone"]].filter(([count]) => count);
  put($("live-note"), absent.map(([count, what]) => `${exact(count)} ${what}`).join(", ") || (job.registered < job.world_size ? "waiting for the others" : "all live"));
  put($("leases"), exact(job.leases.count));
  put($("leases-note"), `${exact(job.granted)} granted${job.given_back ? `, ${job.given_back} to redo` : ""}`);
  const cap = job.nodes.max_inflight_bytes;
  put($("memory"), bytes(job.nodes.inflight_bytes));
  put($("memory-note"), cap ? `of ${bytes(cap)} that may be` : "no cap told");
  showSpark(job.rates);
}

function showSpark(rates) {
  const most = Math.max(...rates, 1);
  const across = 60 / Math.max(1, rates.length - 1);
  const points = rates.map((rate, place) => `${(place * across).toFixed(2)},${(19 - (rate / most) * 18).toFixed(2)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  mark($("spark").querySelector(".line"), "d", line);
  mark($("spark").querySelector(".under"), "d", line && `${line}V20H0Z`);
  mark($("spark"), "aria-label", `Rate of the last two minutes: at most ${rateText(Math.max(...rates, 0))} samples/s`);
}

// Samples.

let shown = null; // the job as it was told last
let chosen = null; // cell that is looked at

function paths(job) { // one path for each colour: what is done stands at the bottom, what is leased on it
  const { width, done, leased, rank } = job.cells;
  const drawn = new Map();
  const box = (name, start, end, low, high) => {
    if (high > low) drawn.set(name, `${drawn.get(name) ?? ""}M${start} ${1000 - low}V${1000 - high}H${end}V${1000 - low}Z`);
  };
  for (let start = 0, end; start < done.length; start = end) {
    end = start + 1; // neighbours that look the same are one box
    while (end < done.length - 1 && done[end] === done[start] && leased[end] === leased[start] && rank[end] === rank[start]) end += 1;
    const size = sizeOf(job, start);
    const low = Math.round((done[start] / size) * 1000);
    box("done", start, end, 0, low);
    if (leased[start]) box(hue(rank[start]), start, end, low, Math.max(low + 1, Math.round(((done[start] + leased[start]) / size) * 1000)));
  }
  return drawn;
}

function sizeOf(job, cell) {
  return Math.min(job.cells.width, job.samples - cell * job.cells.width);
}

function showBar(job) {
  const svg = $("bar").querySelector("svg");
  const count = job.cells.done.length;
  mark(svg, "viewBox", `0 0 ${Math.max(1, count)} 1000`);
  const drawn = paths(job);
  for (const [name, d] of drawn) mark(keep(svg, name, () => make("path", { class: name })), "d", d);
  arrange(svg, [...drawn.keys()]);
  mark($("bar"), "aria-valuemax", String(Math.max(0, count - 1)));
  const parts = job.samples ? [0, 1, 2, 3, 4] : [];
  for (const part of parts) {
    const tick = keep($("ticks"), part, () => make("span"));
    put(tick, exact(Math.round((job.samples * part) / 4)));
    tick.style.left = `${part * 25}%`;
  }
  arrange($("ticks"), parts);
  showLegend(job);
  showStretch();
}

function showLegend(job) {
  const few = job.nodes.count <= HUES;
  const items = [["done", "done", `done ${exact(job.done)}`]];
  if (few) for (const node of job.nodes.shown) items.push([hue(node.rank), hue(node.rank), `leased by ${node.id}`]);
  else items.push(["rank0", "rank0", "leased, coloured by rank"]);
  if (job.cells.rank.includes(SEVERAL)) items.push(["several", "several", "leased by several"]);
  items.push(["queued", "queued", `queued ${exact(job.queued)}`]);
  for (const [key, style, text] of items) {
    const item = keep($("legend"), key, () => make("li", {}, make("span", { class: `swatch ${style}`, "aria-hidden": "true" }), make("span")));
    put(item.lastChild, text);
  }
  arrange($("legend"), items.map(([key]) => key));
}

function showStretch() {
  const cursor = $("bar").querySelector(".cursor");
  const count = shown ? shown.cells.done.length : 0;
  cursor.hidden = chosen === null || !count;
  if (cursor.hidden) return put($("stretch"), "Point at the bar, or move along it with the arrow keys, to see who has what.");
  chosen = Math.min(chosen, count - 1);
  const { width, done, leased, rank } = shown.cells;
  const size = sizeOf(shown, chosen);
  const start = chosen * width;
  const parts = [];
  if (done[chosen]) parts.push(`${exact(done[chosen])} done`);
  if (leased[chosen]) parts.push(`${exact(leased[chosen])} leased by ${rank[chosen] === SEVERAL ? "several nodes" : nameOf(rank[chosen])}`);
  if (size > done[chosen] + leased[chosen]) parts.push(`${exact(size - done[chosen] - leased[chosen])} queued`);
  const text = `Samples ${exact(start)} to ${exact(start + size - 1)}: ${parts.join(", ")}`;
  cursor.style.left = `${((chosen + 0.5) / count) * 100}%`;
  put($("stretch"), text);
  mark($("bar"), "aria-valuenow", String(chosen));
  mark($("bar"), "aria-valuetext", text);
}

function nameOf(rank) {
  const node = shown.nodes.shown.find((each) => each.rank === rank);
  return node ? node.id : `rank ${rank}`;
}

function choose(cell) {
  const count = shown ? shown.cells.done.length : 0;
  chosen = cell === null || !count ? null : Math.max(0, Math.min(count - 1, cell));
  showStretch();
}

$("bar").addEventListener("pointermove", (event) => {
  const box = $("bar").getBoundingClientRect();
  if (shown?.cells) choose(Math.floor(((event.clientX - box.left) / box.width) * shown.cells.done.length));
});
$("bar").addEventListener("pointerleave", () => document.activeElement !== $("bar") && choose(null));
$("bar").addEventListener("blur", () => choose(null));
$("bar").addEventListener("keydown", (event) => {
  const last = (shown?.cells?.done.length ?? 1) - 1;
  const now = chosen ?? -1;
  const to = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, PageUp: now + 50, PageDown: now - 50, Home: 0, End: last, Escape: null }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(to);
});

// Nodes.

function nodeRow() {
  const cell = (name, ...inside) => make("td", name ? { class: name } : {}, ...inside);
  const meter = make("span", { class: "meter", "aria-hidden": "true" }, make("i"), make("i", { class: "high" }));
  const lane = make("svg", { viewBox: "0 0 1000 1", preserveAspectRatio: "none", role: "img" }, make("path", { class: "rest" }), make("path"));
  return make("tr", {}, cell("number"), cell("id", make("span", { class: "swatch", "aria-hidden": "true" }), make("span")), cell(""),
    cell("number"), cell("number"), cell("", meter, make("span")), cell("lane", lane), cell("number"), cell("number"), cell("number"));
}

function showNode(row, node, leases, job) {
  const [rank, id, status, rate, payload, memory, lane, queued, delivered, heard] = row.children;
  put(rank, String(node.rank));
  mark(id.firstChild, "class", `swatch ${hue(node.rank)}`);
  put(id.lastChild, node.id);
  mark(id, "title", node.id);
  put(status, node.status);
  mark(status, "class", node.status);
  put(rate, rateText(node.samples_per_s));
  put(payload, megabytes(node.bytes_per_s));
  const [meter, text] = memory.children;
  const cap = node.max_inflight_bytes;
  meter.hidden = !cap;
  const share = (count) => `${Math.min(100, (count / (cap || 1)) * 100)}%`;
  meter.children[0].style.width = share(node.inflight_bytes);
  meter.children[1].style.left = share(node.ram_high_water_bytes);
  meter.children[1].hidden = !node.ram_high_water_bytes;
  put(text, cap ? `${bytes(node.inflight_bytes)} of ${bytes(cap)}` : bytes(node.inflight_bytes));
  mark(memory, "title", `at most ${bytes(node.ram_high_water_bytes)} so far`);
  showLane(lane.firstChild, node, leases, job);
  put(queued, exact(node.queued_blocks));
  put(delivered, exact(node.samples));
  put(heard, node.heard_s < 1 ? "now" : `${duration(node.heard_s)} ago`);
}

function showLane(svg, node, leases, job) {
  const place = (sample) => (sample / (job.samples || 1)) * 1000;
  const box = (start, end, least) => (end > start ? `M${place(start).toFixed(2)} 0H${Math.max(place(end), place(start) + least).toFixed(2)}V1H${place(start).toFixed(2)}Z` : "");
  const [rest, done] = svg.children;
  mark(svg, "class", hue(node.rank));
  mark(rest, "d", leases.map((lease) => box(lease.cursor, lease.end, 3)).join(""));
  mark(done, "d", leases.map((lease) => box(lease.start, lease.cursor, 0)).join(""));
  const said = leases.map((lease) => `${exact(lease.start)} to ${exact(lease.end)}, at ${exact(lease.cursor)}`);
  mark(svg, "aria-label", said.length ? `${plural(node.leases, "lease")}: ${said.join("; ")}` : plural(node.leases, "lease"));
}

function showNodes(job) {
  const { shown: nodes, count } = job.nodes;
  const body = $("nodes");
  const of = new Map();
  for (const lease of job.leases.shown) of.set(lease.node, [...(of.get(lease.node) ?? []), lease]);
  for (const node of nodes) showNode(keep(body, node.id, nodeRow), node, of.get(node.id) ?? [], job);
  arrange(body, nodes.map((node) => node.id));
  const notes = [];
  if (nodes.length < count) notes.push(`${nodes.length} of ${exact(count)}: the silent ones, then the slowest`);
  if (job.leases.shown.length < job.leases.count) notes.push(`bars of ${job.leases.shown.length} of ${plural(job.leases.count, "lease")}, those that end soonest`);
  put($("nodes-note"), notes.join("; "));
}

// Events.

const SENTENCES = {
  membership_wait: (f) => `${f.registered} of ${plural(f.world_size, "node")} registered`,
  membership_timeout: (f) => `only ${f.registered} of ${plural(f.world_size, "node")} came in time`,
  lease_granted: (f) => `${f.node} got ${f.lease}: samples ${exact(f.start)} to ${exact(f.end)}`,
  lease_completed: (f) => `${f.node} completed ${f.lease}: samples ${exact(f.start)} to ${exact(f.end)}`,
  lease_expired: (f) => `${f.lease} of ${f.node} ended at ${exact(f.cursor)}, before ${exact(f.end)}: ${f.why}`,
  range_requeued: (f) => `samples ${exact(f.start)} to ${exact(f.end)} of ${f.node} go to whoever asks next`,
  rank_released: (f) => `${plural(f.blocks, "block")} of ${f.node} go to the others`,
  cursor_regressed: (f) => `${f.node} said ${exact(f.cursor)} for ${f.lease}, which was at ${exact(f.was)}; refused`,
  job_drained: (f) => `every one of ${plural(f.samples, "sample")} is done`,
};
const TONES = { lease_expired: "warn", range_requeued: "warn", rank_released: "warn", cursor_regressed: "bad", membership_timeout: "bad", overlap_detected: "bad", job_drained: "good" };

function sentence(event) {
  try {
    if (SENTENCES[event.event]) return SENTENCES[event.event](event.fields);
  } catch { /* fields of another version: as they are, then */ }
  return Object.entries(event.fields).map(([name, value]) => `${name}=${value}`).join(" ");
}

function showEvents(job) {
  const keys = [];
  const seen = new Map();
  for (const event of [...job.events].reverse()) {
    const alike = `${event.event} ${JSON.stringify(event.fields)}`;
    const key = `${alike} ${seen.get(alike) ?? 0}`;
    seen.set(alike, (seen.get(alike) ?? 0) + 1);
    const item = keep($("events"), key, () => make("li", { class: TONES[event.event] ?? "" }, make("time"), make("code", {}, event.event), make("span", {}, sentence(event))));
    put(item.firstChild, event.ago_s < 1 ? "now" : `${duration(event.ago_s)} ago`);
    keys.push(key);
  }
  arrange($("events"), keys);
  put($("events-note"), keys.length ? "newest first" : "nothing yet");
}

// All of it.

function show(job) {
  shown = job.phase === "following" ? null : job;
  put($("phase"), PHASES[job.phase] ?? job.phase);
  mark($("phase"), "data-phase", job.phase);
  document.body.classList.toggle("drained", job.phase === "drained");
  $("job").hidden = !shown;
  const notice = noticeOf(job);
  $("notice").hidden = !notice;
  put($("notice"), notice);
  if (!shown) return void (document.title = "Standing by · Penstock");
  put($("manifest"), job.manifest_hash.length > 24 ? `${job.manifest_hash.slice(0, 20)}…` : job.manifest_hash);
  mark($("manifest"), "title", `The manifest's hash: ${job.manifest_hash}`);
  showProgress(job);
  showBar(job);
  showNodes(job);
  showEvents(job);
  put($("about"), [
    `blocks of ${plural(job.block_samples, "sample")}, ${job.shuffle ? `shuffled by seed ${job.seed}` : "in order"}`,
    `a lease lasts ${duration(job.lease_ttl_s)} without a sign`,
    job.since_s === null ? "nobody has registered" : `the first node registered ${duration(job.since_s)} ago`,
    `last fence ${exact(job.fence)}`,
  ].join(" · "));
}

function noticeOf(job) {
  if (job.phase === "following") return `This coordinator doesn't lead the job; ${job.leader ? `${job.leader} does` : "nobody does yet"}.`;
  if (job.phase === "failed") return job.reason;
  if (job.phase !== "gathering") return "";
  const patience = job.barrier_timeout_s === null ? "" : ` They have ${duration(job.barrier_timeout_s)} from the first one on.`;
  return `Waiting for ${plural(job.world_size - job.registered, "more node")} of ${job.world_size}.${patience}`;
}

// The connection.

let source = null;
let heardMs = 0;
let triedMs = 0;

function connection(state, text) {
  mark($("connection"), "data-state", state);
  put($("connection-text"), text);
  document.body.classList.toggle("lost", state === "lost");
}

function connect() {
  source?.close();
  triedMs = Date.now();
  source = new EventSource("/events");
  source.onmessage = (message) => {
    heardMs = Date.now();
    connection("live", "live");
    show(JSON.parse(message.data));
  };
  source.onerror = () => { // the browser tries again by itself, unless it was refused
    lost();
    if (source.readyState === EventSource.CLOSED) triedMs = Date.now() - QUIET_MS + AGAIN_MS;
  };
}

function lost() {
  connection("lost", heardMs ? `connection lost; last heard ${duration((Date.now() - heardMs) / 1000)} ago` : "no connection; trying again");
}

setInterval(() => { // a line that was cut tells nobody
  if (heardMs && Date.now() - heardMs > QUIET_MS) lost();
  if (Date.now() - Math.max(heardMs, triedMs) > QUIET_MS) connect();
}, 1000);
connect();
