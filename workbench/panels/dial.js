// Schwartz's circle as a dial: the angle of a handle blends neighbouring values, its distance from the middle is strength.

const NS = "http://www.w3.org/2000/svg";
const svg = (tag, attributes, parent) => {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
};
const at = (angle, radius) => [radius * Math.cos(angle), -radius * Math.sin(angle)]; // y points up, as in every figure
const TURN = 2 * Math.PI;
const wrap = (angle) => ((angle % TURN) + TURN) % TURN;
const points = (radii, angles) => radii.map((r, k) => at(angles[k], r).map((x) => x.toFixed(4)).join(",")).join(" ");

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "wb-dial";
  const face = svg("svg", { viewBox: "-1.98 -1.3 3.96 2.6", role: "group", "aria-label": "Schwartz's circle" }, root);
  const ground = svg("g", {}, face), found = svg("g", {}, face), hands = svg("g", {}, face);
  const told = document.createElement("div");
  told.className = "wb-dial-told";
  root.append(told);
  el.append(root);
  let held = null; // {index, angle, radius} while a hand holds a handle: further on than what the kernel knows
  let sent = 0;

  const send = (index, angle, radius, holding) => {
    model.set("hand", { index, angle: wrap(angle), radius: Math.min(Math.max(radius, 0), 1), held: holding, at: ++sent + Math.random() });
    model.save_changes(); // while one is on its way only the last position is kept
  };

  const drawGround = () => {
    ground.replaceChildren();
    const { names, angles, colours } = model.get("circle");
    const half = Math.PI / names.length;
    names.forEach((name, k) => {
      const [a, b] = [angles[k] - half + .012, angles[k] + half - .012];
      const [[x1, y1], [x2, y2]] = [at(a, 1.03), at(b, 1.03)];
      svg("path", { d: `M${x1} ${y1}A1.03 1.03 0 0 0 ${x2} ${y2}`, class: "wb-arc", stroke: colours[k] }, ground);
      svg("line", { x1: 0, y1: 0, ...(([x2, y2]) => ({ x2, y2 }))(at(angles[k], 1)), class: "wb-spoke" }, ground);
      const [x, y] = at(angles[k], 1.12);
      const side = Math.abs(x) < .2 ? "middle" : x > 0 ? "start" : "end";
      svg("text", { x, y: y + (Math.abs(x) < .2 ? (y > 0 ? .09 : -.03) : .035), "text-anchor": side, class: "wb-name" }, ground)
        .textContent = name;
    });
    model.get("rings").forEach(([radius, label]) => {
      svg("circle", { r: radius, class: "wb-ring" }, ground);
      const [x, y] = at(-Math.PI / 2, radius);
      svg("text", { x: x + .02, y: y - .015, "text-anchor": "start", class: "wb-ring-label" }, ground).textContent = label;
    });
  };

  const drawFound = () => {
    found.replaceChildren();
    const { angles, names, colours } = model.get("circle");
    for (const name of ["before", "after"]) {
      const radii = model.get(name);
      if (radii.length) svg("polygon", { points: points(radii, angles), class: `wb-profile wb-${name}` }, found);
    }
    model.get("positions").forEach(([x, y], k) => {
      const [ix, iy] = at(angles[k], 1);
      svg("line", { x1: ix, y1: iy, x2: x, y2: -y, class: "wb-away" }, found);
      const mark = svg("circle", { cx: x, cy: -y, r: .036, fill: colours[k], class: "wb-place" }, found);
      svg("title", {}, mark).textContent = `${names[k]}, where this model holds it`;
    });
  };

  const drawHands = () => {
    const focused = hands.contains(document.activeElement) ? document.activeElement.dataset.index : null;
    const all = model.get("handles"), active = model.get("active");
    while (hands.childElementCount > all.length) hands.lastChild.remove();
    all.forEach((handle, index) => {
      const { angle, radius } = held?.index === index ? held : handle;
      let group = hands.children[index];
      if (!group) {
        group = svg("g", { class: "wb-hand", tabindex: 0, role: "slider" }, hands);
        group.dataset.index = index;
        svg("line", { x1: 0, y1: 0 }, group);
        svg("circle", { r: .17, class: "wb-reach" }, group);
        svg("circle", { r: .085, class: "wb-knob" }, group);
        svg("text", { "text-anchor": "middle", class: "wb-letter" }, group);
      }
      const [x, y] = at(angle, radius), [line, reach, knob, letter] = group.children;
      line.setAttribute("x2", x); line.setAttribute("y2", y);
      for (const circle of [reach, knob]) { circle.setAttribute("cx", x); circle.setAttribute("cy", y); }
      letter.setAttribute("x", x); letter.setAttribute("y", y + .035);
      letter.textContent = handle.letter;
      group.style.setProperty("--wb-hand", handle.colour);
      group.classList.toggle("wb-active", index === active);
      group.classList.toggle("wb-off", radius === 0);
      for (const [name, value] of Object.entries({ label: handle.label, valuemin: 0, valuemax: 360,
        valuenow: Math.round(angle * 360 / TURN), valuetext: handle.text })) group.setAttribute(`aria-${name}`, value);
    });
    if (focused !== null) hands.children[focused]?.focus({ preventScroll: true });
    told.textContent = model.get("told");
  };

  const where = (event) => {
    const box = face.getBoundingClientRect(), view = face.viewBox.baseVal;
    const scale = Math.max(view.width / box.width, view.height / box.height);
    const x = (event.clientX - box.left - box.width / 2) * scale, y = (box.top + box.height / 2 - event.clientY) * scale;
    return { angle: wrap(Math.atan2(y, x)), radius: Math.min(Math.hypot(x, y), 1) };
  };
  const hold = (index, event, holding) => {
    held = { index, ...where(event) };
    if (held.radius < .06) held.radius = 0; // the middle is off
    send(index, held.angle, held.radius, holding);
    if (!holding) held = null;
    drawHands();
  };
  face.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const group = event.target.closest?.(".wb-hand");
    const index = group ? Number(group.dataset.index) : model.get("active"); // anywhere else, the active one comes
    if (!hands.children[index]) return;
    event.preventDefault();
    hands.children[index].focus({ preventScroll: true });
    face.setPointerCapture(event.pointerId);
    hold(index, event, true);
  });
  face.addEventListener("pointermove", (event) => held && hold(held.index, event, true));
  const release = (event) => held && hold(held.index, event, false);
  face.addEventListener("pointerup", release);
  face.addEventListener("pointercancel", release);

  let pressed = null; // arrow keys: the release is what counts as done
  face.addEventListener("keydown", (event) => {
    const group = event.target.closest(".wb-hand");
    if (!group || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Number(group.dataset.index), step = TURN / (event.shiftKey ? 10 : 90);
    let { angle, radius } = pressed?.index === index ? pressed : model.get("handles")[index];
    if (event.key === "ArrowLeft") angle += step;
    else if (event.key === "ArrowRight") angle -= step;
    else if (event.key === "ArrowUp") radius += .05;
    else if (event.key === "ArrowDown") radius -= .05;
    else if (event.key === "PageUp") angle = (Math.floor(angle / (TURN / 10) + 1e-6) + 1) * (TURN / 10);
    else if (event.key === "PageDown") angle = (Math.ceil(angle / (TURN / 10) - 1e-6) - 1) * (TURN / 10);
    else if (event.key === "Home") radius = 0;
    else if (event.key === "End") radius = 1;
    else return;
    event.preventDefault();
    event.stopPropagation();
    radius = Math.round(1e6 * Math.min(Math.max(radius, 0), 1)) / 1e6;
    pressed = held = { index, angle: wrap(angle), radius };
    send(index, angle, radius, true);
    drawHands();
  });
  face.addEventListener("keyup", () => {
    if (!pressed) return;
    const { index, angle, radius } = pressed;
    pressed = held = null;
    send(index, angle, radius, false);
  });

  const redraw = { circle: drawGround, rings: drawGround, positions: drawFound, before: drawFound, after: drawFound,
                   handles: drawHands, active: drawHands, told: drawHands };
  for (const [name, draw] of Object.entries(redraw)) model.on(`change:${name}`, draw);
  drawGround(); drawFound(); drawHands();
  return () => {
    for (const [name, draw] of Object.entries(redraw)) model.off(`change:${name}`, draw);
  };
}

export default { render };
