// Keys that are pressed in a panel are the panel's: JupyterLab's own (b: a new cell, down: the next one) see plain keys
// first, at the document, unless the focused element itself bears Lumino's mark. Ctrl, Alt and Meta stay JupyterLab's.

const KEY = Symbol.for("value-workbench.keys");
const MARK = "data-lm-suppress-shortcuts";

const mark = ({ target, ctrlKey, metaKey, altKey }) => {
  if (!target.closest?.(".wb-panel")) return;
  if (ctrlKey || metaKey || altKey) target.removeAttribute(MARK);
  else target.setAttribute(MARK, "true");
};

function render({ el }) {
  el.hidden = true;
  if (globalThis[KEY]) return;
  globalThis[KEY] = true;
  window.addEventListener("keydown", mark, true); // before the document's listeners
}

export default { render };
