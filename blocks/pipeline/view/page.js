"use strict";
const data = @data@;
const svg = document.querySelector("svg"), tip = document.getElementById("tip");
const SVG = "http://www.w3.org/2000/svg";
const longest = Math.max(...data.panels.map(panel => panel.span)) / data.span;
let zoom = 1, shift = 0, shown = data.shown.slice();

const px = t => t * data.tick / data.span * data.plot;          // ticks to pixels of the whole step
const at = x => (x * zoom + shift);                             // pixels of the whole step to shown ones
const element = (name, attributes, text) => {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return node;
};

function timeText(t) {
  if (!data.unit) return +t.toPrecision(5) + "";
  if (data.unit !== "s") return +t.toPrecision(5) + " " + data.unit;
  for (const [size, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "us"], [1e-9, "ns"]])
    if (Math.abs(t) >= size) return +(t / size).toPrecision(4) + " " + name;
  return "0 s";
}

function bytesText(n) {
  for (const name of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024) return +n.toPrecision(3) + " " + name;
    n /= 1024;
  }
  return +n.toPrecision(3) + " TiB";
}

function drawAxis() {
  const from = -shift / zoom / data.plot * data.span, wide = data.span / zoom;
  const power = 10 ** Math.floor(Math.log10(wide / 10));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= wide / 10 * (1 - 1e-9));
  const axis = svg.querySelector(".axis"), top = data.axis[0], bottom = data.axis[1];
  axis.replaceChildren();
  for (let n = Math.ceil(from / step - 1e-9); n * step <= from + wide * (1 + 1e-9); n++) {
    const x = data.left + at(n * step / data.span * data.plot);
    axis.append(element("path", {d: `M${x} ${top}V${bottom}`, stroke: data.grid}));
    axis.append(element("text", {x, y: bottom + 15, "text-anchor": "middle"}, timeText(n * step)));
  }
}

function firstAfter(lane, time) {                               // first bar that ends after a time
  let low = 0, high = lane.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lane[middle][1] <= time) low = middle + 1; else high = middle;
  }
  return low;
}

const named = bar => data.cut ? bar[3] + "," + bar[4] : bar[3] + "";

function drawLabels() {
  const from = -shift / zoom / data.plot * data.span / data.tick;
  const to = from + data.span / zoom / data.tick;
  for (const group of svg.querySelectorAll("g.panel")) {
    const place = group.querySelector(".labels");
    place.replaceChildren();
    const panel = data.panels[+group.dataset.content];
    group.querySelectorAll(".bars path").forEach(p => p.classList.toggle("cut", panel.lines <= zoom));
    if (group.hasAttribute("hidden") || data.lane < 14) continue;
    let count = 0;
    panel.lanes.forEach((lane, rank) => {
      const y = data.tops[+group.dataset.panel] + rank * (data.lane + data.gap) + data.lane / 2 + 3;
      for (let n = firstAfter(lane, from); n < lane.length && lane[n][0] < to && count < 1500; n++) {
        const bar = lane[n], text = named(bar);
        if (px(bar[1] - bar[0]) * zoom < data.letter * (text.length + 1)) continue;
        const x = at(px((bar[0] + bar[1]) / 2)), light = data.dark[bar[2]][bar[3] % data.dark[bar[2]].length];
        place.append(element("text", {x, y, "text-anchor": "middle", style: light ? "fill:#fff" : ""}, text));
        count++;
      }
    });
  }
}

let asked = false;
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    shift = Math.min(0, Math.max(shift, data.plot * (1 - zoom * longest)));
    for (const group of svg.querySelectorAll("g.time"))
      group.setAttribute("transform", `translate(${data.left + shift},0) scale(${zoom},1)`);
    drawAxis();
    drawLabels();
    document.getElementById("same").replaceChildren();
  });
}

function zoomBy(factor, x = data.plot / 2) {
  const next = Math.min(Math.max(zoom * factor, 1 / longest), 4000);
  shift = x - (x - shift) * next / zoom;
  zoom = next;
  draw();
}

function fit() {                                                // all of what is shown
  zoom = data.span / Math.max(...shown.map(n => data.panels[n].span));
  shift = 0;
  draw();
}

function place(event) {                                         // pointer in the units of the drawing
  const box = svg.getBoundingClientRect(), scale = data.width / box.width;
  return [(event.clientX - box.left) * scale - data.left, (event.clientY - box.top) * scale];
}

function under(x, y) {                                          // the bar under the pointer
  if (x < 0 || x > data.plot) return null;
  const time = (x - shift) / zoom / data.plot * data.span / data.tick;
  for (let n = 0; n < data.tops.length; n++) {
    const panel = data.panels[shown[n]];
    const rank = Math.floor((y - data.tops[n]) / (data.lane + data.gap));
    if (rank < 0 || rank >= panel.lanes.length) continue;
    const lane = panel.lanes[rank], bar = lane[firstAfter(lane, time)];
    if (bar && bar[0] <= time) return {bar, rank, panel};
  }
  return null;
}

function mark(found) {                                          // the same slice, wherever it is
  const same = document.getElementById("same");
  same.replaceChildren();
  if (!found) return;
  data.tops.forEach((top, n) => data.panels[shown[n]].lanes.forEach((lane, rank) => {
    for (const bar of lane) {
      if (bar[3] !== found.bar[3] || bar[4] !== found.bar[4]) continue;
      const x = at(px(bar[0])), end = at(px(bar[1]));
      if (end < 0 || x > data.plot) continue;
      const left = Math.max(x, 0), wide = Math.max(Math.min(end, data.plot) - left, 1);
      same.append(element("rect", {x: left, y: top + rank * (data.lane + data.gap), width: wide, height: data.lane}));
    }
  }));
}

function point(event) {
  const found = under(...place(event));
  mark(found);
  tip.hidden = !found;
  if (!found) return;
  const [start, end, kind, sequence, slice, stage, cpu, live] = found.bar;
  const lines = [`${data.kinds[kind][0]}${stage}(${sequence},${slice})  ${data.kinds[kind][1]}`,
    `rank ${found.rank}, stage ${stage}, sequence ${sequence}, slice ${slice}` +
      (found.panel.tokens ? `, tokens [${data.bounds[sequence][slice]}, ${data.bounds[sequence][slice + 1]})` : ""),
    `takes ${timeText((end - start) * data.tick)}, from ${timeText(start * data.tick)}`];
  if (cpu >= 0) lines.push(`CPU ${timeText(cpu * data.tick)}`);
  if (live >= 0) lines.push(`holds ${bytesText(live)} when it ends`);
  tip.textContent = lines.join("\n");
  const wide = tip.offsetWidth, left = Math.min(event.clientX + 14, innerWidth - wide - 8);
  tip.style.left = Math.max(left, 8) + "px";
  tip.style.top = (event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18) + "px";
}

let held = null;
svg.addEventListener("pointerdown", event => {
  held = [event.clientX, shift];
  svg.setPointerCapture(event.pointerId);
});
svg.addEventListener("pointermove", event => {
  if (!held) return point(event);
  svg.classList.add("drag");
  tip.hidden = true;
  shift = held[1] + (event.clientX - held[0]) * data.width / svg.getBoundingClientRect().width;
  draw();
});
for (const name of ["pointerup", "pointercancel"])
  svg.addEventListener(name, () => { held = null; svg.classList.remove("drag"); });
svg.addEventListener("pointerleave", () => { tip.hidden = true; mark(null); });
svg.addEventListener("wheel", event => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 250), place(event)[0]);
}, {passive: false});
document.getElementById("in").onclick = () => zoomBy(2);
document.getElementById("out").onclick = () => zoomBy(0.5);
document.getElementById("all").onclick = fit;
addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = {"+": () => zoomBy(2), "=": () => zoomBy(2), "-": () => zoomBy(0.5), "0": fit,
    ArrowLeft: () => { shift += data.plot / 4; draw(); }, ArrowRight: () => { shift -= data.plot / 4; draw(); }}[event.key];
  if (act) { act(); event.preventDefault(); }
});

for (const input of document.querySelectorAll("input[data-slider]")) {
  input.addEventListener("input", () => {
    const slider = data.sliders[+input.dataset.slider], choice = slider[+input.value];
    for (const other of document.querySelectorAll("input[data-slider]"))
      if (other !== input) {
        other.value = other.defaultValue;
        other.nextElementSibling.value = data.sliders[+other.dataset.slider][+other.value].label;
      }
    input.nextElementSibling.value = choice.label;
    shown[0] = choice.panel;
    for (const group of svg.querySelectorAll("g.panel[data-panel='0']"))
      group.toggleAttribute("hidden", +group.dataset.content !== choice.panel);
    for (const memory of svg.querySelectorAll("g.memory.planned"))  // it is that of the first plan
      memory.style.opacity = choice.panel ? .3 : 1;
    fit();
  });
}
draw();
