// The state of now: counts, limits, the drain, the last minute.

import { act, ask, attempt, session } from "./api.js";
import { clean, confirmed, count, duration, h, notify, svg, words } from "./dom.js";

export class Now {
  constructor() {
    this.place = h("div");
    this.element = h("section", { "aria-label": "Now" }, this.place);
  }

  async load() {
    this.draw(await ask("now"));
  }

  change(batch) {
    if (batch.now) this.draw({ ...batch.now, depth: this.depth });
  }

  draw(now) {
    this.depth = now.depth;
    const { stats, limits } = now;
    const tile = (name, value, kind = "") => h("div.tile", { className: `tile ${kind}` }, h("dt", {}, name), h("dd", {}, String(value)));
    const held = this.place.contains(document.activeElement);
    this.place.replaceChildren(
      h("dl.tiles", {},
        tile("running", stats.running, stats.running ? "busy" : ""),
        tile("pending", stats.pending),
        tile("succeeded", stats.succeeded),
        tile("failed", stats.failed, stats.failed ? "bad" : ""),
        tile("cancelled", stats.cancelled),
        tile("discarded", stats.discarded),
        tile("abandoned", stats.abandoned, stats.abandoned ? "bad" : "")),
      h("div.card.panel", {}, h("h2", {}, "The last minute"), chart(now.throughput),
        h("ul.legend", {}, h("li", {}, h("i.swatch.bar.done"), "tasks that succeeded"), h("li", {}, h("i.swatch.bar.failed"), "others"),
          h("li", {}, h("i.swatch.line"), "requests"))),
      h("div.panels", {},
        panel("Drain", drainFacts(now)),
        panel("Limits", Object.entries(limits).map(([name, value]) => [words(name), name === "drain_timeout" || name === "cancel_grace" ? duration(value) : value])),
        now.depth ? panel("Engine", Object.entries(now.depth)) : null,
        panel("Recorded", [["requests since the start", now.requests], ["kept", now.kept], ["about", `${Math.round(now.bytes / 1024)} KiB`], ["process", now.pid]],
          session.role === "operator" ? this.forget(held) : null)));
    if (held) this.place.querySelector("button")?.focus();
  }

  forget() {
    return h("p.buttons", {}, h("button", { type: "button", onclick: () => attempt(async () => {
      if (!(await confirmed("Forget all requests that are recorded?", "Forget"))) return;
      const { forgotten } = await act("forget", {});
      notify(`${count(forgotten, "request")} forgotten`);
      await this.load();
    }) }, "Forget all"));
  }

  step() {}

  select() {}

  escape() {
    return false;
  }
}

function panel(title, facts, ...more) {
  return h("div.card.panel", {}, h("h2", {}, title),
    h("dl.facts", {}, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])), ...more);
}

function drainFacts({ draining, drain }) {
  const state = draining ? "draining, or closed" : "accepting work";
  if (!drain) return [["state", state]];
  if (drain.left !== null) return [["state", state], ["waits for", count(drain.unfinished, "task")], ["deadline in", duration(drain.left)]];
  return [["state", state], ["the last one took", duration(drain.duration)], ["finished", drain.finished], ["failed", drain.failed],
    ["left behind", drain.late.length ? drain.late.map((task) => clean(task.name)).join(", ") : "nothing"]];
}

/** A bar a second: what succeeded, and on top of it what did not; the line is requests. */
function chart(seconds) {
  const width = 600, height = 96;
  const most = Math.max(1, ...seconds.map(([requests, good, bad]) => Math.max(requests, good + bad)));
  const step = width / seconds.length;
  const y = (value) => height - (value / most) * (height - 8);
  const totals = seconds.reduce((sum, [requests, good, bad]) => [sum[0] + requests, sum[1] + good, sum[2] + bad], [0, 0, 0]);
  const label = `In the last minute: ${count(totals[0], "request")}, ${count(totals[1], "task")} succeeded, ${totals[2]} did not; at most ${most} in a second`;
  const bars = seconds.flatMap(([, good, bad], place) => [
    good ? svg("rect", { class: "done", x: place * step + 0.5, y: y(good), width: step - 1, height: height - y(good) }) : null,
    bad ? svg("rect", { class: "failed", x: place * step + 0.5, y: y(good + bad), width: step - 1, height: y(good) - y(good + bad) }) : null,
  ]).filter(Boolean);
  const points = seconds.map(([requests], place) => `${(place + 0.5) * step},${y(requests)}`).join(" ");
  return h("figure.chart", {},
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
      svg("line", { class: "base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }), ...bars, svg("polyline", { class: "requests", points })),
    h("figcaption", {}, h("span", {}, "60 s ago"), h("span", {}, `most in a second: ${most}`), h("span", {}, "now")));
}
