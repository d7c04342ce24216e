// Brings the page's explorables to life: each one when it comes near the viewport, with the site's
// own copy of Vega, which is loaded once and only on pages that need it.
(() => {
  const here = document.currentScript.src;
  let embed; // a promise

  const load = () =>
    (embed ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL("vega.js", here);
      script.onload = () => resolve(window.vegaEmbed);
      script.onerror = () => reject(new Error("vega.js could not be loaded"));
      document.head.append(script);
    }));

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const later = (milliseconds, action) => {
    let timer;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(action, milliseconds);
    };
  };

  // A chart wider than the window is laid out again, narrower, with its parts below each other:
  // scaled down, its text could not be read.
  function fit(spec, natural, room) {
    if (natural <= room) return;
    const wide = natural - room;
    if (typeof spec.width === "number") spec.width = Math.max(spec.width - wide, 150);
    if (spec.layout) spec.layout.columns = 1;
    for (const signal of spec.signals ?? []) {
      if (/width$/i.test(signal.name) && typeof signal.value === "number") {
        signal.value = Math.max(Math.min(signal.value, room - 80), 150);
      }
    }
  }

  // The state in the address: #explorable-name?control=value&...

  function wanted(figure) {
    const [id, query] = decodeURIComponent(location.hash.slice(1)).split("?");
    return id === figure.id && query ? new URLSearchParams(query) : null;
  }

  // The value that a control can take, from its text in the address; an Error says why it cannot.
  function understood(signal, text) {
    const { input, min = 0, max = 100, options } = signal.bind;
    if (options) {
      const found = options.find((option) => String(option) === text);
      if (found === undefined) return new Error(`it can be ${options.join(", ")}`);
      return found;
    }
    if (input === "checkbox") return text === "true" || (text !== "false" && new Error("it can be true or false"));
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < min || value > max) {
      return new Error(`it goes from ${min} to ${max}`);
    }
    return value;
  }

  function restore(figure, view, controls, note) {
    const state = wanted(figure);
    if (!state) return;
    const refused = [];
    for (const [name, text] of state) {
      const signal = controls.find((s) => s.name === name);
      const value = signal ? understood(signal, text) : new Error("this chart has no control of that name");
      if (value instanceof Error) refused.push(`${name} = ${text.slice(0, 30)}: ${value.message}`);
      else view.signal(name, value);
    }
    note.textContent = refused.length ? `Not understood in the address, and left as it was: ${refused.join("; ")}.` : "";
    view.runAsync();
    figure.scrollIntoView();
  }

  const address = (figure, view, controls) =>
    `#${figure.id}?${new URLSearchParams(controls.map((s) => [s.name, view.signal(s.name)]))}`;

  // What is drawn, as rows: the data of all marks, each set once.
  function drawn(view) {
    const sets = new Map();
    const visit = (node) => {
      if (node.marktype && node.marktype !== "group" && node.role === "mark") {
        const rows = node.items.map(({ datum }) =>
          Object.fromEntries(Object.entries(datum ?? {}).filter(([, value]) => typeof value !== "object")),
        );
        const distinct = [...new Map(rows.map((row) => [JSON.stringify(row), row])).values()];
        if (distinct.length && Object.keys(distinct[0]).length) sets.set(JSON.stringify(distinct), distinct);
      }
      node.items?.forEach(visit);
    };
    visit(view.scenegraph().root);
    const all = [...sets.values()];
    const several = all.filter((rows) => rows.length > 1); // a single row is a label or a marker
    return several.length ? several : all;
  }

  function tables(view) {
    return drawn(view).map((rows) => {
      const columns = [...new Set(rows.flatMap(Object.keys))];
      const shown = rows.slice(0, 200);
      const csv = [columns, ...rows.map((row) => columns.map((c) => row[c]))].map((r) => r.join(",")).join("\n");
      const link = make("a", { href: URL.createObjectURL(new Blob([csv], { type: "text/csv" })), download: "data.csv" }, "as CSV");
      const text = (value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value) ?? "";
      return make(
        "div",
        { className: "explorable-table", tabIndex: 0 },
        make(
          "table",
          {},
          make("caption", {}, `${shown.length} of ${rows.length} rows, as drawn now; all of them `, link),
          make("thead", {}, make("tr", {}, ...columns.map((c) => make("th", { scope: "col" }, c)))),
          make("tbody", {}, ...shown.map((row) => make("tr", {}, ...columns.map((c) => make("td", {}, text(row[c])))))),
        ),
      );
    });
  }

  async function show(figure) {
    const still = figure.querySelector(".explorable-view");
    const bindings = figure.querySelector(".explorable-controls");
    try {
      const embed = await load();
      const spec = JSON.parse(figure.querySelector("script").textContent);
      fit(spec, still.querySelector("svg").width.baseVal.value, figure.clientWidth);
      const live = make("div", { className: "explorable-view" });
      live.setAttribute("role", "img");
      live.setAttribute("aria-label", still.getAttribute("aria-label"));
      const { view } = await embed(live, spec, { mode: "vega", renderer: "svg", actions: false, bind: bindings });
      live.querySelector("svg").setAttribute("aria-hidden", "true"); // its label says more than its parts
      still.replaceWith(live);

      const controls = spec.signals.filter((signal) => signal.bind?.input);
      const first = controls.map((s) => view.signal(s.name));
      const note = make("p", { className: "explorable-note" });
      note.setAttribute("role", "status");
      const readout = make("p", { className: "visually-hidden" });
      readout.setAttribute("aria-live", "polite");
      const share = make("button", { type: "button" }, "Copy link to this state");
      share.onclick = async () => {
        const link = new URL(address(figure, view, controls), location.href).href;
        try {
          await navigator.clipboard.writeText(link);
          note.textContent = "Copied.";
        } catch {
          note.textContent = link; // no permission: to be copied by hand
        }
      };
      const reset = make("button", { type: "button" }, "Reset");
      reset.onclick = () => {
        controls.forEach((s, i) => view.signal(s.name, first[i]));
        note.textContent = "";
        view.runAsync();
      };
      const data = make("details", {}, make("summary", {}, "Data"));
      const refill = () => data.open && data.replaceChildren(data.firstChild, ...tables(view));
      data.ontoggle = refill;
      figure.append(readout, note, make("div", { className: "explorable-actions" }, reset, share, data));

      const settled = later(250, () => {
        const words = [...live.querySelectorAll(".mark-text.role-mark text")].map((t) => t.textContent);
        readout.textContent = words.join(". ");
        refill();
        try {
          history.replaceState(null, "", address(figure, view, controls));
        } catch {
          // a browser may refuse this to a page opened from a folder
        }
      });
      restore(figure, view, controls, note);
      for (const { name } of controls) view.addSignalListener(name, settled);
      addEventListener("hashchange", () => restore(figure, view, controls, note));
      figure.vega = view; // for tests, and for the curious reader's console
      figure.dataset.ready = "true";
    } catch (error) {
      console.error(error); // the still picture stays
    }
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) {
          seen.unobserve(target);
          show(target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  for (const figure of document.querySelectorAll("figure.explorable")) {
    if (wanted(figure)) figure.scrollIntoView();
    seen.observe(figure);
  }
})();
