"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const color = (run) => getComputedStyle(root).getPropertyValue(`--run-${run % 10}`).trim();
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Text of models and data only ever becomes text nodes here, never HTML.
  function make(tag, options = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en-US");
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
    return value.toFixed(size >= 1000 ? 0 : Math.min(Math.max(2 - Math.floor(Math.log10(size || 1)), 0), 4));
  }
  const signed = (value) => (value > 0 ? "+" : "") + short(value);

  // --- theme -------------------------------------------------------------------------------------------------------

  const redraws = [];
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("minimind-trl-theme", root.dataset.theme); } catch { /* files may have no storage */ }
    redraws.forEach((redraw) => redraw());
  });

  for (const button of document.querySelectorAll("tbody.toggle button")) {
    const more = button.closest("tbody").previousElementSibling, closed = button.textContent;
    button.addEventListener("click", () => {
      more.hidden = !more.hidden;
      button.setAttribute("aria-expanded", String(!more.hidden));
      button.textContent = more.hidden ? closed : "fewer figures";
    });
  }

  // --- curves ------------------------------------------------------------------------------------------------------

  const shown = new Set(data.runs.keys());
  const smoothing = document.getElementById("smoothing");

  /** An exponential moving average without bias towards its start, as in TensorBoard. */
  function smoothed(values, weight) {
    let mean = 0, norm = 0;
    return values.map((value) => {
      mean = weight * mean + (1 - weight) * value;
      norm = weight * norm + (1 - weight);
      return mean / norm;
    });
  }

  /** Lines of a panel: tables of steps and values, and how to draw each. */
  function lines(panel) {
    const tables = [], styles = [];
    const add = (points, values, style) => { tables.push([points[0], values]); styles.push(style); };
    data.runs.forEach((run, number) => {
      if (!shown.has(number)) return;
      const stroke = color(number), train = run.curves[panel.train], heldOut = run.curves[panel.held_out];
      if (train) {
        const weight = Number(smoothing.value), few = train[0].length < 2;
        if (weight > 0 && !few) add(train, train[1], { stroke: `${stroke}40`, width: 1, points: { show: false } });
        add(train, smoothed(train[1], weight), { stroke, width: 2, points: { show: few, size: 6 }, label: run.name });
      }
      if (heldOut) {
        const points = { show: true, size: 6, fill: stroke };
        add(heldOut, heldOut[1], { stroke, width: 1.5, dash: [5, 4], points, label: `${run.name}, held out` });
      }
    });
    return { tables, styles };
  }

  function tooltip(box) {
    const tip = make("div", { class: "tip", hidden: true });
    const nearest = (values, index) => {
      for (let reach = 0; reach < 40; reach++) {
        if (values[index - reach] != null) return values[index - reach];
        if (values[index + reach] != null) return values[index + reach];
      }
      return null;
    };
    const move = (plot) => {
      const { idx, left } = plot.cursor;
      tip.hidden = idx == null || left < 0;
      if (tip.hidden) return;
      tip.replaceChildren(`step ${short(plot.data[0][idx])}`);
      plot.series.forEach((series, number) => {
        const value = number && series.label && nearest(plot.data[number], idx);
        if (typeof value !== "number") return;
        const dot = make("i");
        dot.style.background = series.stroke();
        tip.append(make("div", {}, dot, `${series.label} ${short(value)}`));
      });
      const at = plot.over.offsetLeft + left, wide = tip.offsetWidth + 12;
      tip.style.left = `${at + wide > box.clientWidth ? Math.max(at - wide, 0) : at + 12}px`;
      tip.style.top = "2.6rem";
    };
    return { hooks: { init: () => box.append(tip), setCursor: move, destroy: () => tip.remove() } };
  }

  function drawPanel(box, panel) {
    let plot = null, log = false;
    const about = `${panel.title} over the steps`;
    const area = make("div", { role: "img", "aria-label": about });
    const canLog = data.runs.every((run) => [panel.train, panel.held_out].every(
      (name) => !run.curves[name] || run.curves[name][1].every((value) => value > 0)));
    const button = make("button", { type: "button", "aria-pressed": "false", "aria-label": `logarithmic scale of ${panel.title}` }, "log");
    button.addEventListener("click", () => { log = !log; button.setAttribute("aria-pressed", String(log)); draw(); });
    box.append(make("header", {}, make("h3", {}, panel.title), canLog ? button : null), area);

    function draw() {
      if (plot) plot.destroy();
      plot = null;
      const { tables, styles } = lines(panel);
      area.replaceChildren();
      area.setAttribute("aria-label", `${about}: ${styles.map((style, number) => [style, tables[number][1]])
        .filter(([style]) => style.label)
        .map(([style, values]) => `${style.label} from ${short(values[0])} to ${short(values.at(-1))}`).join("; ")}`);
      if (!tables.length) { area.append(make("p", { class: "quiet" }, "not logged by these runs")); return; }
      const axis = {
        stroke: variable("--quiet"), font: "11px system-ui, sans-serif", size: 28,
        grid: { stroke: variable("--line"), width: 1 }, ticks: { show: false },
      };
      plot = new uPlot({
        width: Math.max(box.clientWidth - 16, 120), height: 210,
        legend: { show: false }, cursor: { y: false, points: { size: 6 } }, padding: [8, 18, 0, 0],
        scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
        axes: [axis, { ...axis, size: 54 }],
        series: [{}, ...styles.map((style) => ({ spanGaps: true, ...style }))],
        plugins: [tooltip(box)],
      }, uPlot.join(tables), area);
    }
    new ResizeObserver(() => plot && plot.setSize({ width: Math.max(box.clientWidth - 16, 120), height: 210 })).observe(box);
    draw();
    redraws.push(draw);
  }

  function drawPanels(container, panels) {
    for (const panel of panels) {
      const box = make("div", { class: "plot" });
      container.append(box);
      drawPanel(box, panel);
    }
  }

  const legend = document.getElementById("legend");
  data.runs.forEach((run, number) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => { shown[box.checked ? "add" : "delete"](number); redraws.forEach((redraw) => redraw()); });
    const label = make("label", {}, box, run.name);
    label.style.setProperty("--run", `var(--run-${number % 10})`);
    legend.append(label);
  });
  smoothing.addEventListener("input", () => {
    smoothing.nextElementSibling.textContent = Number(smoothing.value).toFixed(2);
    redraws.forEach((redraw) => redraw());
  });
  drawPanels(document.getElementById("plots"), data.panels.filter((panel) => panel.is_main));
  const more = document.getElementById("more-plots"), others = data.panels.filter((panel) => !panel.is_main);
  more.hidden = others.length === 0;
  more.addEventListener("toggle", () => {
    const container = more.querySelector(".plots");
    if (more.open && !container.children.length) drawPanels(container, others);
  });

  // --- microscope: parts -------------------------------------------------------------------------------------------

  const views = document.getElementById("views");
  const lastMessage = (prompt) => (typeof prompt === "string" ? prompt : prompt.at(-1)?.content ?? "");
  const promptOf = (prompt) => {
    const box = make("p", { class: "prompt" });
    const messages = typeof prompt === "string" ? [{ content: prompt }] : prompt;
    messages.forEach((message, number) => {
      const role = message.role && (messages.length > 1 || message.role !== "user") ? message.role : null;
      box.append(role ? make("span", { class: "role" }, role) : "", message.content ?? "", number < messages.length - 1 ? "\n" : "");
    });
    return box;
  };

  /** Buttons of which one is on; the arrow keys, Home and End move between them. */
  function tabs(label, options, onPick) {
    const list = make("div", { class: "tabs", role: "tablist", "aria-label": label });
    const pick = (number, focus = false) => {
      [...list.children].forEach((tab, at) => {
        tab.setAttribute("aria-selected", String(at === number));
        tab.tabIndex = at === number ? 0 : -1;
      });
      if (focus) list.children[number].focus();
      onPick(options[number].value);
    };
    options.forEach((option, number) => list.append(
      make("button", { type: "button", role: "tab", onclick: () => pick(number) }, option.label)));
    list.addEventListener("keydown", (event) => {
      const now = [...list.children].indexOf(document.activeElement), last = options.length - 1;
      const to = { ArrowRight: Math.min(now + 1, last), ArrowLeft: Math.max(now - 1, 0), Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      pick(to, true);
    });
    return { list, pick };
  }

  // How to color a number per token: around 0 in two colors, or from 0 in one.
  const COLORS = {
    advantages: { label: "advantage", about: "blue tokens are made more likely, orange ones less", two: true, format: signed },
    values: { label: "value", about: "the reward that the critic expects at this token", two: true, format: short },
    kl: { label: "log-ratio to the reference", about: "nats; its mean estimates the KL", two: true, format: signed },
    ratios: { label: "ratio", about: "probability at the last step on the answer, by that when it was sampled", two: true, of: Math.log, format: short },
    log_probs: { label: "surprise", about: "nats that the policy itself gave the token", two: false, of: (value) => -value, format: short },
    losses: { label: "loss", about: "nats", two: false, format: short },
    gains: { label: "change since the start", about: "nats; blue tokens became easier", two: true, of: (value) => -value, format: signed },
    log_ratios: { label: "log-ratio to the reference", about: "nats; blue tokens became more likely than in the reference", two: true, format: signed },
  };

  /** The largest number that colors must show, without the most extreme two percent. */
  function reach(values) {
    const sizes = values.filter((value) => value !== null && Number.isFinite(value)).map(Math.abs).sort((a, b) => a - b);
    return sizes.length ? sizes[Math.min(Math.floor(0.98 * sizes.length), sizes.length - 1)] || sizes.at(-1) || 1 : 1;
  }

  function shade(kind, value, largest) {
    const style = COLORS[kind], number = (style.of ?? ((same) => same))(value);
    const name = style.two ? (number > 0 ? "--plus" : "--minus") : "--heat";
    return tint(name, Math.abs(number) / largest);
  }

  /** A color for a share of the largest number; small shares are lifted, to be seen. */
  const tint = (name, share) => `rgb(var(${name}) / ${(0.72 * Math.min(share, 1) ** 0.6).toFixed(3)})`;

  function scale(kind, largest) {
    const style = COLORS[kind], bar = make("i");
    const back = style.of === Math.log ? Math.exp : style.of ?? ((same) => same);
    const ends = style.two ? [back(-largest), back(largest)] : [0, largest];
    const shares = [0, 0.1, 0.25, 0.5, 0.75, 1], up = (name) => shares.map((share) => tint(name, share));
    const colors = style.two ? [...up("--minus").reverse(), ...up("--plus")] : up("--heat");
    const places = style.two ? [...shares.map((share) => 50 - 50 * share).reverse(), ...shares.map((share) => 50 + 50 * share)] : shares.map((share) => 100 * share);
    bar.style.background = `linear-gradient(90deg, ${colors.map((shown, at) => `${shown} ${places[at]}%`).join(", ")})`;
    return make("span", { class: "scale" }, style.format(ends[0]), bar, style.format(ends[1]), make("span", {}, style.about));
  }

  /** A token's text with its line ends to be seen; the line breaks after the last of several. */
  function visible(text, next) {
    const breaks = text.endsWith("\n") && next !== undefined && !next.startsWith("\n");
    return text.replaceAll(/\n+/g, (ends) => "⏎".repeat(ends.length) + "\n").replace(/\n$/, breaks ? "\n" : "").replaceAll("\t", "⇥\t");
  }

  /** Colored tokens; hover, or focus and arrow keys, tell the numbers of one in `readout`. */
  function tokensOf(sample, { kind, largest, kinds, readout }) {
    const box = make("p", { class: "tokens", tabindex: "0", role: "group", "aria-label": `tokens, colored by ${COLORS[kind].label}; arrow keys move` });
    let on = -1;
    const tell = (at) => {
      box.children[on]?.classList.remove("on");
      on = at;
      box.children[on]?.classList.add("on");
      const numbers = kinds.filter((name) => sample[name] && sample[name][at] !== null && sample[name][at] !== undefined)
        .map((name) => `${COLORS[name].label} ${COLORS[name].format(name === "log_probs" ? -sample[name][at] : sample[name][at])}`);
      readout.textContent = `token ${at + 1} of ${sample.tokens.length} ${JSON.stringify(sample.tokens[at])}: ${numbers.join(", ") || (sample.of_tools?.[at] ? "of a tool" : "not trained on")}`;
    };
    sample.tokens.forEach((text, at) => {
      const value = sample[kind]?.[at];
      const token = make("span", { class: value === null || value === undefined ? "none" : "" }, visible(text, sample.tokens[at + 1]));
      if (/^<\|.*\|>$/.test(text)) token.classList.add("special");
      if (sample.of_tools?.[at]) token.classList.add("tool");
      if (value !== null && value !== undefined) token.style.background = shade(kind, value, largest);
      token.addEventListener("pointerenter", () => tell(at));
      token.addEventListener("click", () => tell(at));
      box.append(token);
    });
    if (sample.left_out) box.append(make("span", { class: "none" }, ` … ${short(sample.left_out)} more tokens`));
    box.addEventListener("keydown", (event) => {
      const last = sample.tokens.length - 1;
      const to = { ArrowRight: Math.min(on + 1, last), ArrowLeft: Math.max(on - 1, 0), Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      tell(to);
    });
    return box;
  }

  /**
   * A view of one kind of samples: pick a run, a moment and what to color by.
   * draw(cards, samples, look, first) fills `cards`; `look` is for `tokensOf`, `first` are those of the first moment.
   */
  function view(sampleKind, title, about, kindsOf, listed, draw) {
    const runs = data.runs.map((run, number) => [number, run]).filter(([, run]) => run.samples[sampleKind]);
    if (!runs.length) return;
    const cards = make("div", { class: "cards" }), picks = make("div", { class: "picks" });
    const readout = make("p", { class: "readout", "aria-live": "polite" });
    views.append(make("div", { class: "view", id: `view-${sampleKind}` }, make("h3", {}, title), make("p", { class: "note" }, about), picks, cards, readout));
    let kind = null, moment = null;

    function show(number) {
      const moments = data.runs[number].samples[sampleKind], steps = Object.keys(moments).sort((a, b) => a - b);
      const every = steps.flatMap((step) => moments[step]), kinds = kindsOf(every);
      const largest = Object.fromEntries(kinds.map((name) => [name, reach(every.flatMap((sample) => listed(sample, name))
        .filter((value) => value !== null && value !== undefined).map(COLORS[name].of ?? ((same) => same)))]));
      const legendOfColors = make("div");
      const redraw = () => {
        cards.replaceChildren();
        legendOfColors.replaceChildren(...(kind ? [scale(kind, largest[kind])] : []));
        readout.textContent = "";
        draw(cards, moments[moment], { kind, largest: largest[kind], kinds, readout }, moments[steps[0]]);
      };
      kind = kinds.includes(kind) ? kind : kinds[0] ?? null;
      moment = steps.at(-1);
      const times = tabs("Moment of the training", steps.map((step) => ({ label: `step ${short(Number(step))}`, value: step })), (step) => { moment = step; redraw(); });
      const rows = [make("div", {}, make("span", { class: "label" }, "moment"), times.list)];
      if (kinds.length > 1) {
        const byKind = tabs("Color tokens by", kinds.map((name) => ({ label: COLORS[name].label, value: name })), (name) => { kind = name; redraw(); });
        rows.push(make("div", {}, make("span", { class: "label" }, "color by"), byKind.list));
        byKind.pick(kinds.indexOf(kind));
      }
      chosen.replaceChildren(...rows, legendOfColors);
      times.pick(steps.length - 1);
    }

    const chosen = make("div", { class: "picks" });
    if (runs.length > 1) {
      const byRun = tabs("Run", runs.map(([number, run]) => ({ label: run.name, value: number })), show);
      picks.append(make("div", {}, make("span", { class: "label" }, "run"), byRun.list));
      picks.after(chosen);
      byRun.pick(runs.length - 1);
    } else {
      picks.replaceWith(chosen);
      show(runs[0][0]);
    }
  }

  const present = (names) => (samples) => names.filter((name) => samples.some((sample) => sample[name]));

  // --- microscope: held-out answers, stage by stage ----------------------------------------------------------------

  if (data.answers.some((prompt) => prompt.answers.length)) {
    const cards = make("div", { class: "cards" }), several = data.runs.length > 1;
    const all = make("input", { type: "checkbox" });
    const draw = () => {
      cards.replaceChildren();
      for (const prompt of data.answers) {
        const card = make("div", { class: "card" }, promptOf(prompt.prompt));
        if (prompt.right !== null) card.append(make("p", { class: "right" }, `right: ${prompt.right}`));
        prompt.answers.forEach((answer, number) => {
          const isLast = prompt.answers[number + 1]?.run !== answer.run;
          if (several && !all.checked && !isLast) return;
          const run = data.runs[answer.run], dot = make("i", { class: "dot" });
          dot.style.setProperty("--run", `var(--run-${answer.run % 10})`);
          const who = several && isLast && !all.checked ? run.name : `${several ? `${run.name}, ` : ""}step ${short(answer.step)}`;
          const mark = answer.exact === null ? "" : answer.exact ? "✓ exact" : "✗";
          const reward = answer.reward === null ? "" : ` ${short(answer.reward)}`;
          card.append(make("div", { class: "said" }, make("span", { class: "who" }, dot, who),
            make("span", { class: "text" }, answer.answer || "(nothing)"),
            make("span", { class: `mark ${answer.exact === null ? "" : answer.exact ? "yes" : "no"}` }, mark + reward)));
        });
        cards.append(card);
      }
    };
    all.addEventListener("change", draw);
    views.append(make("div", { class: "view", id: "view-answers" },
      make("h3", {}, several ? "The same prompts, stage by stage" : "Answers to held-out prompts"),
      make("p", { class: "note" }, "Greedy answers, as a recipe's evaluation gives them; a number is the reward."),
      several ? make("div", { class: "picks" }, make("label", {}, all, " also during training")) : null, cards));
    draw();
  }

  // --- microscope: rollouts ----------------------------------------------------------------------------------------

  view("rollout", "Rollouts: what each token was trained by",
    "Answers that the policy sampled and learned from, of prompts whose answers got different rewards if there were any. Point at a token, or focus an answer and use the arrow keys. Underlined tokens are what tools answered; the policy did not choose them.",
    present(["advantages", "values", "kl", "ratios", "log_probs"]), (sample, name) => sample[name] ?? [],
    (cards, samples, look) => {
      const groups = Map.groupBy ? Map.groupBy(samples, (sample) => sample.group) : samples.reduce((map, sample) => map.set(sample.group, [...(map.get(sample.group) ?? []), sample]), new Map());
      const ends = {};
      for (const sample of samples) for (const [name, value] of Object.entries(sample.rewards)) {
        if (value === null) continue;
        const [low, high] = ends[name] ?? [0, 0];
        ends[name] = [Math.min(low, value), Math.max(high, value)];
      }
      for (const group of groups.values()) {
        const card = make("div", { class: "card" }, promptOf(group[0].prompt));
        if (group[0].right) card.append(make("p", { class: "right" }, `right: ${group[0].right}`));
        for (const sample of group) {
          const bars = make("dl", { class: "bars" });
          for (const [name, value] of Object.entries(sample.rewards)) {
            const [low, high] = ends[name] ?? [0, 1], fill = make("i");
            fill.style.width = `${value === null || high === low ? 0 : (100 * (value - low)) / (high - low)}%`;
            bars.append(make("div", {}, make("dt", {}, name), make("dd", {}, value === null ? "none" : short(value)), make("span", { class: "track" }, fill)));
          }
          const names = Object.keys(sample.rewards);
          if (names.length > 1) bars.append(make("div", {}, make("dt", {}, "weighted sum"), make("dd", {}, short(sample.reward))));
          card.append(make("div", { class: "answer" }, tokensOf(sample, look), bars,
            sample.ended ? null : make("p", { class: "who" }, "did not end by itself")));
        }
        cards.append(card);
      }
    });

  // --- microscope: losses of held-out rows -------------------------------------------------------------------------

  for (const run of data.runs) {
    const moments = run.samples.loss ?? {}, steps = Object.keys(moments).sort((a, b) => a - b);
    for (const step of steps.slice(1)) moments[step].forEach((sample, at) => {
      const before = moments[steps[0]][at];
      if (before?.tokens.join() === sample.tokens.join()) {
        sample.gains = sample.losses.map((loss, token) => (loss === null || before.losses[token] === null ? null : loss - before.losses[token]));
      }
    });
  }
  const mean = (values) => { const given = values.filter((value) => value !== null); return given.reduce((sum, value) => sum + value, 0) / given.length; };

  view("loss", "Held-out rows: what each token costs", "The loss of each token of rows that the model was not trained on. Faint tokens are not learned.",
    present(["losses", "gains"]), (sample, name) => sample[name] ?? [],
    (cards, samples, look, first) => samples.forEach((sample, at) => {
      const before = first[at];
      const was = before && before !== sample ? `, at the start ${short(mean(before.losses))}` : "";
      cards.append(make("div", { class: "card" }, make("p", { class: "right" }, `${sample.source ? `${sample.source}: ` : ""}mean loss ${short(mean(sample.losses))}${was}`),
        tokensOf(sample, look)));
    }));

  // --- microscope: pairs -------------------------------------------------------------------------------------------

  view("pair", "Held-out pairs: which answer gained", "Both answers, with how much more likely than under the reference each token became.",
    () => ["log_ratios"], (sample, name) => [...sample.chosen[name], ...sample.rejected[name]],
    (cards, samples, look) => {
      for (const sample of samples) {
        const card = make("div", { class: "card" }, promptOf(sample.prompt));
        for (const side of ["chosen", "rejected"]) {
          card.append(make("div", { class: "pair" }, make("p", { class: "right" }, `${side}: log-ratio ${signed(sample[side].log_ratio)} nats in all`),
            tokensOf(sample[side], look)));
        }
        cards.append(card);
      }
    });

  view("score", "Held-out pairs: the reward model's scores", "The higher score is the answer that the model prefers.", () => [], () => [],
    (cards, samples) => {
      for (const sample of samples) {
        const card = make("div", { class: "card" }, promptOf(sample.prompt)), [better, worse] = sample.scores;
        for (const [side, score, wins] of [["chosen", better, better > worse], ["rejected", worse, worse >= better]]) {
          card.append(make("div", { class: "said" }, make("span", { class: "who" }, side), make("span", { class: "text" }, sample[side] ?? ""),
            make("span", { class: `mark ${wins ? (side === "chosen" ? "yes" : "no") : ""}` }, short(score))));
        }
        cards.append(card);
      }
    });

  document.getElementById("no-samples").hidden = views.children.length > 0;
  root.dataset.ready = "true";
})();
