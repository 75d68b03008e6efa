// The page round the studio: light or dark, what is going on while it loads, and what to do when its kernel is gone.

const page = (() => {
  const asked = new URLSearchParams(location.search).get("theme");
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  let chosen = ["light", "dark"].includes(asked) ? asked : null;
  const find = (id) => document.getElementById(id);

  const paint = () => {
    const dark = chosen ? chosen === "dark" : scheme.matches;
    find("theme-light").media = dark ? "not all" : "all";
    find("theme-dark").media = dark ? "all" : "not all";
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    if (!document.body) return;
    document.body.dataset.jpThemeLight = String(!dark); // what our figures and JupyterLab's widgets look at
    document.body.dataset.jpThemeName = dark ? "JupyterLab Dark" : "JupyterLab Light";
    const button = find("app-theme");
    if (button) button.textContent = dark ? "Light page" : "Dark page";
  };
  paint();
  scheme.addEventListener("change", paint);

  const other = () => {
    chosen = document.body.dataset.jpThemeLight === "true" ? "dark" : "light";
    const address = new URL(location.href);
    address.searchParams.set("theme", chosen); // stays so when the page is loaded again
    history.replaceState(null, "", address);
    paint();
  };

  // Loading: which step, for how long, and the end of it when the first widget stands in the page.
  const started = Date.now();
  let clock = null;
  const step = (n) => [...find("app-loading").querySelectorAll("li")].forEach((item, k) => {
    item.className = k < n ? "app-done" : k === n ? "app-now" : "";
    if (k === n) item.setAttribute("aria-current", "step"); else item.removeAttribute("aria-current");
  });
  const loaded = () => {
    clearInterval(clock);
    find("app-loading").hidden = true;
  };
  const begin = () => {
    paint();
    step(0);
    clock = setInterval(() => { find("app-clock").textContent = `${Math.round((Date.now() - started) / 1000)} s`; }, 1000);
    new MutationObserver((_, watch) => {
      if (!document.querySelector("#studio .jupyter-widgets")) return;
      watch.disconnect();
      loaded();
    }).observe(find("studio"), { childList: true, subtree: true });
  };

  // The end of a visit.
  const ends = {
    gone: ["This visit is over", "Its Python process has ended: the tab was left alone for long, or the server was " +
      "started again. What is still shown stays readable, but answers no more."],
    lost: ["The server does not answer", "It was stopped, or the network is away. This page looks again by itself."],
    failed: ["The studio could not be started", "Whoever runs this server finds the reason in its window."],
  };
  let told = null;
  const over = (how) => {
    if (told === "gone" || told === "failed" || how === told) return;
    told = how;
    find("app-over").hidden = how === null;
    if (how === null) return;
    [find("app-over-title").textContent, find("app-over-text").textContent] = ends[how];
    loaded();
    document.querySelector(".app-again").focus({ preventScroll: true });
  };

  const config = () => JSON.parse(find("jupyter-config-data")?.textContent ?? "{}"); // nothing before the kernel started
  const look = async () => {
    try {
      const { baseUrl, kernelId } = config();
      const answer = await fetch(`${baseUrl}api/kernels/${kernelId}`, { cache: "no-store" });
      if (answer.status === 404) over("gone");
      else if (answer.ok) over(null);
    } catch {
      over("lost");
    }
    if (told === "lost" || told === null && line.readyState !== WebSocket.OPEN) setTimeout(look, 2000);
  };
  let line = null; // the connection to the kernel, which JupyterLab's part of the page opens, and opens again
  const Socket = WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...given) {
      super(...given);
      if (!String(given[0]).includes("/api/kernels/")) return;
      line = this;
      this.addEventListener("close", () => setTimeout(() => leaving || look(), 300));
    }
  };

  // A closed tab gives its place back at once. Voila asks for it too, but not where a phone puts the tab away.
  let leaving = false;
  addEventListener("pagehide", () => {
    leaving = true;
    const form = new FormData();
    form.append("_xsrf", document.cookie.match(/\b_xsrf=([^;]*)/)?.[1] ?? "");
    const { baseUrl, kernelId } = config();
    if (kernelId) navigator.sendBeacon(`${baseUrl}voila/api/shutdown/${kernelId}`, form);
  });
  addEventListener("pageshow", (event) => event.persisted && location.reload());

  return { paint, other, begin, step, over };
})();
