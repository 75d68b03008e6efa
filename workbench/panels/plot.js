// A plotly figure, drawn whole from its JSON. plotly.js itself is 5 MB: one model holds it for all figures of a page.

const KEY = Symbol.for("value-workbench.plotly");

const library = async (model) => {
  const held = (globalThis[KEY] ??= {});
  const owner = await model.widget_manager.get_model(model.get("_library").slice("IPY_MODEL_".length));
  const version = owner.get("version");
  if (!held[version]) {
    const module = { exports: {} }; // no AMD, no global: a page's own loaders are left alone
    new Function("module", "exports", "define", owner.get("source"))(module, module.exports, undefined);
    held[version] = module.exports;
  }
  return held[version];
};

const isDark = (node) => {
  const theme = document.body.dataset.jpThemeLight;
  if (theme) return theme === "false";
  const ground = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [255, 255, 255];
  return ground[3] !== 0 && (ground[0] + ground[1] + ground[2]) / 3 < 110;
};

// The fresh figure with those parts of the drawn one that are the same in both: plotly takes a new object for a change.
// was: the drawn figure as it came; held: as plotly has it, which fills in ranges.
const isPart = (part) => part !== null && typeof part === "object";
const sharing = (was, held, fresh) => {
  if (!isPart(fresh) || !isPart(held)) return fresh;
  return JSON.stringify(was) === JSON.stringify(fresh) ? held : rebuilt(was, held, fresh);
};
const rebuilt = (was, held, fresh) => {
  if (Array.isArray(was) !== Array.isArray(fresh)) return fresh;
  const parts = Object.entries(fresh).map(([key, part]) => [key, sharing(was[key], held[key], part)]);
  return Array.isArray(fresh) ? parts.map(([, part]) => part) : Object.fromEntries(parts);
};

async function render({ model, el, signal }) {
  const root = document.createElement("div");
  root.className = "wb-plot";
  root.setAttribute("role", "figure");
  const canvas = document.createElement("div");
  root.append(canvas);
  el.append(root);

  // Light or dark: the kernel draws for the page as it looks.
  const look = () => {
    const dark = isDark(root);
    if (model.get("dark") !== dark) {
      model.set("dark", dark);
      model.save_changes();
    }
  };
  look();
  const themes = new MutationObserver(look);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class", "style"] });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", look);

  const Plotly = await library(model);
  const config = { displaylogo: false, displayModeBar: false, doubleClick: "reset" };

  // The handle: a line across the first plot that can be dragged, or moved by arrow keys.
  const handle = document.createElement("div");
  handle.className = "wb-handle";
  handle.tabIndex = 0;
  handle.setAttribute("role", "slider");
  root.append(handle);
  const place = () => {
    const { at, label, low, high, text } = model.get("handle");
    handle.hidden = at === undefined || !canvas._fullLayout?.xaxis?.d2p;
    if (handle.hidden) return;
    const { xaxis, _size: size } = canvas._fullLayout;
    handle.style.left = `${xaxis._offset + xaxis.d2p(at)}px`;
    handle.style.top = `${size.t}px`;
    handle.style.height = `${size.h}px`;
    for (const [name, told] of Object.entries({ label, valuemin: low, valuemax: high, valuenow: at, valuetext: text })) {
      handle.setAttribute(`aria-${name}`, told);
    }
  };
  const move = (to) => {
    const held = model.get("handle");
    const at = Math.min(Math.max(to, held.low), held.high);
    if (at === held.at) return;
    model.set("handle", { ...held, at });
    model.save_changes();
    place();
  };
  const drag = (event) => {
    const { xaxis } = canvas._fullLayout;
    move(xaxis.p2d(event.clientX - root.getBoundingClientRect().left - xaxis._offset));
  };
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
    handle.focus();
  });
  handle.addEventListener("pointermove", (event) => handle.hasPointerCapture(event.pointerId) && drag(event));
  handle.addEventListener("keydown", (event) => {
    const { at, low, high, step } = model.get("handle");
    const to = { ArrowLeft: at - step, ArrowRight: at + step, ArrowDown: at - step, ArrowUp: at + step, Home: low,
                 End: high, PageDown: at - 10 * step, PageUp: at + 10 * step }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    move(to);
  });

  // Only the latest figure is drawn, one at a time.
  let wanted = false, busy = false, drawn = null, held = null;
  const draw = async () => {
    if (busy) { wanted = true; return; }
    if (drawn !== null && root.offsetParent === null) return; // out of sight: drawn once it is seen again
    busy = true;
    do {
      wanted = false;
      const told = model.get("figure");
      if (!told || told === drawn) continue;
      const was = drawn && JSON.parse(drawn), fresh = JSON.parse(told);
      const data = was ? sharing(was.data, held.data, fresh.data) : fresh.data;
      const layout = was ? rebuilt(was.layout, held.layout, fresh.layout) : fresh.layout; // its own numbers are the kernel's
      held = { data, layout };
      await Plotly.react(canvas, data, layout, config);
      drawn = told;
      place();
      const words = (text) => (text ?? "").replace(/<[^>]*>/g, " ");
      root.setAttribute("aria-label", `${words(layout.title?.text)}. ${words(layout.title?.subtitle?.text)}`);
      root.dataset.turn = model.get("turn");
    } while (wanted);
    busy = false;
  };
  await draw();

  let clicks = 0;
  canvas.on?.("plotly_click", ({ points: [point] }) => {
    const { curveNumber, pointNumber, x, y, customdata } = point;
    model.set("clicked", { trace: curveNumber, point: pointNumber, x, y, data: customdata ?? null, at: ++clicks + Math.random() });
    model.save_changes();
  });
  canvas.on?.("plotly_relayout", place);
  model.on("change:figure", draw);
  model.on("change:handle", place);
  const sizes = new ResizeObserver(() => {
    if (!canvas._fullLayout || root.offsetParent === null) return;
    // Plots.resize would forget the height that the kernel gave
    Plotly.relayout(canvas, { autosize: true }).then(place, () => {}).then(draw);
  });
  sizes.observe(root);
  signal?.addEventListener("abort", stop);
  function stop() {
    themes.disconnect();
    sizes.disconnect();
    scheme.removeEventListener("change", look);
    model.off("change:figure", draw);
    model.off("change:handle", place);
    Plotly.purge(canvas);
  }
  return stop;
}

export default { render };
