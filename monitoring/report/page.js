"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const TOP = 8;

  const number = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-4 || size >= 1e6)) {
      return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e").replace(/-/g, "\u2212");
    }
    return value.toLocaleString("en-US", { maximumSignificantDigits: 4 }).replace("-", "\u2212");
  };
  const written = (chart, value) =>
    chart.share ? `${(100 * value).toLocaleString("en-US", { maximumSignificantDigits: 3 })} %` : number(value);

  // the bucket at an index or the nearest one before or behind it
  const nearest = (indexes, wanted) => {
    let low = 0, high = indexes.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (indexes[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low > 0 && wanted - indexes[low - 1] <= indexes[low] - wanted ? low - 1 : low;
  };
  const make = (beside, name, attributes) => {
    const element = document.createElementNS(beside.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const end = (index) => (index >= data.top ? data.last : (index + 1) * data.width - 1);
  const centre = (index) => (index * data.width + end(index)) / 2;
  const share = (index) => Math.max(0, Math.min(1, (centre(index) - data.first) / (data.last - data.first)));
  const steps = (index, least = 1) => {  // evaluations begin at step 0, the random start
    const [from, to] = [Math.min(end(index), Math.max(least, index * data.width)), end(index)].map((step) => step.toLocaleString("en-US"));
    return from === to ? `step ${from}` : `steps ${from}\u2013${to}`;
  };

  const all = [...new Set(data.charts.flatMap((chart) => chart.lines.flatMap((line) => line.i)))].sort((a, b) => a - b);
  const views = data.charts.map((chart, place) => {
    const figure = document.getElementById(`chart-${place}`);
    const plot = figure.querySelector(".plot");
    const svg = plot.querySelector("svg");
    const height = Number(svg.querySelector("svg.curves").getAttribute("height"));
    const cursor = make(svg, "g", { class: "cursor", visibility: "hidden" });
    const rule = make(svg, "line", { y1: 0, y2: height });
    const label = make(svg, "text", { y: 11 });
    const dots = chart.lines.map((_, line) => make(svg, "circle", { r: 3.5, class: `series-${line % 4}` }));
    cursor.append(rule, ...dots, label);
    svg.append(cursor);
    const values = [...figure.querySelectorAll(".legend dd")];
    const latest = values.map((value) => value.textContent);
    return { chart, plot, height, cursor, rule, label, dots, values, latest };
  });

  let current = null;
  const vertical = (view, value) => {
    const { low, high, log } = view.chart;
    const part = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return view.height - part * (view.height - TOP);
  };
  // shows the values of a bucket in every chart; the one that is pointed at names its steps
  const show = (index, active) => {
    current = index;
    for (const view of views) {
      const at = `${(100 * share(index)).toFixed(2)}%`;
      view.cursor.setAttribute("visibility", "visible");
      view.rule.setAttribute("x1", at);
      view.rule.setAttribute("x2", at);
      view.label.textContent = view === active ? steps(index) : "";
      view.label.setAttribute("x", at);
      view.label.setAttribute("dx", share(index) > 0.5 ? -6 : 6);
      view.label.setAttribute("text-anchor", share(index) > 0.5 ? "end" : "start");
      const said = [];
      view.chart.lines.forEach((line, number) => {
        const place = line.i.length ? nearest(line.i, index) : -1;
        const there = place >= 0 && (line.p || Math.abs(line.i[place] - index) <= 1);  // of evaluations, the nearest one
        const height = there ? vertical(view, line.m[place]) : 0;
        const inside = height > -4 && height < view.height + 4;  // values of the first steps may lie beyond the axis
        view.dots[number].setAttribute("visibility", there && inside ? "inherit" : "hidden");
        view.values[number].textContent = there ? written(view.chart, line.m[place]) : "\u2013";
        if (!there) return;
        view.dots[number].setAttribute("cx", line.p ? `${(100 * share(line.i[place])).toFixed(2)}%` : at);
        view.dots[number].setAttribute("cy", height.toFixed(1));
        const name = view.values[number].previousElementSibling.textContent;
        const spread = line.l ? `, from ${written(view.chart, line.l[place])} to ${written(view.chart, line.h[place])}` : "";
        const where = line.p ? ` at ${steps(line.i[place], 0)}` : "";
        said.push(`${name === "latest" ? "" : `${name} `}${written(view.chart, line.m[place])}${spread}${where}`);
      });
      if (view === active) {
        view.plot.setAttribute("aria-valuenow", Math.round(centre(index)));
        view.plot.setAttribute("aria-valuetext", `${steps(index)}: ${said.join(", ") || "no value"}`);
      }
    }
  };
  const hide = () => {
    current = null;
    for (const view of views) {
      view.cursor.setAttribute("visibility", "hidden");
      view.values.forEach((value, number) => { value.textContent = view.latest[number]; });
    }
  };

  for (const view of views) {
    if (!all.length) break;
    const { plot } = view;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-orientation", "horizontal");
    plot.setAttribute("aria-valuemin", data.first);
    plot.setAttribute("aria-valuemax", data.last);
    plot.setAttribute("aria-valuenow", data.last);
    plot.setAttribute("aria-valuetext", "use the arrow keys to read values");
    const point = (event) => {
      const box = plot.getBoundingClientRect();
      const step = data.first + ((event.clientX - box.left) / box.width) * (data.last - data.first);
      const wanted = data.width === 1 ? Math.round(step) : Math.floor(step / data.width);
      show(all[nearest(all, wanted)], view);
    };
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });  // under a finger one sees nothing
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const place = current === null ? all.length - 1 : nearest(all, current);
      const far = Math.max(1, Math.round(all.length / 10));
      const moves = {
        ArrowLeft: place - 1, ArrowRight: place + 1, ArrowDown: place - 1, ArrowUp: place + 1,
        PageDown: place - far, PageUp: place + far, Home: 0, End: all.length - 1,
      };
      if (event.key === "Escape") return hide();
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return undefined;
      event.preventDefault();
      return show(all[Math.max(0, Math.min(all.length - 1, moves[event.key]))], view);
    });
  }

  // the enlarged picture turns into its neighbours in the same strip, so that one picture can be followed through the steps
  const viewer = document.getElementById("viewer");
  if (viewer) {
    const [previous, next] = viewer.querySelectorAll(".turn");
    const caption = viewer.querySelector("output");
    let shown = [], place = 0;
    const turn = (to) => {
      place = Math.max(0, Math.min(shown.length - 1, to));
      const from = shown[place].querySelector("img");
      const image = viewer.querySelector("img");
      image.src = from.src;
      image.alt = caption.textContent = from.alt;
      previous.disabled = place === 0;
      next.disabled = place === shown.length - 1;
    };
    for (const strip of document.querySelectorAll(".strip")) {
      const buttons = [...strip.querySelectorAll(".enlarge")];
      buttons.forEach((button, number) => button.addEventListener("click", () => {
        shown = buttons;
        previous.hidden = next.hidden = buttons.length < 2;
        turn(number);
        viewer.showModal();
      }));
    }
    previous.addEventListener("click", () => turn(place - 1));
    next.addEventListener("click", () => turn(place + 1));
    viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
    viewer.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "ArrowLeft") turn(place - 1);
      else if (event.key === "ArrowRight") turn(place + 1);
    });
  }

  const tools = document.getElementById("event-tools");
  if (tools) {
    const kind = document.getElementById("event-kind");
    const wanted = document.getElementById("event-text");
    const count = document.getElementById("event-count");
    const rows = [...document.querySelectorAll(".events tbody tr")].map((row) => (
      { row, kind: row.querySelector(".kind").textContent, text: row.textContent.toLowerCase() }
    ));
    const filter = () => {
      const text = wanted.value.trim().toLowerCase();
      let shown = 0;
      for (const entry of rows) {
        entry.row.hidden = (kind.value !== "" && entry.kind !== kind.value) || !entry.text.includes(text);
        shown += !entry.row.hidden;
      }
      count.textContent = `${shown.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")} events`;
    };
    tools.hidden = false;
    tools.addEventListener("input", filter);
    tools.addEventListener("submit", (event) => event.preventDefault());
  }
})();
