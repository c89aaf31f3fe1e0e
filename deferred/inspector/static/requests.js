// The list of requests: the newest first, live.

import { ask, attempt } from "./api.js";
import { h } from "./dom.js";
import { Card, Growth, isFailed } from "./waterfall.js";

const MOST = 400;

export class Requests {
  constructor() {
    this.cards = new Map();
    this.growth = new Growth();
    this.filter = { text: "", work: false, failed: false };
    this.search = h("input", {
      type: "search", id: "search", placeholder: "Search  /", maxLength: 200, autocomplete: "off", spellcheck: false,
      "aria-label": "Search requests", oninput: () => this.refilter(),
    });
    this.work = h("input", { type: "checkbox", onchange: () => this.refilter() });
    this.failed = h("input", { type: "checkbox", onchange: () => this.refilter() });
    this.list = h("div.list", { role: "feed", "aria-label": "Requests, the newest first" });
    let width = 0;
    new ResizeObserver(() => { // the labels of an axis have other room now
      if (this.list.clientWidth === width) return;
      width = this.list.clientWidth;
      for (const card of this.cards.values()) card.paint();
    }).observe(this.list);
    this.empty = h("div.empty", { hidden: true });
    this.more = h("button.more", { type: "button", hidden: true, onclick: () => attempt(() => this.load(true)) }, "Show older ones");
    this.element = h("section", { "aria-label": "Requests" },
      h("div.filters", {}, this.search,
        h("label.check", { title: "Only requests with steps or tasks" }, this.work, "with work"),
        h("label.check", { title: "Only requests in which something failed" }, this.failed, "failed"),
        legend()),
      this.list, this.empty, this.more);
  }

  refilter() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.take();
      history.replaceState(null, "", this.address);
      attempt(() => this.load());
    }, 120);
  }

  take() {
    this.filter = { text: this.search.value.trim(), work: this.work.checked, failed: this.failed.checked };
  }

  /** Where the list is found again as it is filtered. */
  get address() {
    const { text, work, failed } = this.filter;
    const search = new URLSearchParams({ ...(text && { text }), ...(work && { work: 1 }), ...(failed && { failed: 1 }) });
    return `#/requests${search.size ? `?${search}` : ""}`;
  }

  /** Take the filters of an address. */
  arrive(search) {
    this.search.value = search.get("text") ?? "";
    this.work.checked = search.has("work");
    this.failed.checked = search.has("failed");
    this.take();
  }

  async load(older = false) {
    const before = older ? Math.min(...[...this.cards.values()].map((card) => card.view.number)) : undefined;
    const question = this.asked = { ...this.filter, before, limit: 100 };
    const answer = await ask("requests", question);
    if (question !== this.asked) return answer.change; // a later question has been asked meanwhile
    if (!older) this.clear();
    const seen = performance.now();
    for (const view of answer.requests) {
      if (!this.cards.has(view.id)) this.append(Object.assign(view, { seen }));
    }
    this.more.hidden = !answer.more;
    this.look();
    return answer.change;
  }

  clear() {
    this.cards.clear();
    this.growth.cards.clear();
    this.list.replaceChildren();
  }

  append(view) {
    const card = this.card(view);
    this.list.append(card.element);
  }

  card(view) {
    const card = new Card(view);
    this.cards.set(view.id, card);
    this.growth.watch(card);
    return card;
  }

  wants(view) {
    const { text, work, failed } = this.filter;
    const rows = view.rows ?? [];
    if (work && !rows.length && !view.omitted) return false;
    if (failed && !isFailed(view)) return false;
    if (!text) return true;
    const all = [view.label, view.id, ...rows.flatMap((row) => [row.name, row.error ?? "", row.id ?? ""])];
    return all.join("\n").toLowerCase().includes(text.toLowerCase());
  }

  /** Take what has changed, the latest first. */
  change(batch) {
    for (const id of batch.removed) {
      this.cards.get(id)?.element.remove();
      this.cards.delete(id);
    }
    const oldest = this.more.hidden ? 0 : Math.min(...[...this.cards.values()].map((card) => card.view.number));
    for (const view of batch.requests.toReversed()) {
      const known = this.cards.get(view.id);
      if (known) {
        known.update(view);
        this.growth.watch(known);
      } else if (this.wants(view) && view.number >= oldest) this.insert(view);
    }
    while (this.cards.size > MOST) {
      const last = this.list.lastElementChild;
      this.cards.delete(last.dataset.id);
      last.remove();
      this.more.hidden = false;
    }
    this.look();
  }

  insert(view) {
    const card = this.card(view);
    card.element.classList.add("new");
    let next = this.list.firstElementChild;
    while (next && this.cards.get(next.dataset.id).view.number > view.number) next = next.nextElementSibling;
    this.list.insertBefore(card.element, next);
  }

  look() {
    const filtered = this.filter.text || this.filter.work || this.filter.failed;
    this.empty.hidden = this.cards.size > 0;
    if (!this.empty.hidden) {
      this.empty.replaceChildren(
        h("p.big", {}, filtered ? "Nothing matches." : "Nothing has happened yet."),
        h("p", {}, filtered ? "Esc clears the search." : "Send a request to the app: it appears here, with all that outlives it."));
    }
  }

  select(id) {
    for (const card of this.list.children) card.classList.toggle("chosen", card.dataset.id === id);
  }

  /** Move to the next or previous request. */
  step(by) {
    const links = [...this.list.querySelectorAll("a.go")];
    const here = links.indexOf(document.activeElement?.closest(".card")?.querySelector("a.go"));
    const chosen = links.findIndex((link) => link.closest(".card").classList.contains("chosen"));
    const from = here >= 0 ? here : chosen;
    const next = links[from < 0 ? 0 : Math.max(0, Math.min(links.length - 1, from + by))];
    next?.focus();
    next?.closest(".card").scrollIntoView({ block: "nearest" });
    return next?.closest(".card").dataset.id;
  }

  escape() {
    if (!this.search.value && !this.work.checked && !this.failed.checked) return false;
    this.search.value = "";
    this.work.checked = this.failed.checked = false;
    this.refilter();
    return true;
  }
}

function legend() {
  const kinds = [["request", "request"], ["inside", "step"], ["wait", "waits"], ["done", "deferred"],
    ["running", "running"], ["failed", "failed"], ["backoff", "backoff"]];
  return h("ul.legend", { "aria-label": "Legend" },
    ...kinds.map(([kind, text]) => h("li", {}, h(`i.swatch.bar.${kind}`), text)),
    h("li", {}, h("i.swatch.sent"), "response sent"));
}
