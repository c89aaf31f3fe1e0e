// All tasks of all requests, filtered.

import { ask, attempt } from "./api.js";
import { clean, clock, count, duration, h, words } from "./dom.js";

export function choice(name, label, onchange) {
  return h("select", { name, "aria-label": label, onchange }, h("option", { value: "" }, label));
}

/** Set the options of a select, keeping what is chosen. */
export function offer(select, values) {
  const known = [...select.options].slice(1).map((option) => option.value);
  const chosen = select.value || select.wanted || "";
  const all = chosen && !values.includes(chosen) ? [...values, chosen] : values;
  if (known.join("\n") !== all.join("\n")) {
    select.replaceChildren(select.options[0], ...all.map((value) => h("option", { value }, clean(words(value)))));
  }
  select.value = chosen;
  select.wanted = "";
}

export class Tasks {
  constructor() {
    const again = () => this.refilter();
    this.search = h("input", {
      type: "search", id: "search", placeholder: "Search  /", maxLength: 200, autocomplete: "off", spellcheck: false,
      "aria-label": "Search tasks", oninput: again,
    });
    this.name = choice("name", "any name", again);
    this.state = choice("state", "any state", again);
    this.execution = choice("execution", "any execution", again);
    this.body = h("tbody");
    this.total = h("p.hint", { role: "status" });
    this.csv = h("a.button", { href: "api/tasks.csv", download: "tasks.csv" }, "CSV");
    this.empty = h("div.empty", { hidden: true });
    this.more = h("button.more", { type: "button", hidden: true, onclick: () => { this.limit = 500; attempt(() => this.load()); } }, "Show more");
    this.limit = 100;
    const titles = ["Task", "State", "Execution", "Request", "Waited", "Ran", "Began"];
    this.table = h("table.tasks", {}, h("caption.away", {}, "Tasks, the newest first"),
      h("thead", {}, h("tr", {}, ...titles.map((title) => h("th", { scope: "col" }, title)))), this.body);
    this.element = h("section", { "aria-label": "Tasks" },
      h("div.filters", {}, this.search, this.name, this.state, this.execution, this.total, this.csv),
      this.table, this.empty, this.more);
  }

  get query() {
    return { text: this.search.value.trim(), name: this.name.value, state: this.state.value, execution: this.execution.value };
  }

  refilter() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const search = new URLSearchParams(Object.entries(this.query).filter(([, value]) => value));
      history.replaceState(null, "", `#/tasks${search.size ? `?${search}` : ""}`);
      attempt(() => this.load());
    }, 120);
  }

  /** Take the filters of an address. */
  arrive(search) {
    this.search.value = search.get("text") ?? "";
    for (const select of [this.name, this.state, this.execution]) {
      select.wanted = search.get(select.name) ?? "";
      select.value = "";
    }
  }

  async load() {
    const chosen = (select) => select.value || select.wanted || "";
    const question = this.asked = {
      ...this.query, name: chosen(this.name), state: chosen(this.state), execution: chosen(this.execution), limit: this.limit,
    };
    const answer = await ask("tasks", question);
    if (question !== this.asked) return;
    offer(this.name, answer.names);
    offer(this.state, answer.states);
    offer(this.execution, answer.executions);
    const held = document.activeElement?.closest("tbody") === this.body ? document.activeElement.getAttribute("href") : null;
    this.body.replaceChildren(...answer.tasks.map(lineOf));
    if (held) [...this.body.querySelectorAll("a")].find((link) => link.getAttribute("href") === held)?.focus({ preventScroll: true });
    this.total.textContent = count(answer.total, "task");
    const filters = Object.entries(question).filter(([name, value]) => value && name !== "limit");
    this.csv.href = `api/tasks.csv?${new URLSearchParams(filters)}`;
    this.empty.hidden = answer.tasks.length > 0;
    if (!answer.tasks.length) {
      this.empty.replaceChildren(h("p.big", {}, filters.length ? "No task matches." : "No task yet."),
        h("p", {}, filters.length ? "Esc clears the filters." : "What requests defer appears here."));
    }
    this.table.hidden = !answer.tasks.length;
    this.more.hidden = answer.total <= answer.tasks.length || this.limit > 100;
  }

  change() {
    if (this.waiting) return;
    this.waiting = setTimeout(() => { this.waiting = 0; if (this.element.isConnected) attempt(() => this.load()); }, 400);
  }

  step(by) {
    const links = [...this.body.querySelectorAll("a.go")];
    const here = links.indexOf(document.activeElement);
    const next = links[here < 0 ? 0 : Math.max(0, Math.min(links.length - 1, here + by))];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  escape() {
    if (!Object.values(this.query).some(Boolean)) return false;
    this.search.value = this.name.value = this.state.value = this.execution.value = "";
    this.refilter();
    return true;
  }

  select() {}
}

function lineOf({ request, label, began, task }) {
  const attempts = task.attempts ?? [];
  const begun = attempts.length ? attempts[0].started : undefined;
  const cell = (title, ...children) => h("td", { "data-title": title }, ...children);
  return h("tr", { className: `is-${task.state}` },
    h("th", { scope: "row" }, h("a.go", { href: `#/requests/${request}/${task.id}` }, clean(task.name)),
      task.error ? h("p.error", {}, clean(task.error.split("\n", 1)[0])) : null),
    cell("State", h("span.state", { className: `state is-${task.state}` }, words(task.state)),
      attempts.length > 1 ? h("span.tries", {}, ` ×${attempts.length}`) : null),
    cell("Execution", words(task.execution)),
    cell("Request", clean(label || "background")),
    cell("Waited", begun === undefined ? "…" : duration(begun - task.created)),
    cell("Ran", begun === undefined || task.ended === undefined ? "…" : duration(task.ended - begun)),
    cell("Began", clock(began + task.created)));
}
