// The details of one request: attempts, tracebacks, arguments, log lines, where it was deferred.

import { ask, attempt, session } from "./api.js";
import { clean, clock, copy, count, duration, h, words } from "./dom.js";

export class Detail {
  constructor(element) {
    this.element = element;
    this.id = null;
    this.home = "#/requests"; // where closing leads
    this.shown = new Map(); // arguments that were asked for, by task
  }

  async open(id, task) {
    const again = this.id === id;
    this.id = id;
    if (!again) this.shown.clear();
    let view;
    try {
      view = await ask(`requests/${encodeURIComponent(id)}`);
    } catch (error) {
      if (this.id !== id) return;
      this.fill(h("h2", {}, "Not here"), h("p.empty", {}, error.message));
      return;
    }
    if (this.id !== id) return;
    this.draw(view, task, !again);
  }

  /** Look again, when something of it has changed. */
  refresh(task) {
    this.wanted = task;
    this.timer ||= setTimeout(() => { this.timer = 0; if (this.id) this.open(this.id, this.wanted); }, 150);
  }

  close() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.id = null;
    this.element.hidden = true;
    this.element.replaceChildren();
    document.body.classList.remove("with-detail");
  }

  fill(...children) {
    const top = this.element.scrollTop;
    const open = new Set([...this.element.querySelectorAll("details[open]")].map((each) => each.dataset.key));
    const held = this.element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    this.element.replaceChildren(
      h("a.close", { href: this.home, "aria-label": "Close the details", "data-key": "close" }, "×"),
      ...children.filter((child) => child !== null));
    this.element.hidden = false;
    document.body.classList.add("with-detail");
    for (const each of this.element.querySelectorAll("details")) {
      if (open.has(each.dataset.key)) each.open = true;
    }
    if (held) this.element.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
    this.element.scrollTop = top;
  }

  draw(view, task, fresh) {
    const rows = view.rows ?? [];
    const lines = view.lines ?? [];
    this.fill(
      h("h2", {}, view.status === undefined ? null : h("span.status", { className: `status s${String(view.status)[0]}` }, String(view.status)),
        " ", view.method ? h("span.method", {}, view.method) : null, " ", clean(view.route || view.label || "unit of work")),
      h("dl.facts", {},
        ...fact("began", clock(view.began)),
        ...fact("response", duration(view.response)),
        ...fact("all done", duration(view.done)),
        ...fact("execution", words(view.execution ?? "deferred")),
        ...fact("id", h("code", {}, view.id))),
      h("p.buttons", {},
        h("button", { type: "button", "data-key": "copy", onclick: () => copy(JSON.stringify(view, null, 2)) }, "Copy as JSON"),
        h("a.button", { href: `api/requests/${view.id}.txt`, target: "_blank", rel: "noopener", "data-key": "txt" }, "Text"),
        h("a.button", { href: `api/requests/${view.id}.svg`, target: "_blank", rel: "noopener", "data-key": "svg" }, "SVG")),
      view.traceback ? h("section", {}, h("h3", {}, "The handler raised"), pre(view.traceback)) : null,
      ...rows.map((row, place) => this.row(row, place, lines)),
      logSection("Log of the request", lines.filter((line) => !line.task)));
    const chosen = task && this.element.querySelector(`[data-task="${CSS.escape(task)}"]`);
    if (chosen) {
      chosen.classList.add("chosen");
      if (fresh || this.task !== task) chosen.scrollIntoView({ block: "start" });
    } else if (fresh) this.element.scrollTop = 0;
    this.task = task;
  }

  row(row, place, lines) {
    const attempts = row.attempts ?? [];
    const begun = attempts.length ? attempts[0].started : undefined;
    const isTask = row.kind === "task";
    return h("section.work", { "data-task": row.id, className: `work is-${row.state}` },
      h("h3", {}, h("span.state", { className: `state is-${row.state}` }, words(row.state)), " ", clean(row.name)),
      h("dl.facts", {},
        ...(isTask ? fact("waited", begun === undefined ? "…" : duration(begun - row.created)) : []),
        ...fact(isTask ? "ran" : "took", begun === undefined || row.ended === undefined || row.state === "enqueued" ? "…" : duration(row.ended - begun)),
        ...(isTask ? fact("execution", words(row.execution)) : []),
        ...(row.outcome && row.outcome !== row.state ? fact("outcome", words(row.outcome)) : []),
        ...(row.site ? fact("deferred at", h("code.site", {}, clean(row.site))) : []),
        ...(isTask && row.id ? fact("id", h("code", {}, row.id)) : [])),
      attempts.length > 1 || attempts.some((each) => each.traceback) ? this.attempts(attempts, place) : null,
      row.error && !attempts.some((each) => each.traceback) ? h("p.error", {}, clean(row.error)) : null,
      row.has_arguments ? this.arguments(row) : null,
      isTask ? logSection("Log", lines.filter((line) => line.task === row.id)) : null);
  }

  attempts(attempts, place) {
    return h("ol.attempts", {}, ...attempts.map((each, index) => {
      const took = each.ended === undefined ? "running" : duration(each.ended - each.started);
      const key = `${place}/${index}`;
      const about = [`Attempt ${index + 1}`, ` · at ${duration(each.started)} · ${took}`,
        each.backoff ? ` · next after ${duration(each.backoff)}` : ""];
      if (!each.traceback) return h("li", {}, ...about);
      return h("li", {}, ...about, h("p.error", {}, clean(each.error.split("\n", 1)[0])),
        h("details", { "data-key": key, open: index === attempts.length - 1 },
          h("summary", { "data-key": `${key}s` }, "Traceback"), pre(each.traceback)));
    }));
  }

  arguments(row) {
    const known = this.shown.get(row.id);
    const place = h("div.arguments");
    const show = (pairs) => {
      place.replaceChildren(h("h4", {}, "Arguments"), pairs.length
        ? h("dl.facts.args", {}, ...pairs.flatMap(([name, text]) => fact(clean(name), h("code", {}, clean(text)))))
        : h("p", {}, "none"));
    };
    if (known) show(known);
    else if (session.role === "operator") {
      place.append(h("button", { type: "button", "data-key": `args-${row.id}`, onclick: () => attempt(async () => {
        const answer = await ask(`tasks/${encodeURIComponent(row.id)}/arguments`);
        this.shown.set(row.id, answer.arguments);
        show(answer.arguments);
      }) }, "Show arguments"));
    } else place.append(h("p.hint", {}, "Arguments are shown to operators only."));
    return place;
  }
}

function fact(name, value) {
  return [h("dt", {}, name), h("dd", {}, value)];
}

function pre(text) {
  return h("pre.trace", { tabIndex: 0, role: "region", "aria-label": "Traceback" }, clean(text));
}

function logSection(title, lines) {
  if (!lines.length) return null;
  return h("section.log", {}, h("h4", {}, `${title} · ${count(lines.length, "line")}`),
    h("ol", {}, ...lines.map((line) => h("li", { className: `level-${line.level.toLowerCase().replace(/[^a-z]/g, "")}` },
      h("span.at", {}, duration(line.at)), " ", h("span.level", {}, line.level), " ", clean(line.text),
      h("span.logger", {}, ` ${clean(line.logger)}`)))));
}
