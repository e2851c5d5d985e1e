// Runs before everything else, and tells why the page cannot start; as no module, it also runs from file://.

"use strict";

function cannotStart(message) {
  const tell = () => {
    const problem = document.getElementById("problem");
    problem.textContent = message;
    problem.hidden = false;
    document.getElementById("status").textContent = "It cannot start.";
    document.getElementById("progress").hidden = true;
    document.body.dataset.state = "failed";
  };
  if (document.getElementById("problem")) tell();
  else document.addEventListener("DOMContentLoaded", tell);
}

if (location.protocol === "file:") {
  cannotStart(
    "This page was opened as a file, from which browsers do not load WebAssembly. Start a web server in its folder, " +
      "for example with: python -m http.server 8000, and open http://localhost:8000",
  );
}

// A script of the page that is missing says so here; elements' errors do not bubble, so they are caught on their way down.
addEventListener(
  "error",
  (event) => {
    if (event.target instanceof HTMLScriptElement && location.protocol !== "file:") {
      cannotStart("A file of this page is missing or damaged: app.js or classifier.js. Copy the whole folder again.");
    }
  },
  true,
);
