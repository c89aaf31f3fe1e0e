// Questions, actions, and the stream of what changes.

import { notify } from "./dom.js";

export const session = { name: "", role: "reader", token: "", engine: false };

export class Problem extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function answered(response) {
  if (response.ok) return response;
  throw new Problem(response.status, (await response.text()).slice(0, 500) || `HTTP ${response.status}`);
}

export async function ask(path, query = {}) {
  const wanted = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined && value !== false);
  const search = new URLSearchParams(wanted.map(([name, value]) => [name, value === true ? "1" : value]));
  const address = `api/${path}${search.size ? `?${search}` : ""}`;
  return (await answered(await fetch(address, { headers: { Accept: "application/json" } }))).json();
}

export async function act(path, body) {
  const send = () => fetch(`api/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Deferred-Token": session.token },
    body: JSON.stringify(body),
  });
  let response = await send();
  if (response.status === 403) { // a process that was started anew has tokens of its own
    await start();
    response = await send();
  }
  return (await answered(response)).json();
}

export async function start() {
  Object.assign(session, await ask("session"));
}

/** The stream: opened while the page is seen, closed while it is hidden or paused. */
export class Stream {
  constructor(onBatch, onState) {
    this.onBatch = onBatch;
    this.onState = onState;
    this.change = 0;
    this.paused = false;
    this.source = null;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.look());
    addEventListener("pagehide", () => this.close());
    addEventListener("pageshow", () => this.look());
  }

  look() {
    if (document.hidden || this.paused) {
      this.close();
      this.onState("paused");
    } else if (!this.source) this.open();
  }

  open() {
    clearTimeout(this.timer);
    const source = new EventSource(`api/stream?since=${this.change}`);
    this.source = source;
    source.onopen = () => { clearTimeout(this.timer); this.timer = 0; this.onState("live"); };
    source.onmessage = (event) => {
      const batch = JSON.parse(event.data);
      const restarted = batch.change < this.change || (this.teller && batch.source !== this.teller);
      this.change = batch.change;
      this.teller = batch.source;
      this.onBatch(batch, restarted);
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) {
        this.close();
        this.onState("away");
        this.timer = setTimeout(() => this.look(), 2000);
      } else if (!this.timer) {
        // Each stream is short, so it ends often and is there again at once.
        this.timer = setTimeout(() => this.onState("away"), 1500);
      }
    };
  }

  close() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.source?.close();
    this.source = null;
  }

  toggle() {
    this.paused = !this.paused;
    this.look();
  }
}

/** Run something of a button, and tell what goes wrong. */
export async function attempt(doing) {
  try {
    return await doing();
  } catch (error) {
    notify(error.message);
    return undefined;
  }
}
