"use strict";
(() => {
  const { figures, samples } = JSON.parse(document.getElementById("data").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  // Each figure is kept as drawn for light pages, with the colours that differ on dark ones.
  const shown = (figure) => {
    const copy = structuredClone(figure.light);
    if (night.matches && !printing)
      for (const [path, colour] of figure.dark) {
        const last = path[path.length - 1];
        path.slice(0, -1).reduce((node, key) => node[key], copy)[last] = colour;
      }
    return copy;
  };
  const draw = (place) => {
    const { data, layout } = shown(figures[place.id]);
    return Plotly.react(place, data, layout, { responsive: true, displaylogo: false });
  };
  const open = (place) => !place.closest("details:not([open])");
  const drawAll = () => document.querySelectorAll(".plot").forEach((place) => open(place) && draw(place));
  document.querySelectorAll("details").forEach((fold) =>
    fold.addEventListener("toggle", () => fold.open && fold.querySelectorAll(".plot").forEach(draw)));
  night.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { printing = true; drawAll(); });
  addEventListener("afterprint", () => { printing = false; drawAll(); });
  drawAll();

  const group = document.getElementById("group");
  if (group) {
    let at = 0;
    const put = (parent, tag, text) => {  // text only: nothing of an answer is ever read as markup
      const node = document.createElement(tag);
      node.textContent = text;
      return parent.appendChild(node);
    };
    const show = () => {
      const { questions } = samples[group.value];
      at = (at + questions.length) % questions.length;
      const { question, answers } = questions[at];
      document.getElementById("where").textContent = `${at + 1} of ${questions.length}`;
      document.getElementById("question").textContent = question;
      const body = document.getElementById("answers");
      body.replaceChildren();
      for (const row of answers) {
        const line = body.appendChild(document.createElement("tr"));
        row.forEach((text) => put(line, "td", text));
      }
    };
    samples.forEach(({ title }, index) => { put(group, "option", title).value = index; });
    group.addEventListener("change", () => { at = 0; show(); });
    document.getElementById("back").addEventListener("click", () => { at -= 1; show(); });
    document.getElementById("next").addEventListener("click", () => { at += 1; show(); });
    show();
  }
})();
