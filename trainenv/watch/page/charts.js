/* Charts of a run: four uPlot panels that share the step axis. */
"use strict";
const Charts = (() => {
  const SYNC = uPlot.sync("run");
  const NARROW = 560;
  const css = (name) => getComputedStyle(document.querySelector("main")).getPropertyValue(`--${name}`).trim();
  const mixed = (colour, alpha) => `color-mix(in srgb, ${colour} ${100 * alpha}%, transparent)`;
  const whole = (value) => value == null ? "–" : Math.round(value).toLocaleString("en-US");
  const digits = (value) => value == null ? "–" : Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(3) : value.toPrecision(2);
  let curves = null, story = null, panels = {}, zoom = null, asked = () => {};

  /* Limits of the loss axis: without the first tenth of the run, whose high losses would flatten the rest. */
  const lossRange = (u) => {
    const [x, low, high, smooth] = u.data;
    const [min, max] = zoom ?? span();
    const early = zoom ? min : x.length ? x[x.length - 1] / 10 : 0;
    let places = [];
    for (let i = 0; i < x.length; i++) if (x[i] >= Math.max(min, early) && x[i] <= max) places.push(i);
    if (places.length < 2) places = x.map((_, i) => i);
    const sorted = (values) => values.filter((value) => value != null).sort((a, b) => a - b);
    const lows = sorted(places.map((i) => low[i])), highs = sorted(places.map((i) => high[i]));
    const smooths = sorted(places.map((i) => smooth[i]));
    if (!smooths.length) return [0, 1];
    const validation = curves.validation.filter(([step, , kept]) => kept && step >= Math.max(min, early) && step <= max).map((v) => v[1]);
    const least = Math.min(smooths[0], lows[Math.floor(lows.length * 0.02)], ...validation);
    const usual = Math.max(smooths[Math.floor(smooths.length * 0.95)], ...validation);
    let most = Math.max(usual, highs[Math.floor(highs.length * 0.9)], Math.min(smooths[smooths.length - 1], usual + (usual - least)));
    const lost = curves.ghosts.flatMap((ghost) => ghost.loss.filter((loss, i) => loss != null && ghost.step[i] >= min && ghost.step[i] <= max));
    if (lost.length) most = Math.max(most, Math.min(Math.max(...lost), most + 0.8 * (most - least)));
    const room = 0.06 * Math.max(most - least, 0.01);
    return [least - room, most + room];
  };

  const inside = (u, draw) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineJoin = ctx.lineCap = "round";
    draw(ctx, devicePixelRatio, (step) => u.valToPos(step, "x", true), (value) => u.valToPos(value, "y", true));
    ctx.restore();
  };
  const stroke = (ctx, xs, ys, px, py) => {
    ctx.beginPath();
    let pen = false;
    xs.forEach((x, i) => {
      if (ys[i] == null) { pen = false; return; }
      if (pen) ctx.lineTo(px(x), py(ys[i])); else ctx.moveTo(px(x), py(ys[i]));
      pen = true;
    });
    ctx.stroke();
  };

  const drawRollbacks = (u) => inside(u, (ctx, ratio, px) => {
    ctx.fillStyle = mixed(css("warm"), 0.1);
    for (const [to, from] of story?.rollbacks ?? []) ctx.fillRect(px(to), u.bbox.top, Math.max(px(from) - px(to), ratio), u.bbox.height);
  });
  const COLOURS = { accepted: "accent", failed: "bad", passed: "grey", rejected: "grey", stopped: "grey", control: "grey" };
  const drawLoss = (u) => inside(u, (ctx, ratio, px, py) => {
    const { step, low } = curves;
    if (step.length > 1 && step[step.length - 1] - step[0] < 1.5 * step.length) {  // single steps
      ctx.fillStyle = css("dot");
      step.forEach((x, i) => { if (low[i] != null) ctx.fillRect(px(x) - ratio, py(low[i]) - ratio, 2.4 * ratio, 2.4 * ratio); });
    }
    ctx.lineWidth = 1.3 * ratio;
    ctx.strokeStyle = mixed(css("warm"), 0.6);
    for (const ghost of curves.ghosts) stroke(ctx, ghost.step, ghost.loss, px, py);
    for (const decision of story?.decisions ?? []) for (const branch of decision.branches) {
      if (!branch.loss) continue;
      ctx.lineWidth = (branch.fate === "accepted" ? 2 : 1) * ratio;
      ctx.strokeStyle = mixed(css(COLOURS[branch.fate]), branch.fate === "accepted" ? 1 : 0.6);
      stroke(ctx, branch.loss.map((_, i) => decision.step + 1 + i * branch.stride), branch.loss, px, py);
    }
    for (const [step, loss, kept] of curves.validation) {
      ctx.beginPath();
      ctx.arc(px(step), Math.max(py(loss), u.bbox.top + 3 * ratio), 3.2 * ratio, 0, 7);
      ctx.fillStyle = css(kept ? "validation" : "paper");
      ctx.strokeStyle = css(kept ? "paper" : "validation");
      ctx.lineWidth = 1.2 * ratio;
      ctx.fill();
      ctx.stroke();
    }
    ctx.fillStyle = css("bad");
    for (const step of story?.alarms ?? []) {
      const x = px(step), y = u.bbox.top;
      ctx.beginPath();
      ctx.moveTo(x - 5 * ratio, y);
      ctx.lineTo(x + 5 * ratio, y);
      ctx.lineTo(x, y + 8 * ratio);
      ctx.fill();
    }
  });

  const drawTree = (u) => inside(u, (ctx, ratio, px, py) => {
    const last = curves.step[curves.step.length - 1] ?? 0;
    ctx.strokeStyle = css("run");
    ctx.lineWidth = 2.2 * ratio;
    stroke(ctx, [0, last], [0, 0], px, py);
    ctx.strokeStyle = css("warm");
    ctx.lineWidth = 1.4 * ratio;
    for (const [to, from] of story?.rollbacks ?? []) {
      const a = px(from), b = px(to), y = u.bbox.top + 12 * ratio;
      ctx.beginPath();
      ctx.moveTo(a, y);
      ctx.bezierCurveTo(a, y - 9 * ratio, b, y - 9 * ratio, b, y);
      ctx.moveTo(b - 3 * ratio, y - 3 * ratio);
      ctx.lineTo(b, y);
      ctx.lineTo(b + 3 * ratio, y - 3 * ratio);
      ctx.stroke();
    }
    const decisions = [...(story?.decisions ?? [])].reverse();
    decisions.forEach((decision, place) => {
      const x = px(decision.step), next = decisions.slice(place + 1).find((other) => other.step > decision.step);
      const widest = (u.width < NARROW ? 26 : 56) * ratio;
      const room = Math.min(widest, next ? 0.86 * (px(next.step) - x) : widest, u.bbox.left + u.bbox.width - 5 * ratio - x);
      const shown = decision.branches.filter((branch) => !branch.control).sort((a, b) => (a.fate === "accepted") - (b.fate === "accepted"));
      if (room < 9 * ratio) {
        ctx.strokeStyle = css(decision.accepted ? "accent" : "grey");
        ctx.lineWidth = (decision.accepted ? 2 : 1) * ratio;
        ctx.beginPath();
        ctx.moveTo(x, py(0.2));
        ctx.lineTo(x, py(-0.2));
        ctx.stroke();
        return;
      }
      for (const branch of shown) {
        const y = py(branch.height ?? 1), middle = py(0), accepted = branch.fate === "accepted";
        ctx.strokeStyle = ctx.fillStyle = css(COLOURS[branch.fate]);
        ctx.lineWidth = (accepted ? 2.4 : 1.2) * ratio;
        ctx.beginPath();
        ctx.moveTo(x, middle);
        if (accepted) {
          ctx.bezierCurveTo(x + room / 4, middle, x + room / 4, y, x + room / 2, y);
          ctx.bezierCurveTo(x + 0.75 * room, y, x + 0.75 * room, middle, x + room, middle);
        } else ctx.bezierCurveTo(x + room / 2, middle, x + 0.2 * room, y, x + room - 3 * ratio, y);
        ctx.stroke();
        ctx.beginPath();
        ctx.arc(accepted ? x + room / 2 : x + room - 3 * ratio, y, (accepted ? 3 : 2) * ratio, 0, 7);
        ctx.fill();
      }
      ctx.beginPath();
      ctx.arc(x, py(0), 3.4 * ratio, 0, 7);
      ctx.fillStyle = css(decision.accepted ? "accent" : "paper");
      ctx.strokeStyle = css(decision.accepted ? "paper" : "run");
      ctx.lineWidth = 1.8 * ratio;
      ctx.fill();
      ctx.stroke();
    });
  });
  /* The decision under the pointer, in words. */
  const hint = (u) => {
    let box = u.root.querySelector(".hint");
    const near = (story?.decisions ?? []).map((decision) => [Math.abs(u.valToPos(decision.step, "x") - u.cursor.left), decision]).sort((a, b) => a[0] - b[0])[0];
    if (u.cursor.left < 0 || !near || near[0] > 40 || !u.root.matches(":hover")) { box?.remove(); return; }
    if (!box) {
      box = document.createElement("div");
      box.className = "hint";
      u.root.append(box);
    }
    const title = document.createElement("b"), text = document.createElement("span");
    title.textContent = `Decision ${near[1].number}: ${near[1].title}`;
    text.textContent = near[1].text;
    box.replaceChildren(title, text);
    const left = u.valToPos(near[1].step, "x") + u.bbox.left / devicePixelRatio + 14;
    box.style.left = `${Math.max(0, Math.min(left, u.width - box.offsetWidth))}px`;
  };

  const axes = (values, size) => {
    const common = { stroke: css("soft"), font: "11.5px ui-sans-serif, system-ui, sans-serif", ticks: { show: false } };
    return [
      { ...common, size: 28, space: 70, grid: { show: false }, values: (_, splits) => splits.map(whole) },
      { ...common, size: size ?? 54, space: 34, grid: { stroke: css("rule"), width: 1 }, values },
    ];
  };
  const line = (label, colour, width, more) => ({ label, stroke: css(colour), width, points: { show: false }, value: (_, value) => digits(value), ...more });
  const step = { label: "step", value: (_, value) => whole(value) };
  const panel = (name, height, options) => {
    const box = document.getElementById(name);
    const plot = new uPlot({
      width: box.clientWidth, height,
      padding: [null, 26, null, null],  // room for the last step number
      legend: { live: true, markers: { show: false } },
      cursor: { sync: { key: SYNC.key, setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { show: false }, bind: { dblclick: () => () => { setZoom(null); return null; } } },
      ...options,
      scales: { x: { time: false, range: () => zoom ?? span() }, ...options.scales },
      hooks: {
        ...options.hooks,
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          const from = u.posToVal(u.select.left, "x"), to = u.posToVal(u.select.left + u.select.width, "x");
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          if (to - from >= 2) setZoom([from, to]);
        }],
      },
    }, [[], ...options.series.slice(1).map(() => [])], box);
    panels[name] = plot;
  };
  const span = () => {
    const last = Math.max(1, curves?.step[curves.step.length - 1] ?? 1, ...(curves?.ghosts ?? []).map((ghost) => ghost.step[ghost.step.length - 1]));
    return [0, last];
  };

  const build = () => {
    for (const plot of Object.values(panels)) plot.destroy();
    panels = {};
    const narrow = document.getElementById("loss").clientWidth < NARROW;
    panel("loss", narrow ? 260 : 320, {
      series: [step, line("lowest", "dot", 0, { stroke: null }), line("highest", "dot", 0, { stroke: null }), line("loss", "run", 2)],
      bands: [{ series: [2, 1], fill: mixed(css("dot"), 0.5) }],
      scales: { y: { range: lossRange } },
      axes: axes((_, splits) => splits.map((value) => value.toFixed(2))),
      hooks: { drawAxes: [drawRollbacks], draw: [drawLoss] },
    });
    panel("tree", 150, {
      series: [step, { label: "", show: true, stroke: null, points: { show: false } }],
      legend: { show: false },
      scales: { y: { range: () => [-1.15, 1.35] } },
      axes: axes((_, splits) => splits.map((value) => ({ 1: "worse", 0: "same", "-1": "better" })[value] ?? "")),
      hooks: { draw: [drawTree], setCursor: [hint] },
    });
    panels.tree.axes[1].splits = () => [-1, 0, 1];
    panel("rate", 110, {
      series: [step, line("learning rate", "run", 2, { value: (_, value) => value == null ? "–" : value.toPrecision(3) })],
      scales: { y: { range: (_, low, high) => [0, 1.05 * (high || 1)] } },
      axes: axes((_, splits) => splits.map((value) => value ? value.toPrecision(2).replace(/\.?0+(e|$)/, "$1") : "0"), 54),
      legend: { show: true, markers: { show: false } },
    });
    panel("index", narrow ? 190 : 220, {
      series: [step, line("volatility", "warm", 1), line("entropy", "run", 1), line("disagreement", "accent", 1), line("index", "violet", 2), line("threshold", "grey", 1.4, { dash: [5, 4] })],
      scales: { y: { range: (_, low, high) => [Math.max(Math.min(low ?? -1, -1) - 0.3, -4), Math.min(Math.max(high ?? 4, 4) + 0.3, 12)] } },
      axes: axes((_, splits) => splits.map(String)),
    });
    draw();
  };
  const draw = () => {
    if (!curves || !panels.loss) return;
    const c = curves, none = c.step.map(() => null);
    panels.loss.setData([c.step, c.low, c.high, c.smooth]);
    panels.tree.setData([c.step, none]);
    panels.rate.setData([c.step, c.lr]);
    panels.index.setData([c.step, c.volatility, c.entropy, c.disagreement, c.index, c.threshold]);
  };
  const setZoom = (range) => {
    zoom = range;
    asked(range);
    draw();
  };
  const resize = () => {
    const width = document.getElementById("loss").clientWidth;
    for (const plot of Object.values(panels)) if (width && plot.width !== width) plot.setSize({ width, height: plot.height });
  };
  new ResizeObserver(resize).observe(document.getElementById("loss"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  document.getElementById("whole").addEventListener("click", () => setZoom(null));
  return {
    /* Shows curves; those of a stretch while one is zoomed in. */
    show: (found) => { curves = found; if (panels.loss) draw(); else build(); },
    tell: (found) => {
      const first = !!found.decisions.length && document.getElementById("tree-figure").hidden;
      story = found;
      document.getElementById("tree-figure").hidden = !found.decisions.length;
      if (first && panels.loss) build(); else draw();
    },
    onZoom: (call) => { asked = call; },
    zoom: setZoom,
    shown: () => curves,
    zoomed: () => zoom,
  };
})();
