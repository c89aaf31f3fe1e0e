// The dead letters of the engine: look, retry, delete.

import { act, ask, attempt, session } from "./api.js";
import { clean, clock, confirmed, count, h, notify, words } from "./dom.js";
import { choice, offer } from "./tasks.js";

const key = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class Dead {
  constructor() {
    const again = () => this.refilter();
    this.search = h("input", {
      type: "search", id: "search", placeholder: "Search  /", maxLength: 200, autocomplete: "off", spellcheck: false,
      "aria-label": "Search dead letters", oninput: again,
    });
    this.name = choice("name", "any task", again);
    this.reason = choice("reason", "any reason", again);
    this.total = h("span.hint", { role: "status" });
    this.retryAll = h("button", { type: "button", onclick: () => this.all("retry") }, "Retry all");
    this.deleteAll = h("button.danger", { type: "button", onclick: () => this.all("delete") }, "Delete all");
    this.list = h("ol.letters");
    this.empty = h("div.empty", { hidden: true });
    this.element = h("section", { "aria-label": "Dead letters" },
      h("div.filters", {}, this.search, this.name, this.reason, this.total,
        session.role === "operator" ? h("span.buttons", {}, this.retryAll, this.deleteAll) : null),
      this.list, this.empty);
  }

  get filter() {
    return { text: this.search.value.trim(), name: this.name.value, reason: this.reason.value };
  }

  refilter() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => attempt(() => this.load()), 120);
  }

  async load() {
    let answer;
    try {
      answer = await ask("dead", { ...this.filter, limit: 200 });
    } catch (error) {
      this.told = null;
      this.list.replaceChildren();
      this.tell(error.message, "");
      return;
    }
    const told = JSON.stringify(answer);
    if (told === this.told) return; // what is open in the list stays open
    this.told = told;
    offer(this.name, answer.names);
    offer(this.reason, answer.reasons);
    this.number = answer.total;
    this.total.textContent = count(answer.total, "dead letter");
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((each) => each.dataset.key));
    this.list.replaceChildren(...answer.letters.map((letter) => this.letter(letter, open)));
    this.retryAll.disabled = this.deleteAll.disabled = !answer.total;
    this.retryAll.textContent = `Retry all ${answer.total || ""}`.trim();
    this.deleteAll.textContent = `Delete all ${answer.total || ""}`.trim();
    if (answer.letters.length) this.empty.hidden = true;
    else this.tell("No dead letters.", "Jobs that failed for good would wait here, until you retry or delete them.");
  }

  tell(big, small) {
    this.empty.replaceChildren(h("p.big", {}, big), h("p", {}, small));
    this.empty.hidden = false;
  }

  letter(letter, open) {
    const payload = h("div.arguments");
    const operator = session.role === "operator";
    if (operator) {
      payload.append(h("button", { type: "button", onclick: () => attempt(async () => {
        const answer = await ask(`dead/${encodeURIComponent(letter.id)}/arguments`);
        payload.replaceChildren(h("h4", {}, "Arguments"), h("pre.trace", { tabIndex: 0, role: "region", "aria-label": "Arguments" }, clean(answer.payload)));
      }) }, "Show arguments"));
    } else payload.append(h("p.hint", {}, "Arguments are shown to operators only."));
    const [first, ...rest] = clean(letter.error || "no error was recorded").split("\n");
    return h("li.card.letter", { "data-id": letter.id },
      h("h2.head", {}, h("span.route", {}, clean(letter.name)), h("span.chips", {}, h("span.chip.bad", {}, words(letter.reason)),
        h("span.chip", {}, count(letter.number, "delivery", "deliveries"))), h("span.summary", {}, `died ${clock(letter.died_at)}`)),
      h("p.error", {}, first),
      h("details", { "data-key": letter.id, open: open.has(letter.id) },
        h("summary", {}, "Details"),
        h("dl.facts", {},
          ...[["id", letter.id], ["queue", letter.queue], ["stored", clock(letter.stored_at)], ["arguments", `${letter.size} bytes`]]
            .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, clean(value))])),
        rest.length ? h("pre.trace", { tabIndex: 0, role: "region", "aria-label": "Traceback" }, [first, ...rest].join("\n")) : null,
        payload),
      operator ? h("p.buttons", {},
        h("button", { type: "button", onclick: () => this.one("retry", letter) }, "Retry"),
        h("button.danger", { type: "button", onclick: () => this.one("delete", letter) }, "Delete")) : null);
  }

  async one(what, letter) {
    if (what === "delete" && !(await confirmed(`Delete this dead letter of ${clean(letter.name)}? Its job is gone then.`, "Delete"))) return;
    await this.order(what, { ids: [letter.id] });
  }

  async all(what) {
    const question = `${what === "retry" ? "Retry" : "Delete"} ${count(this.number, "dead letter")}?`;
    if (!(await confirmed(question, what === "retry" ? "Retry" : "Delete"))) return;
    await this.order(what, { filter: this.filter });
  }

  async order(what, which) {
    await attempt(async () => {
      const { ids } = await act(`dead/${what}`, { key: key(), ...which });
      notify(`${count(ids.length, "dead letter")} ${what === "retry" ? "will be delivered again" : "deleted"}`);
      await this.load();
    });
  }

  change(batch) {
    if (batch.now) this.refilter();
  }

  step(by) {
    const links = [...this.list.querySelectorAll("summary")];
    const here = links.indexOf(document.activeElement);
    links[here < 0 ? 0 : Math.max(0, Math.min(links.length - 1, here + by))]?.focus();
  }

  escape() {
    if (!Object.values(this.filter).some(Boolean)) return false;
    this.search.value = this.name.value = this.reason.value = "";
    this.refilter();
    return true;
  }

  select() {}
}
