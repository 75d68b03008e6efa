// The view of a blind review. Texts are set with textContent only: nothing in an item is ever read as HTML.

const make = (tag, name, parent, attributes = {}) => {
  const node = document.createElement(tag);
  node.className = `wb-${name}`;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent?.append(node);
  return node;
};

function render({ model, el }) {
  // The attribute keeps JupyterLab's own keys off, such as x, which would cut the cell and the panel with it.
  const root = make("section", "review", el, {
    tabindex: 0, "aria-label": "Blind review", "data-lm-suppress-shortcuts": "true",
  });
  const head = make("div", "head", root);
  const place = make("b", "place", head);
  const bar = make("div", "bar", head, { role: "progressbar", "aria-label": "Items judged", "aria-valuemin": 0 });
  const fill = make("div", "fill", bar);
  const count = make("span", "count", head);
  const item = make("div", "item", root, { "aria-live": "polite" });
  const labels = make("div", "labels", root, { role: "group", "aria-label": "Judgement" });
  const moves = make("div", "moves", root);
  const status = make("div", "status", root, { role: "status" });
  const note = make("div", "note", root);
  const problem = make("div", "alert", root, { role: "alert" });

  const send = (act, step = 0) => {
    status.textContent = "…"; // until the kernel answers; a dead one never does
    model.send({ act, step, position: model.get("shown").position });
  };
  const button = (parent, key, told, shortcut, act) => {
    const made = make("button", "button", parent, { type: "button", "aria-keyshortcuts": shortcut });
    make("kbd", "key", made).textContent = key;
    make("span", "label", made).textContent = told;
    made.addEventListener("click", act);
    return made;
  };
  const judge = model.get("shown").labels.map((label, k) =>
    button(labels, `${k + 1}`, label, `${k + 1}`, () => send("judge", k)));
  button(moves, "←", "back", "ArrowLeft", () => send("move", -1));
  button(moves, "→", "next", "ArrowRight", () => send("move", 1));
  button(moves, "u", "undo", "u Backspace", () => send("undo"));
  const save = button(moves, "", "Export CSV", "", () => send("export"));
  save.removeAttribute("aria-keyshortcuts");
  make("span", "hint", moves).textContent = "Click into the panel to use the keys.";

  const keys = { ArrowLeft: ["move", -1], ArrowRight: ["move", 1], u: ["undo"], U: ["undo"], Backspace: ["undo"] };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = /^[1-9]$/.test(event.key) && event.key <= judge.length ? ["judge", event.key - 1] : keys[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) send(...act); // a key held down judges once
  });

  const card = (title, text) => {
    const made = make("div", "card", null);
    if (title) make("div", "title", made).textContent = title;
    make("div", text ? "text" : "text wb-empty", made, { dir: "auto" }).textContent = text || "(empty)";
    return made;
  };
  let before;
  const show = () => {
    const shown = model.get("shown");
    place.textContent = `Item ${shown.position + 1} of ${shown.total}`;
    count.textContent = `${shown.done} judged · ${shown.annotator} · ${shown.record}`;
    bar.setAttribute("aria-valuemax", shown.total);
    bar.setAttribute("aria-valuenow", shown.done);
    fill.style.width = `${(100 * shown.done) / shown.total}%`;
    const now = JSON.stringify([shown.position, shown.texts]);
    if (now !== before) { // the same item is not read out again
      const ask = make("div", "ask", null, { dir: "auto" });
      const [asked, ...explained] = shown.ask.split("\n");
      make("div", "asked", ask).textContent = asked;
      make("div", "explained", ask).textContent = explained.join("\n");
      const cards = make("div", "cards", null);
      cards.append(...shown.texts.map(([letter, text]) => card(letter || (shown.question && "Answer"), text)));
      item.replaceChildren(ask, ...(shown.question ? [card("Question", shown.question)] : []), cards);
      before = now;
    }
    judge.forEach((made, k) => made.setAttribute("aria-pressed", shown.labels[k] === shown.given));
    const all = shown.done === shown.total ? `All ${shown.total} items are judged. ` : "";
    status.textContent = all + shown.told;
    note.textContent = shown.note;
    problem.textContent = shown.problem;
  };
  model.on("change:shown", show);
  show();
  return () => model.off("change:shown", show);
}

export default { render };
