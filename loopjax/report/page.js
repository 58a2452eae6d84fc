"use strict";
{
  const numbers = JSON.parse(document.getElementById("numbers").textContent);
  const tip = document.getElementById("tip");

  const shown = (model) => !model || document.getElementById(model).checked;
  const sign = (model) => document.querySelector(`label:has(#${model}) .sign`).cloneNode(true);
  const format = (v) => {
    if (v === null || v === undefined) return "–";
    const size = Math.abs(v);
    if (Number.isInteger(v) && size < 1e7) return v.toLocaleString("en");
    return size !== 0 && (size >= 1e6 || size < 1e-3) ? v.toExponential(3) : String(+v.toPrecision(4));
  };

  // Data coordinates to the SVG's coordinates, and back.
  const share = ([low, high, scale], v) =>
    scale === "log" ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
  const across = (axis, v) => axis.box[0] + share(axis.x, v) * (axis.box[2] - axis.box[0]);
  const down = (axis, v) => axis.box[3] - share(axis.y, v) * (axis.box[3] - axis.box[1]);
  // Markers that would lie on one another were moved sideways.
  const place = (axis, spot) => across(axis, spot.spot[0]) + (spot.shift ?? 0);
  const value = ([low, high, scale], part) =>
    scale === "log" ? low * (high / low) ** part : low + part * (high - low);

  const lines = (axis) => axis.lines.filter((line) => line.points && shown(line.model));
  const spots = (axis) => axis.lines.filter((line) => line.spot && shown(line.model));
  const image = (axis) => axis.images.find((one) => shown(one.model));
  const places = (axis) => [...new Set(lines(axis).flatMap((line) => line.points[0]))].sort((a, b) => a - b);

  function nearest(list, v, of = (x) => x) {
    let best = 0;
    list.forEach((item, i) => {
      if (Math.abs(of(item) - v) < Math.abs(of(list[best]) - v)) best = i;
    });
    return best;
  }

  // The content of the tooltip: for lines at an x value, for a cell of a heat map, for a point.
  function atPlace(axis, x) {
    const visible = lines(axis);
    const gap = (axis.x[1] - axis.x[0]) / 50;
    const rows = visible.map((line) => {
      const [xs, ys] = line.points;
      const i = nearest(xs, x);
      return Math.abs(xs[i] - x) <= gap ? [line, ys[i]] : null;
    });
    return {
      head: `${axis.xlabel} ${format(x)}`,
      rows: rows.filter(Boolean).map(([line, y]) => [line.model, line.label, format(y)]),
      mark: { x: across(axis, x) },
    };
  }
  function atCell(axis, row, column) {
    const one = image(axis);
    return {
      head: one.label,
      rows: [[null, axis.ylabel, row], [null, axis.xlabel, column], [null, "value", format(one.values[row][column])]],
      mark: { row, column },
    };
  }
  function atSpot(axis, spot) {
    return {
      head: spot.label,
      rows: [[null, axis.xlabel, format(spot.spot[0])], [null, axis.ylabel || "value", format(spot.spot[1])],
        ...(spot.note ? [[null, "interval", spot.note]] : [])],
      mark: { x: place(axis, spot) },
    };
  }

  function pointed(axis, px, py) {
    const part = (px - axis.box[0]) / (axis.box[2] - axis.box[0]);
    const x = value(axis.x, part);
    const one = image(axis);
    if (one) {
      const [x0, x1, y0, y1] = one.extent;
      const y = value(axis.y, (axis.box[3] - py) / (axis.box[3] - axis.box[1]));
      const column = Math.floor((x - x0) / (x1 - x0) * one.values[0].length);
      const row = Math.floor((y - y1) / (y0 - y1) * one.values.length);
      return one.values[row]?.[column] === undefined ? null : atCell(axis, row, column);
    }
    const list = spots(axis);
    if (list.length) {
      const far = (s) => Math.hypot(place(axis, s) - px, down(axis, s.spot[1]) - py);
      return atSpot(axis, list.reduce((a, b) => (far(b) < far(a) ? b : a)));
    }
    const xs = places(axis);
    return xs.length ? atPlace(axis, xs[nearest(xs, x)]) : null;
  }

  function show(svg, axis, content, left, top) {
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = content.head;
    tip.append(head);
    for (const [model, label, text] of content.rows) {
      const row = document.createElement("div"), name = document.createElement("span"), out = document.createElement("span");
      if (model) name.append(sign(model));
      name.append(label);
      out.textContent = text;
      row.append(name, out);
      tip.append(row);
    }
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, left + 16 + width > innerWidth ? left - width - 16 : left + 16)}px`;
    tip.style.top = `${Math.max(4, Math.min(top + 12, innerHeight - height - 4))}px`;
    mark(svg, axis, content.mark);
  }
  function mark(svg, axis, at) {
    svg.querySelector(".mark")?.remove();
    if (!at) return;
    let shape;
    if (at.x !== undefined) {
      shape = document.createElementNS(svg.namespaceURI, "line");
      const ends = { x1: at.x, x2: at.x, y1: axis.box[1], y2: axis.box[3] };
      for (const [name, v] of Object.entries(ends)) shape.setAttribute(name, v);
      shape.setAttribute("class", "mark cursor");
    } else {
      const { extent: [x0, x1, y0, y1], values } = image(axis);
      const wide = (x1 - x0) / values[0].length, high = (y0 - y1) / values.length;
      const left = across(axis, x0 + at.column * wide), right = across(axis, x0 + (at.column + 1) * wide);
      const top = down(axis, y1 + at.row * high), bottom = down(axis, y1 + (at.row + 1) * high);
      shape = document.createElementNS(svg.namespaceURI, "rect");
      const sides = { x: Math.min(left, right), y: Math.min(top, bottom), width: Math.abs(right - left), height: Math.abs(bottom - top) };
      for (const [name, v] of Object.entries(sides)) shape.setAttribute(name, v);
      shape.setAttribute("class", "mark cell");
    }
    svg.append(shape);
  }

  for (const [key, { axes }] of Object.entries(numbers)) {
    const drawing = document.querySelector(`#${key} .drawing`);
    const svg = drawing.querySelector("svg");
    const usable = axes.filter((axis) => axis.lines.length || axis.images.length);
    if (!usable.length) continue;
    const hide = () => { tip.hidden = true; mark(svg); };
    const ready = () => usable.filter((axis) => image(axis) || lines(axis).length || spots(axis).length);

    const read = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const axis = ready().find(({ box }) =>
        point.x >= box[0] - 4 && point.x <= box[2] + 4 && point.y >= box[1] && point.y <= box[3]);
      const content = axis && pointed(axis, point.x, point.y);
      if (content) show(svg, axis, content, event.clientX, event.clientY);
      else hide();
    };
    svg.addEventListener("pointermove", read);
    svg.addEventListener("pointerdown", read);
    svg.addEventListener("pointerleave", hide);
    drawing.addEventListener("scroll", hide);

    // Keyboard: selects a panel and, in it, an x value, a point or a cell.
    let panel = 0, i = 0, row = 0;
    // A drawing that is wider than the page is scrolled to what is read.
    const reveal = (axis, at) => {
      if (drawing.scrollWidth <= drawing.clientWidth) return;
      const x = at.x ?? (axis.box[0] + axis.box[2]) / 2;
      drawing.removeEventListener("scroll", hide);
      drawing.scrollLeft = x * drawing.scrollWidth / svg.viewBox.baseVal.width - drawing.clientWidth / 2;
      requestAnimationFrame(() => drawing.addEventListener("scroll", hide));
    };
    const speak = () => {
      const list = ready();
      if (!list.length) return hide();
      panel = Math.max(0, Math.min(panel, list.length - 1));
      const axis = list[panel], one = image(axis), points = spots(axis), xs = places(axis);
      const count = one ? one.values[0].length : points.length || xs.length;
      i = Math.max(0, Math.min(i, count - 1));
      row = Math.max(0, Math.min(row, one ? one.values.length - 1 : 0));
      const content = one ? atCell(axis, row, i) : points.length ? atSpot(axis, points[i]) : atPlace(axis, xs[i]);
      reveal(axis, content.mark);
      const corner = new DOMPoint(axis.box[2], axis.box[1]).matrixTransform(svg.getScreenCTM());
      show(svg, axis, content, corner.x, corner.y);
    };
    drawing.addEventListener("keydown", (event) => {
      const move = { ArrowRight: [1, 0, 0], ArrowLeft: [-1, 0, 0], ArrowDown: [0, 1, 0], ArrowUp: [0, -1, 0], PageDown: [0, 0, 1], PageUp: [0, 0, -1] }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      if (!tip.hidden || move[2]) [i, row, panel] = [i + move[0], row + move[1], panel + move[2]];
      speak();
    });
    drawing.addEventListener("blur", hide);
  }

  // Tables are sorted by any column, numbers by their value.
  for (const table of document.querySelectorAll("figure.table table")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const of = (tr) => {
          const cell = tr.cells[column];
          return cell.dataset.value === undefined ? cell.textContent : +cell.dataset.value;
        };
        const order = (a, b) =>
          typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;
        body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(of(a), of(b))));
      });
    });
  }
  document.querySelector(".hint").hidden = false;

  // The theme: that of the system, unless the button chose one; the choice is remembered.
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const label = () => { button.textContent = current() === "dark" ? "Light page" : "Dark page"; };
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* not remembered */ }
    label();
  });
  dark.addEventListener("change", label);
  label();
  button.hidden = false;
}
