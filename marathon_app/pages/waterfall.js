// Draws runs as waterfalls on one axis: what happened to them comes in, bars come out.

const STEPS = [20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];

// An event loop's clock may tick in whole milliseconds: less than one is not told apart from none.
export function milliseconds(time) {
  if (time < 1) return "< 1 ms";
  return time >= 999.5 ? `${(time / 1000).toFixed(time < 9950 ? 2 : 1)} s` : `${time < 9.95 ? time.toFixed(1) : Math.round(time)} ms`;
}

// The axis ends at a round number beyond the longest time shown.
export function axisOf(longest) {
  const step = STEPS.find((size) => longest / size <= 6) ?? 60000;
  return { step, end: Math.ceil((Math.max(longest, 100) * 1.02) / step) * step };
}

export function drawScale(scale, { step, end }) {
  const wide = scale.clientWidth / (end / step) > 56 ? 1 : 2;
  const labels = [];
  for (let time = 0; time <= end; time += step * wide) {
    const label = document.createElement("span");
    label.textContent = time === 0 ? "0" : time >= 1000 && step >= 500 ? `${time / 1000} s` : `${time} ms`;
    label.style.left = `${(100 * time) / end}%`;
    label.classList.toggle("last", time === end);
    labels.push(label);
  }
  scale.replaceChildren(...labels);
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// What goes on beyond the end of the axis is cut there, and looks like it.
function place(bar, from, until, end) {
  const to = Math.min(until, end);
  bar.classList.toggle("beyond", until > end);
  bar.style.left = `${(100 * from) / end}%`;
  bar.style.width = `${(100 * Math.max(to - from, 0)) / end}%`;
}

// One row: name, track, time. It is kept and changed, as a row made anew would start its motion anew.
function rowOf(rows, key, name, indent) {
  let row = [...rows.children].find((known) => known.dataset.key === key);
  if (!row) {
    row = element("div", "row");
    row.dataset.key = key;
    row.append(element("span", "name"), element("span", "track"), element("span", "time"));
    rows.append(row);
  }
  const label = row.firstElementChild;
  label.textContent = name;
  label.classList.toggle("indent", indent);
  return row;
}

// `segments` are {start, end, look}, in milliseconds; `marks` are {at, look}.
function fill(row, segments, marks, end, text) {
  const track = row.children[1];
  const wanted = segments.length + marks.length;
  while (track.childElementCount > wanted) track.lastElementChild.remove();
  while (track.childElementCount < wanted) track.append(document.createElement("i"));
  segments.forEach(({ start, end: stop, look }, index) => {
    const bar = track.children[index];
    bar.className = `bar ${look}`;
    place(bar, start, stop, end);
  });
  marks.forEach(({ at, look }, index) => {
    const mark = track.children[segments.length + index];
    mark.className = `mark ${look}`;
    mark.style.left = `${(100 * at) / end}%`;
    mark.style.width = "";
  });
  row.children[2].textContent = text;
}

// Draw one run (see runs.js for its shape) into its article.
export function drawRun(article, run, end) {
  const rows = article.querySelector(".rows");
  const shown = new Set(run.rows.map((row) => row.key));
  for (const row of [...rows.children]) if (!shown.has(row.dataset.key)) row.remove();
  const marks = [];
  if (run.answered !== undefined) marks.push({ at: run.answered, look: "sent" });
  if (run.killed !== undefined) marks.push({ at: run.killed, look: "kill" });
  for (const row of run.rows) {
    fill(rowOf(rows, row.key, row.name, row.indent), row.segments, marks, end, row.text);
  }
  run.rows.forEach((row, index) => {
    if (rows.children[index].dataset.key === row.key) return;
    rows.insertBefore([...rows.children].find((known) => known.dataset.key === row.key), rows.children[index]);
  });

  const status = article.querySelector(".status");
  status.hidden = run.status === undefined;
  status.textContent = run.status ?? "";
  status.classList.toggle("bad", !(run.status < 400));
  const count = article.querySelector(".count");
  count.hidden = !run.count;
  count.textContent = run.count;
  article.querySelector(".summary").textContent = run.summary;
  const fault = article.querySelector(".fault");
  fault.hidden = !run.fault;
  fault.textContent = run.fault;
}
