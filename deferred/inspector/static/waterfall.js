// A request and everything of it, on one axis.

import { clean, count, duration, h, words } from "./dom.js";

const ENDS = { failed: "failed", cancelled: "cancelled", abandoned: "failed", discarded: "cancelled" };

/** Seconds since the request began, now. */
export const ageOf = (view) => view.age + (performance.now() - view.seen) / 1000;

export const isBad = (row) => ["failed", "abandoned", "rejected", "cancelled"].includes(row.state);

export function isFailed(view) {
  return Boolean(view.error) || (view.status ?? 0) >= 500 || (view.rows ?? []).some(isBad);
}

export const isOpen = (view) => view.done === undefined;

/** The length of the axis: to the end of all, or to now. */
export function spanOf(view) {
  const ends = (view.rows ?? []).map((row) => row.ended ?? 0);
  return Math.max(view.done ?? ageOf(view), view.response ?? 0, ...ends, 1e-6);
}

/** The bars of a row: kind, start, and end, which is undefined while it goes on. */
function barsOf(row) {
  const attempts = row.attempts ?? [];
  const bars = [];
  const begun = attempts.length ? attempts[0].started : row.ended;
  if (row.kind === "task" && (begun === undefined || begun > row.created)) bars.push(["wait", row.created, begun]);
  attempts.forEach((attempt, place) => {
    const last = place === attempts.length - 1;
    const end = attempt.ended ?? row.ended;
    const inside = row.kind === "step" || row.execution === "sequential";
    let kind = ENDS[row.state] ?? (inside ? "inside" : "done");
    if (end === undefined) kind = "running";
    else if (!last || attempt.backoff) kind = "failed";
    bars.push([kind, attempt.started, end]);
    if (attempt.backoff) bars.push(["backoff", end, last ? row.ended : attempts[place + 1].started]);
  });
  return bars;
}

const LEFT = { durable: "stored", fire_and_forget: "let go" };

const TOLD = {
  request: "request", inside: "in the request", wait: "waited", done: "ran", failed: "failed after",
  cancelled: "cancelled after", backoff: "waited to retry", running: "running",
};

/** What a row says to those who do not see the bars. */
function told(row, bars) {
  const parts = bars.map(([kind, start, end]) => `${TOLD[kind]} ${end === undefined ? "since" : duration(end - start)}${end === undefined ? ` ${duration(start)}` : ""}`);
  return [words(row.state), ...parts].join(", ");
}

function trackOf(bars, label) {
  const pieces = bars.map(([kind, start, end]) => {
    const piece = h(`i.bar.${kind}`);
    piece.ends = [start, end];
    return piece;
  });
  return h("span.track", { role: "img", "aria-label": label }, ...pieces);
}

function tookOf(row) {
  const begun = row.attempts?.length ? row.attempts[0].started : row.created;
  return row.ended === undefined ? undefined : row.ended - begun;
}

function rowOf(view, row) {
  const bars = barsOf(row);
  const outlives = row.kind === "task" && row.execution !== "sequential";
  const name = clean(row.name);
  const label = outlives ? [h("span.arrow", { "aria-hidden": "true" }, "↳ "), name] : [name];
  const tried = (row.attempts ?? []).length;
  const shown = row.kind === "task"
    ? h("a.name", { href: `#/requests/${view.id}/${row.id}`, title: name }, ...label)
    : h("span.name", { title: name }, ...label);
  return h("li.row", { className: `row ${row.kind} is-${row.state}` },
    shown,
    trackOf(bars, told(row, bars)),
    h("span.took", {}, row.state === "enqueued" ? "stored" : duration(tookOf(row)),
      tried > 1 ? h("span.tries", { title: count(tried, "attempt") }, ` ×${tried}`) : null),
    row.error ? h("p.error", {}, clean(row.error.split("\n", 1)[0])) : null);
}

const STEPS = [1, 2, 5];
const WIDE = 0.13; // of the axis: about what "response sent" takes, with room around it
const narrow = matchMedia("(max-width: 640px)");

/** The round time between two ticks of an axis of this length. */
function stepOf(whole, most) {
  for (let ten = 1e-6; ; ten *= 10) {
    const step = STEPS.map((each) => each * ten).find((each) => whole / each <= most);
    if (step) return step;
  }
}

/** The time axis above the rows: ticks, and the line of the response through all of them. */
class Axis {
  constructor(sent) {
    this.ticks = h("div.grid");
    this.sent = sent === undefined ? null : h("i.sent", {}, h("span", {}, "response sent"));
    this.at = sent;
    this.element = h("div.over", { "aria-hidden": "true" }, this.ticks, this.sent);
  }

  paint(whole) {
    const wide = narrow.matches ? 0.3 : document.body.classList.contains("with-detail") ? 0.24 : WIDE;
    const step = stepOf(whole, wide === WIDE ? 8 : 5);
    const place = this.at === undefined ? -1 : this.at / whole;
    const left = place < wide / 2 ? place : place > 1 - wide / 2 ? place - wide : place - wide / 2;
    if (this.sent) {
      this.sent.style.left = `${100 * place}%`;
      this.sent.className = place < wide / 2 ? "sent first" : place > 1 - wide / 2 ? "sent last" : "sent";
    }
    const count = Math.floor(whole / step + 1e-9) + 1;
    while (this.ticks.children.length > count) this.ticks.lastChild.remove();
    while (this.ticks.children.length < count) this.ticks.append(h("i.tick", {}, h("span")));
    [...this.ticks.children].forEach((tick, number) => {
      const at = number * step, x = at / whole;
      tick.style.left = `${100 * x}%`;
      const text = number ? duration(at).replace(".0 ", " ") : "0";
      if (tick.textContent !== text) tick.firstChild.textContent = text;
      const half = wide / 3.4;
      tick.classList.toggle("mute", (place >= 0 && x > left - half && x < left + wide + half) || (number > 0 && x > 1 - half / 2));
    });
  }
}

/** Who draws one request; `update` takes what has changed of it, `paint` lets it grow. */
export class Card {
  constructor(view) {
    this.element = h("article.card", { "data-id": view.id });
    this.update(view);
  }

  update(view) {
    this.view = view;
    const deferred = (view.rows ?? []).filter((row) => row.kind === "task" && row.execution !== "sequential").length
      + (view.omitted ?? 0);
    const status = view.status === undefined ? null : h("span.status", { className: `status s${String(view.status)[0]}` }, String(view.status));
    this.summary = h("span.summary");
    const kind = view.response !== undefined ? "request" : view.done === undefined ? "running" : "cancelled";
    const own = [[kind, 0, view.response ?? view.done]];
    const label = clean(view.route || view.label || "unit of work");
    const rows = [
      h("li.row.own", {}, h("span.name", {}, "request"), trackOf(own, `request, ${duration(view.response)}`),
        h("span.took", {}, duration(view.response)), view.error ? h("p.error", {}, clean(view.error)) : null),
      ...(view.rows ?? []).map((row) => rowOf(view, row)),
    ];
    if (view.omitted) rows.push(h("li.row.more", {}, h("span.name", {}, `and ${view.omitted} more`)));
    const held = this.element.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    // A request that did its work and left nothing behind is a line: there is nothing to compare it with.
    const plain = !isOpen(view) && rows.length === 1 && !view.error;
    this.axis = plain ? null : new Axis(view.response);
    const chosen = this.element.classList.contains("chosen") ? " chosen" : "";
    this.element.className = `card${isFailed(view) ? " bad" : ""}${isOpen(view) ? " open" : ""}${plain ? " plain" : ""}${chosen}`;
    this.element.replaceChildren(...[
      h("h2.head", {},
        h("a.go", { href: `#/requests/${view.id}` },
          status, " ", view.method ? h("span.method", {}, view.method) : null, " ", h("span.route", { title: label }, label)),
        h("span.chips", {},
          view.execution ? h("span.chip", {}, words(view.execution)) : null,
          deferred ? h("span.chip.strong", {}, `${deferred} ${LEFT[view.execution] ?? "deferred"}`) : null),
        this.summary),
      plain ? null : h("div.waterfall", {}, this.axis.element, h("ol.rows", {}, ...rows)),
    ].filter(Boolean));
    if (held) [...this.element.querySelectorAll("a")].find((link) => link.getAttribute("href") === held)?.focus({ preventScroll: true });
    this.pieces = [...this.element.querySelectorAll(".track .bar")];
    this.paint();
  }

  get open() {
    return isOpen(this.view);
  }

  paint() {
    const whole = spanOf(this.view);
    const { response, done } = this.view;
    const summary = this.axis ? `response ${duration(response)} · all done ${duration(done)}` : `response ${duration(response)}`;
    if (this.summary.textContent !== summary) this.summary.textContent = summary;
    this.axis?.paint(whole);
    for (const piece of this.pieces) {
      const [start, end = whole] = piece.ends;
      piece.style.left = `${(100 * start) / whole}%`;
      piece.style.width = `${(100 * Math.max(0, end - start)) / whole}%`;
    }
  }
}

/** Let the cards of running requests grow, a few times a second, as long as there are any. */
export class Growth {
  constructor() {
    this.cards = new Set();
    this.frame = 0;
    this.last = 0;
  }

  watch(card) {
    if (card.open) this.cards.add(card);
    else this.cards.delete(card);
    if (this.cards.size && !this.frame) this.frame = requestAnimationFrame((at) => this.grow(at));
  }

  forget(card) {
    this.cards.delete(card);
  }

  grow(at) {
    this.frame = 0;
    if (at - this.last > 45) {
      this.last = at;
      for (const card of this.cards) {
        if (card.element.isConnected) card.paint();
        else this.cards.delete(card);
      }
    }
    if (this.cards.size) this.frame = requestAnimationFrame((next) => this.grow(next));
  }
}
