// Brings the page's explorables to life: each one when it comes near the viewport, with the
// site's own copy of Vega, which is loaded once and only on pages that need it.
(() => {
  const here = document.currentScript.src;
  let vega; // a promise of vegaEmbed

  const load = () =>
    (vega ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL("vega.js", here);
      script.onload = () => resolve(window.vegaEmbed);
      script.onerror = () => reject(new Error("vega.js could not be loaded"));
      document.head.append(script);
    }));

  async function show(figure) {
    const view = figure.querySelector(".explorable-view");
    const spec = JSON.parse(figure.querySelector("script").textContent);
    try {
      const embed = await load();
      const live = document.createElement("div");
      live.className = "explorable-view";
      const result = await embed(live, spec, { actions: false, renderer: "svg" });
      view.replaceWith(live);
      figure.vega = result.view; // for tests, and for the curious reader's console
      figure.dataset.ready = "true";
    } catch (error) {
      console.error(error); // the still picture stays
    }
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          seen.unobserve(entry.target);
          show(entry.target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  document.querySelectorAll("figure.explorable").forEach((figure) => seen.observe(figure));
})();
