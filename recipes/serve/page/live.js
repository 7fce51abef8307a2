"use strict";
const EVERY_MS = 2000, PATIENCE_MS = 10000, KEY = "llm-blocks-key";
const $ = (id) => document.getElementById(id);
let answered = 0, wrongKey = false;

/* Everything a server sent is put in as text, never as markup. */
function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
function draw(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const known = (value) => value !== null && value !== undefined;
const percent = (share) => !known(share) ? "–" : share === 1 ? "100 %" :
  (Math.floor(share * 1000) / 10).toFixed(1) + " %";
function seconds(value) {
  if (!known(value)) return "–";
  if (value >= 100) return value.toFixed(0) + " s";
  if (value >= 1) return value.toFixed(2) + " s";
  return (value * 1000).toPrecision(value < 0.001 ? 2 : 3).replace(/\.0+$/, "") + " ms";
}
function rate(value) {
  return !known(value) ? "–" : value >= 100 ? value.toFixed(0) : value.toFixed(value < 1 ? 2 : 1);
}
function size(bytes) {
  if (!known(bytes)) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) { bytes /= 1024; at += 1; }
  return (bytes >= 100 ? bytes.toFixed(0) : bytes.toPrecision(3)) + " " + units[at];
}
function span(value) {
  const whole = Math.round(value);
  if (whole < 60 || whole < 120 && whole % 60) return whole + " s";
  const two = (large, unit, small, less) => large + unit + (small ? " " + small + less : "");
  if (whole < 3600) return two(Math.floor(whole / 60), " min", whole % 60, " s");
  if (whole < 86400) return two(Math.floor(whole / 3600), " h", Math.floor(whole / 60) % 60, " min");
  return two(Math.floor(whole / 86400), " d", Math.floor(whole / 3600) % 24, " h");
}
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);

/* A line through the shares of entries that have one; it breaks where there is none. */
function shareLine(history, width, height, top) {
  const count = history.limited.length, step = width / count;
  let path = "", down = false;
  history.limited.forEach((limited, at) => {
    if (!limited) { down = false; return; }
    const x = (at + 0.5) * step, y = top + (1 - history.met[at] / limited) * height;
    path += (down ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1);
    if (!down) path += "h0.01";
    down = true;
  });
  return draw("path", {d: path, fill: "none", stroke: "var(--one)", "stroke-width": 2,
    "stroke-linejoin": "round", "stroke-linecap": "round"});
}
function spark(history) {
  const picture = draw("svg", {viewBox: "0 0 110 22", role: "img", "aria-label": "attainment"});
  picture.append(draw("line", {x1: 0, x2: 110, y1: 2, y2: 2, stroke: "var(--line)"}),
    shareLine(history, 110, 18, 2));
  return picture;
}
function historyChart(history) {
  const width = 1120, height = 150, left = 44, right = 46, top = 12, bottom = 22;
  const inner = width - left - right, tall = height - top - bottom;
  const count = history.arrived.length, step = inner / count;
  const rates = history.arrived.map((arrived) => arrived / history.bucket_s);
  const most = Math.max(1 / history.bucket_s, ...rates);
  const picture = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "requests a second and attainment over time"});
  for (const share of [0, 0.5, 1]) {
    const y = top + (1 - share) * tall;
    picture.append(draw("line", {x1: left, x2: width - right, y1: y, y2: y,
      stroke: "var(--line)"}),
      draw("text", {x: left - 6, y: y + 4, "text-anchor": "end"}, 100 * share + " %"));
  }
  rates.forEach((one, at) => {
    const bar = draw("rect", {x: left + at * step + 1, y: top + (1 - one / most) * tall,
      width: Math.max(step - 2, 1), height: one / most * tall, fill: "var(--two)"});
    bar.append(draw("title", {}, rate(one) + " requests/s"));
    picture.append(bar);
  });
  const line = draw("g", {transform: `translate(${left} 0)`});
  line.append(shareLine(history, inner, tall, top));
  picture.append(line,
    draw("text", {x: width - right + 6, y: top + 4}, rate(most) + "/s"),
    draw("text", {x: width - right + 6, y: top + tall + 4}, "0/s"),
    draw("text", {x: left, y: height - 5}, span(count * history.bucket_s) + " ago"),
    draw("text", {x: width - right, y: height - 5, "text-anchor": "end"}, "now"),
    draw("rect", {x: width / 2 - 150, y: height - 14, width: 10, height: 10,
      fill: "var(--two)"}),
    draw("text", {x: width / 2 - 135, y: height - 5}, "requests/s (right)"),
    draw("line", {x1: width / 2 - 12, x2: width / 2 + 4, y1: height - 9, y2: height - 9,
      stroke: "var(--one)", "stroke-width": 2}),
    draw("text", {x: width / 2 + 9, y: height - 5}, "answered within their limits (left)"));
  return picture;
}

function fact(value, name, bad) {
  return make("li", {}, make("b", bad ? {class: "bad"} : {}, value), make("span", {}, name));
}
function facts(state) {
  const limited = sum(state.history.limited), ready =
    state.groups.filter((group) => group.state === "ready").length;
  const share = limited ? sum(state.history.met) / limited : null;
  const seen = Math.min(state.window_s, state.uptime_s);
  const lately = "last " + (seen < 120 ? span(seen) : Math.floor(seen / 60) + " min");
  return [
    fact(percent(share), "in time, " + lately, share !== null && share < 0.99),
    fact(rate(sum(state.models.map((model) => model.requests_per_s))) + "/s", "requests"),
    fact(String(sum(state.models.map((model) => model.num_in_flight))), "in flight"),
    fact(ready + " of " + state.groups.length, "groups ready", ready < state.groups.length),
    fact(String(state.models.length), state.models.length === 1 ? "model" : "models"),
    fact(span(state.uptime_s), "up"),
  ];
}

function bar(name, parts, value, tip) {
  const track = make("div", {class: "track"});
  for (const [share, colour] of parts)
    track.append(make("i", {style: `width:${100 * Math.min(share, 1)}%;background:${colour}`}));
  return make("div", {class: "bar", title: tip || ""}, make("span", {class: "muted"}, name), track,
    make("span", {}, value));
}
function replica(one, most) {
  const side = one.state === "ready" ?
    make("span", {class: "muted", title: "weights"}, size(one.weight_bytes)) :
    make("span", {class: "state " + one.state}, one.state);
  const room = known(one.kv_tokens) ? one.kv_tokens.toLocaleString("en") + " tokens" : "";
  return make("div", {class: "replica"},
    make("div", {}, make("span", {class: "name", title: one.model}, one.model), side),
    bar("queue", [[one.num_running / most, "var(--one)"], [one.num_waiting / most, "var(--two)"]],
      one.num_running + " + " + one.num_waiting, "running + waiting"),
    known(one.kv_used) ? bar("KV", [[one.kv_used, "var(--kv)"]], percent(one.kv_used), room) : null);
}
function groupCard(group, most) {
  const card = make("div", {class: "card group " + group.state},
    make("header", {}, make("b", {}, "group " + group.group),
      make("span", {class: "state " + group.state}, group.state)),
    make("div", {class: "devices", title: "devices"},
      ...group.devices.map((device) => make("i", {}, String(device))),
      make("span", {class: "muted", title: "tensor parallel x pipeline stages"},
        group.configuration)));
  if (group.note) card.append(make("div", {class: "muted"}, group.note));
  card.append(...group.models.map((one) => replica(one, most)));
  if (!group.models.length) card.append(make("div", {class: "replica muted"}, "no model"));
  return card;
}
function groups(state) {
  const nodes = new Map();
  for (const group of state.groups) {
    if (!nodes.has(group.node)) nodes.set(group.node, []);
    nodes.get(group.node).push(group);
  }
  const queues = state.groups.flatMap((group) =>
    group.models.map((one) => one.num_running + one.num_waiting));
  const most = Math.max(8, ...queues);
  return [...nodes].map(([name, on]) => make("div", {class: "node"},
    name ? make("span", {class: "muted"}, name) : null,
    make("div", {class: "grid"}, ...on.map((group) => groupCard(group, most)))));
}

function limited(found, limit) {
  if (!found) return make("td", {}, "–");
  const text = seconds(found.p50) + " / " + seconds(found.p99);
  const late = known(limit) && found.p99 > limit;
  const tip = known(limit) ? "limit " + seconds(limit) : "no limit";
  return make("td", late ? {class: "bad", title: tip} : {title: tip}, text);
}
function models(state) {
  const names = ["model", "replicas", "in flight", "requests/s", "refused/s",
    "TTFT p50 / p99", "TPOT p50 / p99", "latency p50 / p99", "in time", ""];
  const replicas = (model) => state.groups.filter((group) => group.state === "ready" &&
    group.models.some((one) => one.model === model && one.state === "ready")).length;
  const rows = state.models.map((model) => {
    const count = replicas(model.model), low = known(model.attainment) && model.attainment < 0.99;
    return make("tr", {}, make("td", {class: "name", title: model.model}, model.model),
      make("td", count ? {} : {class: "bad"}, String(count)),
      make("td", {}, String(model.num_in_flight)),
      make("td", {}, rate(model.requests_per_s)),
      make("td", {}, rate(model.refused_per_s)),
      limited(model.ttft_s, model.slo_ttft_s), limited(model.tpot_s, model.slo_tpot_s),
      limited(model.latency_s, null),
      make("td", low ? {class: "bad"} : {}, percent(model.attainment)),
      make("td", {}, model.history ? spark(model.history) : ""));
  });
  return [make("tr", {}, ...names.map((name) => make("th", {}, name))), ...rows];
}
function events(state) {
  if (!state.events.length) return [make("li", {class: "muted"}, "none yet")];
  return state.events.slice(0, 20).map((event) => make("li", {},
    make("span", {}, span(event.ago_s) + " ago"),
    make("span", event.kind === "bad" ? {class: "bad"} : {},
      (event.kind === "bad" ? "! " : event.kind === "good" ? "✓ " : "") + event.text)));
}

function show(state) {
  document.title = state.title;
  $("title").textContent = state.title;
  $("facts").replaceChildren(...facts(state));
  $("history").replaceChildren(historyChart(state.history));
  $("groups").replaceChildren(...groups(state));
  $("models").replaceChildren(...models(state));
  $("events").replaceChildren(...events(state));
  $("main").hidden = false;
}
function say(text, bad) {
  $("pulse").textContent = text;
  $("pulse").className = bad ? "bad" : "muted";
}
async function poll() {
  if (document.hidden) return;
  const headers = {}, key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = "Bearer " + key;
  try {
    const answer = await fetch("cluster", {headers, cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE_MS)});
    if (answer.status === 401) {
      wrongKey = true;
      $("ask").hidden = false;
      $("main").hidden = true;
      say(key ? "the key is wrong" : "a key is wanted", Boolean(key));
      return;
    }
    if (!answer.ok) throw new Error("answer " + answer.status);
    const state = await answer.json();
    wrongKey = false;
    $("ask").hidden = true;
    show(state);
    answered = Date.now();
    say("live", false);
  } catch (error) {
    const since = answered ? ", last heard " + span((Date.now() - answered) / 1000) + " ago" : "";
    say("no answer (" + error.message + ")" + since, true);
  }
}
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  wrongKey = false;
  poll();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && !wrongKey) poll(); });
(async () => {
  for (;;) {
    if (!wrongKey) await poll();
    await new Promise((wake) => setTimeout(wake, EVERY_MS));
  }
})();
