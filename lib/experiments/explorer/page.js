// The explorer's page: native controls, and views drawn from the numbers that the kernel sends.

const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  // JupyterLab would take the keys of whatever does not say this itself
  if (/input|select|textarea|button|summary/.test(tag) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
  element.append(...children);
  return element;
};
const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const count = (x) => Math.round(x).toLocaleString("en");
const short = (x) => (x == null ? "–" : x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
const interval = (x) => (x[1] == null ? short(x[0]) : `${short(x[0])} (${short(x[1])} to ${short(x[2])})`);
const bytes = (x) => (x < 2 ** 20 ? `${short(x / 2 ** 10)} KiB` : `${short(x / 2 ** 20)} MiB`);
const PATIENCE = 500, SILENCE = 10_000; // ms
const VIEWS = ["curves", "ratios", "cost", "code", "status", "errors", "pins", "finished", "attention", "writing", "seq", "settled"];
const LOOKS = { dense: ["--dense", ""], window: ["--window", "6 3"], chosen: ["--chosen", ""] };

// values of a logarithmic slider, each about a twelfth more than the one before
function logarithmic(low, high) {
  const values = [];
  for (let x = low; x < high; x = Math.max(x + 1, Math.round(x * 1.09))) values.push(x);
  return [...values, high];
}

function render({ model, el }) {
  const root = h("div", { class: "kvx", role: "group", "aria-label": "Explorer" });
  const state = { seq: model.get("controls").seq ?? 0, pressed: {}, times: [], log: null, heard: performance.now() };
  const fields = {};
  root.dataset.asked = state.seq; // number of the last change, for tests

  // --- what is said to the kernel -------------------------------------------------------------
  const change = (values) => {
    state.seq += 1;
    state.pressed[state.seq] = performance.now();
    root.dataset.asked = state.seq;
    model.set("controls", { ...model.get("controls"), ...values, seq: state.seq });
    model.save_changes();
    setTimeout(redraw, PATIENCE + 50);
  };
  // whether the kernel has not answered for a while: busy, dead or gone
  const waiting = () => Object.entries(state.pressed).some(([seq, began]) => +seq > (model.get("seq") ?? 0) && performance.now() - began > PATIENCE);
  const ask = (what) => model.send({ do: what });

  // --- controls -------------------------------------------------------------------------------
  let ids = 0;
  const control = (name, label, unit, parts, kind = "") => {
    const id = `kvx-${model.model_id ?? ""}-${name}-${ids++}`;
    const error = h("span", { class: "error", role: "alert", id: `${id}-error` });
    parts.forEach((part, i) => {
      part.setAttribute(i ? "aria-label" : "id", i ? `${label}, ${unit || "value"}` : id);
      part.setAttribute("aria-describedby", `${id}-error`);
      part.dataset.control = name;
    });
    fields[name] = { parts, error };
    return h("div", { class: `control ${kind}` }, h("label", { for: id }, label, " ", h("small", {}, unit)), h("div", { class: "pair" }, ...parts), error);
  };
  // what is typed counts when the box is left, and with Enter
  const taken = (element, name, read) => {
    const take = () => { if (read() !== model.get("controls")[name]) change({ [name]: read() }); };
    element.addEventListener("change", take);
    element.addEventListener("keydown", (event) => { if (event.key === "Enter" && element.tagName === "INPUT") take(); });
  };
  // a slider and a box for the exact value
  const sliding = (name, label, unit, values, kind = "") => {
    const box = h("input", { type: "number", min: 0 }), slider = h("input", { type: "range", min: 0, step: 1 });
    const show = () => {
      const all = values(), value = model.get("controls")[name];
      slider.max = all.length - 1;
      let nearest = 0;
      while (nearest + 1 < all.length && all[nearest + 1] <= value) nearest += 1;
      if (document.activeElement !== slider || all[slider.value] !== value) slider.value = nearest;
      slider.setAttribute("aria-valuetext", `${count(value)} ${unit}`);
      if (document.activeElement !== box) box.value = value;
    };
    slider.addEventListener("input", () => { const value = values()[slider.value]; box.value = value; change({ [name]: value }); });
    taken(box, name, () => Number(box.value));
    const made = control(name, label, unit, [slider, box], kind);
    fields[name].show = show;
    return made;
  };
  const choosing = (name, label, unit, options) => {
    const select = h("select", { onchange: () => change({ [name]: select.value }) });
    const made = control(name, label, unit, [select]);
    fields[name].show = () => {
      const all = Object.entries(options());
      if (select.children.length !== all.length) select.replaceChildren(...all.map(([value, text]) => h("option", { value }, text)));
      select.value = model.get("controls")[name];
    };
    return made;
  };
  const typing = (name, label, unit, element, number = false) => {
    taken(element, name, () => (number ? Number(element.value) : element.value));
    const made = control(name, label, unit, [element]);
    fields[name].show = () => { if (document.activeElement !== element) element.value = model.get("controls")[name]; };
    return made;
  };
  const whole = (high) => Array.from({ length: high + 1 }, (_, i) => i);
  const choices = () => model.get("choices");
  const least = () => Math.min(16, choices().limit);
  const sinks = () => (choices().with_sinks.includes(model.get("controls").method) ? model.get("controls").start_size : 0);
  const most = () => Math.max(least(), choices().limit - sinks() - model.get("controls").buffer);
  const buffers = () => [0, ...logarithmic(1, choices().most_buffer)];
  const names = h("datalist", { id: `kvx-models-${model.model_id}` }, ...["reference", "smollm2"].map((value) => h("option", { value })));
  const texts = h("datalist", { id: `kvx-texts-${model.model_id}` }, ...["docs", "typed", "wikitext", "pg19"].map((value) => h("option", { value })));
  const typed = typing("typed", "typed text", "64 tokens or more", h("textarea", { rows: 2 }));
  const play = h("button", { "aria-pressed": "false", title: "walk through the text", onclick: () => playing(!state.timer) }, "▶ play");
  root.append(
    h("fieldset", { class: "group", "aria-label": "model and text" },
      typing("model", "model", "reference, smollm2, folder, hub id", h("input", { type: "text", list: names.id })), names,
      typing("text", "text", "docs, typed, a .txt or .parquet file", h("input", { type: "text", list: texts.id })), texts,
      typing("offset", "from", "token of the text", h("input", { type: "number", min: 0 }), true),
      typing("seq_len", "length", "tokens", h("input", { type: "number", min: 64 }), true), typed),
    h("fieldset", { class: "group", "aria-label": "setting" },
      choosing("method", "method", "", () => choices().methods),
      sliding("start_size", "sinks", "tokens", () => whole(choices().most_sinks)),
      sliding("recent_size", "window", "tokens, log", () => logarithmic(least(), most()), "wide"),
      sliding("buffer", "buffer", "tokens, log", buffers),
      choosing("positions", "positions", "distances", () => ({ in_cache: "in the cache", original: "in the text" }))),
    h("fieldset", { class: "group", "aria-label": "step, layer and head" },
      sliding("step", "step", "token being read", () => whole(choices().length - 1), "widest"), play,
      sliding("layer", "layer", "number", () => whole(choices().layers - 1)),
      sliding("head", "head", "number", () => whole(choices().heads - 1))));

  // --- views ----------------------------------------------------------------------------------
  const view = {};
  const place = (name, tag, attributes = {}) => (view[name] = h(tag, attributes));
  const word = (kind, text) => `<span class="t ${kind}">${text}</span>`;
  const keys = h("span", { class: "keys" });
  keys.innerHTML = `${word("sink", "sink")} ${word("kept", "kept")} ${word("gone", "evicted")} ${word("now", "current")} ${word("ahead", "ahead")} darker: more attention`;
  root.append(
    h("div", { class: "bar" }, place("status", "div", { class: "status", role: "status", "aria-live": "polite" }),
      h("button", { onclick: () => ask("pin"), title: "pin this setting's line, to compare others with" }, "compare"),
      h("button", { onclick: () => ask("unpin"), title: "drop the pinned lines" }, "clear"),
      h("button", { onclick: () => ask("write"), title: "the model goes on from the step: dense, window and chosen" }, "write"),
      h("button", { onclick: () => ask("stop"), title: "stop computing or writing (Escape)" }, "stop")),
    h("h4", {}, "Text", keys),
    place("first", "div", { class: "strip first", "aria-label": "first tokens" }),
    place("strip", "div", { class: "strip rest", tabindex: 0, "aria-label": "text around the step" }),
    place("reading", "div", { class: "reading" }),
    h("div", { class: "two" },
      h("div", {}, h("h4", {}, h("small", {}, "nats per token, by position")), place("loss", "div", { role: "img" })),
      h("div", {}, place("attentionTitle", "h4"), place("attention", "div", { role: "img" })),
      h("div", {}, h("h4", {}, "Cost ", h("small", {}, "of the cache at the step, and the most tokens/s it allows here")), place("cost", "table")),
      h("div", {}, place("shareTitle", "h4"), place("share", "div", { role: "img" }))),
    place("writing", "div"),
    h("details", {}, h("summary", {}, "This setting as code"), place("python", "div", { class: "line" }), place("papermill", "div", { class: "line" })));
  for (const name of ["python", "papermill"]) {
    const line = h("input", { readonly: true, "aria-label": `${name} line`, "data-line": name });
    view[name].append(line, h("button", { onclick: () => { line.select(); (navigator.clipboard?.writeText(line.value) ?? Promise.reject()).catch(() => document.execCommand("copy")); } }, "copy"));
  }

  function chart(width, height, xs, ys, body, { xLabel, xTicks, yTicks }) {
    const lines = yTicks.map((y) => `<line class="grid" x1="34" x2="${width - 6}" y1="${ys(y)}" y2="${ys(y)}"/><text x="30" y="${ys(y) + 4}" text-anchor="end">${+y.toPrecision(3)}</text>`);
    const marks = xTicks.map(([x, text]) => `<text x="${xs(x)}" y="${height - 17}" text-anchor="middle">${text}</text>`);
    return `<svg viewBox="0 0 ${width} ${height}" aria-hidden="true">${lines.join("")}${marks.join("")}<line class="axis" x1="34" x2="${width - 6}" y1="${height - 30}" y2="${height - 30}"/>${body}<text x="${width / 2}" y="${height - 3}" text-anchor="middle">${xLabel}</text></svg>`;
  }
  const ticks = (low, high, most = 5) => {
    const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough), found = [];
    for (let x = Math.ceil(low / step) * step; x <= high + 1e-9; x += step) found.push(x);
    return found;
  };

  function drawLoss({ curves = {}, pins = [], ratios = {} }) {
    const W = Math.max(300, view.loss.clientWidth || 520), H = 132;
    const drawn = [...pins.map((curve, i) => [curve, ["--pin", "2 3", i + 1]]), ...["dense", "window", "chosen"].filter((x) => curves[x]).map((x) => [curves[x], LOOKS[x]])];
    const all = drawn.flatMap(([curve]) => [...curve.y, ...curve.low, ...curve.high]).filter((x) => x != null);
    const low = Math.min(...all, 1), high = Math.max(...all, 2), last = Math.max(64, choices().length - 1);
    const xs = (x) => 34 + ((W - 40) * Math.log2(Math.max(x, 16) / 16)) / Math.log2(last / 16), ys = (y) => 6 + ((H - 36) * (high - y)) / (high - low);
    const path = (curve, column) => curve.x.map((x, i) => `${xs(x).toFixed(1)},${ys(curve[column][i] ?? curve.y[i]).toFixed(1)}`);
    const body = drawn.map(([curve, [color, dash, number]]) => {
      const own = `style="stroke:var(${color})" stroke-dasharray="${dash}" fill="none" stroke-width="2"`;
      const dots = color === "--chosen" ? path(curve, "y").map((p) => `<circle cx="${p.split(",")[0]}" cy="${p.split(",")[1]}" r="2.6" style="fill:var(${color})"/>`).join("") : "";
      const [x, y] = path(curve, "y").at(-1)?.split(",").map(Number) ?? [];
      const end = number && curve.x.length ? `<text x="${x - 4 + 9 * number}" y="${y + 4}">${number}</text>` : ""; // side by side where lines meet
      return `<polygon points="${[...path(curve, "low"), ...path(curve, "high").reverse()].join(" ")}" style="fill:var(${color})" opacity=".13"/><polyline points="${path(curve, "y").join(" ")}" ${own}/>${dots}${end}`;
    });
    const step = model.get("controls").step, budget = sinks() + model.get("controls").recent_size;
    const vertical = (x, text, y) => `<line class="axis" x1="${xs(x)}" x2="${xs(x)}" y1="6" y2="${H - 30}" stroke-dasharray="1 3"/><text x="${xs(x) + 3}" y="${y}">${text}</text>`;
    body.push(vertical(step, "step", H - 34), budget < last ? vertical(budget, "cache full", H - 46) : "");
    const xTicks = []; for (let x = 16; x <= last; x *= 4) xTicks.push([x, count(x)]);
    view.loss.innerHTML = chart(W, H, xs, ys, body.join(""), { xLabel: "position (tokens; bands: 95% over 16 stretches of each span)", xTicks, yTicks: ticks(low, high) });
    const told = ["dense", "window", "chosen"].filter((x) => curves[x]).map((name) => {
      const { label, ppl, done, total } = curves[name], [color, dash] = LOOKS[name];
      return `<span data-line-of="${name}"><svg viewBox="0 0 26 8" style="display:inline-block;width:26px;height:8px"><line x1="0" x2="26" y1="4" y2="4" style="stroke:var(${color})" stroke-width="2.5" stroke-dasharray="${dash}"/>${name === "chosen" ? `<circle cx="13" cy="4" r="3" style="fill:var(${color})"/>` : ""}</svg> ${escape(label)}: <b>${interval(ppl)}</b>${done < total ? ` <small>first ${count(done)} tokens</small>` : ""}</span>`;
    });
    told.push(...pins.map(({ label, ppl }, i) => `<span>┈┈ ${i + 1} ${escape(label)}: <b>${interval(ppl)}</b> <small>pinned</small></span>`));
    for (const [name, value] of Object.entries(ratios)) told.push(`<span>chosen / ${name}: <b>${interval(value)}</b></span>`);
    view.reading.innerHTML = `<h4>Loss by position, mean PPL:</h4>${told.join("")}`;
    view.reading.title = "mean perplexity with its 95% interval; ratios of it are paired over 16 stretches of the text";
    view.loss.setAttribute("aria-label", [...view.reading.children].map((part) => part.textContent.trim()).join("; "));
  }

  function drawStrip(attention) {
    const { pieces = [] } = model.get("text");
    const held = new Map((attention?.tokens ?? []).map((token, i) => [token, attention.weights ? attention.weights[i] : 0]));
    const step = attention?.step ?? model.get("controls").step, top = Math.max(...(attention?.bars?.weights ?? held.values()), 1e-9);
    const token = (i) => {
      const kind = i === step ? "now" : i > step || !attention ? "ahead" : !held.has(i) ? "gone" : i < attention.sinks ? "sink" : "kept";
      const weight = held.get(i) ?? 0, heat = Math.sqrt(weight / top);
      const dark = weight ? ` style="background:rgba(var(--heat),${heat.toFixed(2)})${heat > 0.5 ? ";color:#111" : ""}"` : "";
      const said = `token ${i}: ${{ now: "current", ahead: "ahead", gone: "evicted", sink: "sink", kept: "kept" }[kind]}${weight ? `, attention ${(100 * weight).toFixed(1)}%` : ""}`;
      return `<span class="t ${kind}"${dark} title="${said}">${escape(pieces[i].replace(/\n/g, "↵"))}</span>`;
    };
    const span = (from, to) => { let text = ""; for (let i = from; i < Math.min(to, pieces.length); i += 1) text += token(i); return text; };
    const from = Math.max(16, step - 900);
    view.first.innerHTML = span(0, 16);
    view.strip.innerHTML = (from > 16 ? "… " : "") + span(from, step + 240) + (step + 240 < pieces.length ? " …" : "");
    view.strip.classList.toggle("old", !!attention?.old);
    const now = view.strip.querySelector(".now");
    const line = parseFloat(getComputedStyle(view.strip).lineHeight); // whole lines, the third the step's
    view.strip.scrollTop = now ? line * (Math.round(now.offsetTop / line) - 2) : 0;
  }

  function drawAttention(attention) {
    if (!attention) {
      for (const part of ["attention", "attentionTitle", "share", "shareTitle"]) view[part].replaceChildren();
      return;
    }
    const W = Math.max(300, view.attention.clientWidth || 520), H = 132, { sinks, old } = attention;
    // many tokens share bars, as high as the highest of each
    const { tokens, weights, each = 1 } = attention.bars ?? attention, n = tokens.length;
    const high = weights ? Math.max(...weights, 0.01) : 1, xs = (i) => 34 + ((W - 40) * i) / Math.max(n, 1), ys = (y) => 6 + ((H - 36) * (high - y)) / high;
    const wide = Math.max(1, (W - 40) / n - 0.4);
    const bars = (weights ?? []).map((w, i) => `<rect x="${xs(i).toFixed(1)}" y="${ys(w).toFixed(1)}" width="${wide.toFixed(1)}" height="${(H - 30 - ys(w)).toFixed(1)}" style="fill:var(${tokens[i] < sinks ? "--chosen" : "--window"})"><title>${each > 1 && i >= 16 ? `of ${each} tokens from ${tokens[i]} on, at most` : `token ${tokens[i]}:`} ${(100 * w).toFixed(1)}%</title></rect>`);
    if (sinks) bars.push(`<line x1="${xs(sinks)}" x2="${xs(sinks)}" y1="6" y2="${H - 30}" class="axis" stroke-dasharray="2 2"/><text x="${xs(sinks) + 3}" y="15">◂ sinks</text>`);
    const at = [0, 0.25, 0.5, 0.75, 1].map((x) => Math.round(x * (n - 1))).filter((x, i, all) => x >= 0 && all.indexOf(x) === i && xs(x) < W - 12);
    view.attention.innerHTML = chart(W, H, xs, ys, bars.join(""), { xLabel: `cached tokens, in order (labels: place in the text${each > 1 ? `; a bar: the most of up to ${each}` : ""})`, xTicks: at.map((i) => [i, count(tokens[i])]), yTicks: ticks(0, high, 4) });
    view.attention.classList.toggle("old", !!old || !weights);
    view.attentionTitle.innerHTML = `Attention of token ${count(attention.step)} <small>layer ${attention.layer}, head ${attention.head}, ${weights && !old ? `over ${count(attention.seen)} tokens it sees` : "computing"}</small>`;
    view.attention.setAttribute("aria-label", view.attentionTitle.textContent);
    const shares = attention.shares ?? [], w = (W - 40) / Math.max(shares.length, 1);
    const share = shares.map((x, i) => `<g data-layer="${i}" style="cursor:pointer"><rect x="${34 + i * w + 1}" width="${w - 2}" y="8" height="52" fill="transparent"/><rect x="${34 + i * w + 1}" y="${60 - 48 * x}" width="${w - 2}" height="${48 * x}" style="fill:var(--chosen)" stroke="currentColor" stroke-width="${i === attention.layer ? 2 : 0}"/>${w > 24 ? `<text x="${34 + (i + 0.5) * w}" y="${Math.max(9, 57 - 48 * x)}" text-anchor="middle">${Math.round(100 * x)}%</text>` : ""}${w > 12 || i % 5 === 0 ? `<text x="${34 + (i + 0.5) * w}" y="73" text-anchor="middle">${i}</text>` : ""}</g>`);
    view.share.innerHTML = `<svg viewBox="0 0 ${W} 76" aria-hidden="true">${share.join("")}<line class="axis" x1="34" x2="${W - 6}" y1="60" y2="60"/></svg>`;
    view.share.querySelectorAll("[data-layer]").forEach((bar) => bar.addEventListener("click", () => change({ layer: Number(bar.dataset.layer) })));
    view.shareTitle.innerHTML = `Share on the ${sinks ? `${sinks} sinks` : `text's first ${attention.first} tokens`} <small>by layer (click), mean of heads</small>`;
    view.share.classList.toggle("old", !!old || !weights);
    view.share.setAttribute("aria-label", `${view.shareTitle.textContent}: ${shares.map((x) => `${Math.round(100 * x)}%`).join(", ")}`);
  }

  function drawCost(cost) {
    const rows = { dense: "dense", chosen: "chosen" };
    const body = Object.entries(rows).filter(([name]) => cost?.[name]).map(([name, label]) => {
      const { tokens, bytes: size, tokens_per_s: pace } = cost[name], part = cost.dense.bytes ? ` (${short((100 * size) / cost.dense.bytes)}%)` : "";
      return `<tr><td>${label}</td><td>${count(tokens)}</td><td>${bytes(size)}${name === "chosen" ? part : ""}</td><td>${pace ? count(pace) : "…"}</td></tr>`;
    });
    view.cost.innerHTML = `<tr><th></th><th>tokens held</th><th>keys and values</th><th>tokens/s at most</th></tr>${body.join("")}`;
  }

  function drawWriting(writing) {
    if (!writing) return view.writing.replaceChildren();
    const scrolled = [...view.writing.querySelectorAll("p")].map((p) => p.scrollTop + p.clientHeight >= p.scrollHeight - 4);
    const { done, total } = writing, unfinished = done < total ? ` unfinished: ${done} of ${total} tokens` : "";
    view.writing.innerHTML = `<h4>Written after <small>“…${escape(writing.after.replace(/\n/g, "↵"))}”${unfinished}</small></h4><div class="three">${Object.entries(writing.columns).map(([name, { label, text }]) => `<div data-column="${name}"><h4>${escape(label)}</h4><p tabindex="0" data-lm-suppress-shortcuts="true">${escape(text)}</p></div>`).join("")}</div>`;
    view.writing.querySelectorAll("p").forEach((p, i) => { if (scrolled[i] ?? true) p.scrollTop = p.scrollHeight; });
  }

  function drawStatus({ status = {}, errors = {} }) {
    const { state: kind, text, done, total } = status, wrong = Object.values(errors).length;
    const words = { computing: "computing", loading: "loading", writing: "writing", stopped: "stopped: what is shown may be unfinished", failed: "failed:", done: "ready" };
    const late = waiting(), busy = !wrong && !late && ["computing", "loading", "writing"].includes(kind);
    // the kernel may have died, or be at something long: the page can't tell, and says what it knows
    const silent = busy && performance.now() - state.heard > SILENCE;
    root.classList.toggle("silent", silent);
    root.classList.toggle("late", late);
    view.status.replaceChildren(late ? "⚠ waiting for the kernel: what is shown is older than the controls" : wrong ? "⚠ what is shown is the last setting that is allowed" : `${words[kind] ?? ""}${kind === "done" && text ? ":" : ""} ${text ?? ""}${silent ? " – no sign from the kernel for a while: what is shown may be unfinished" : ""}`);
    clearTimeout(state.listening);
    if (busy && !silent) state.listening = setTimeout(redraw, state.heard + SILENCE + 50 - performance.now());
    if (busy) view.status.prepend(h("progress", { ...(total ? { max: total, value: done } : {}), "aria-label": "progress" }));
    root.dataset.state = late ? "waiting" : wrong ? "refused" : kind;
    for (const [name, { parts, error }] of Object.entries(fields)) {
      error.textContent = errors[name] ?? "";
      parts.forEach((part) => (errors[name] ? part.setAttribute("aria-invalid", "true") : part.removeAttribute("aria-invalid")));
    }
  }

  // --- drawing what has changed, once a frame --------------------------------------------------
  let due = false, shown = {};
  const draw = () => {
    due = false;
    const views = Object.fromEntries(VIEWS.map((name) => [name, model.get(name)])), fresh = (name) => views[name] !== shown[name] && JSON.stringify(views[name]) !== JSON.stringify(shown[name]);
    const { moved, turned } = state;
    state.moved = state.turned = false;
    if (moved || turned || fresh("curves") || fresh("pins") || fresh("ratios")) drawLoss(views);
    if (moved || fresh("attention")) { drawStrip(views.attention); drawAttention(views.attention); }
    if (fresh("cost")) drawCost(views.cost);
    if (fresh("writing")) drawWriting(views.writing);
    drawStatus(views);
    for (const name of ["python", "papermill"]) view[name].firstChild.value = views.code?.[name] ?? "";
    const { method, text } = model.get("controls");
    typed.hidden = text !== "typed";
    fields.start_size.parts.forEach((part) => (part.disabled = !choices().with_sinks.includes(method)));
    fields.recent_size.parts.forEach((part) => (part.disabled = method === "baseline"));
    fields.offset.parts[0].disabled = fields.seq_len.parts[0].disabled = text === "typed";
    shown = views;
    root.dataset.settled = String(views.settled ?? "");
    root.dataset.seq = String(views.seq ?? "");
    root.dataset.ended = (views.finished ?? []).join("|"); // what was computed to its end
    requestAnimationFrame(() => setTimeout(() => { // the frame is on the screen
      for (const [seq, began] of Object.entries(state.pressed)) {
        const entry = (state.times.find((x) => x.seq === +seq) ?? state.times[state.times.push({ seq: +seq }) - 1]);
        if (!entry.first && views.seq >= +seq) entry.first = performance.now() - began;
        if (views.settled >= +seq) { entry.all = performance.now() - began; delete state.pressed[seq]; }
      }
      root.kvxTimes = state.times;
    }));
  };
  const redraw = () => { if (!due) { due = true; requestAnimationFrame(draw); } };
  const showControls = () => { for (const field of Object.values(fields)) field.show?.(); };
  function playing(on) {
    clearInterval(state.timer);
    state.timer = on ? setInterval(() => {
      const { step, seq } = model.get("controls"), next = step + 1;
      if (next >= choices().length) return playing(false);
      if (waiting()) return;
      const attention = model.get("attention"), looked = attention?.step === step && attention.weights && !attention.old;
      if (looked || performance.now() - (state.pressed[seq] ?? 0) > 1500) { change({ step: next }); showControls(); }
    }, 120) : null;
    play.setAttribute("aria-pressed", String(!!on));
    play.textContent = on ? "⏸ pause" : "▶ play";
  }
  const theme = () => {
    const [r, g, b] = (getComputedStyle(document.body).color.match(/\d+/g) ?? [0, 0, 0]).map(Number);
    const own = getComputedStyle(root).color.match(/\d+/g)?.map(Number) ?? [r, g, b];
    root.toggleAttribute("data-dark", own[0] + own[1] + own[2] > 382);
  };
  const all = () => { state.moved = true; showControls(); theme(); redraw(); };
  for (const name of VIEWS) model.on(`change:${name}`, () => { state.heard = performance.now(); redraw(); });
  model.on("change:text", all);
  model.on("change:choices", all);
  model.on("change:controls", () => { showControls(); state.turned = true; redraw(); });
  root.addEventListener("keydown", (event) => { if (event.key === "Escape") { playing(false); ask("stop"); } });
  // of another width: the height changes with every line that is told
  const size = new ResizeObserver(() => { if (el.clientWidth !== state.width) { state.width = el.clientWidth; all(); } });
  size.observe(el);
  const watch = new MutationObserver(theme);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  el.append(root);
  all();
  return () => { playing(false); clearTimeout(state.listening); size.disconnect(); watch.disconnect(); };
}

export default { render };
