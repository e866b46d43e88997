/* Keeps the page of a service, or of its monitor, up to date: on a change event from the server, fetch the page again
   and replace the parts that differ. All HTML is rendered by the server. */
"use strict";
(() => {
  const live = document.getElementById("live");
  const dialog = document.getElementById("confirm");
  const parts = () => [...document.querySelectorAll("#head, #contents, main > section")];
  const shown = new Map(parts().map(part => [part.id, part.outerHTML]));
  let busy = false, again = false;

  const showStatus = (text, state) => { live.textContent = text; live.className = `live ${state}`; };
  const clock = () => new Date().toLocaleTimeString();

  /* Fetched as a document, so that no string is ever parsed as HTML here. */
  const fetched = () => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname + location.search);
    request.responseType = "document";
    request.timeout = 15000;
    request.onload = () => request.status === 200 && request.response
      ? resolve(request.response) : reject(new Error(`the page answered ${request.status}`));
    request.onerror = request.ontimeout = () => reject(new Error("the page does not answer"));
    request.send();
  });

  /* Replaces a part and restores opened details, scroll positions and focus. */
  const swap = (old, fresh) => {
    const open = new Map([...old.querySelectorAll("details[id]")].map(details => [details.id, details.open]));
    const scrolled = [...old.querySelectorAll(".scroll")].map(element => element.scrollLeft);
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    const part = document.importNode(fresh, true);
    old.replaceWith(part);
    for (const details of part.querySelectorAll("details[id]")) {
      if (open.has(details.id)) details.open = open.get(details.id);
    }
    part.querySelectorAll(".scroll").forEach((element, index) => { element.scrollLeft = scrolled[index] ?? 0; });
    if (focused) document.getElementById(focused)?.focus({preventScroll: true});
  };

  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        const page = await fetched();
        document.title = page.title;
        for (const part of parts()) {
          const fresh = page.getElementById(part.id);
          if (fresh && fresh.outerHTML !== shown.get(part.id)) {
            shown.set(part.id, fresh.outerHTML);
            swap(part, fresh);
          }
        }
        enableButtons();
        showStatus(`live, changed at ${clock()}`, "on");
      } while (again);
    } catch (error) {
      showStatus(`${error.message}; trying again`, "lost");
    } finally {
      busy = false;
    }
  };

  const enableButtons = () => {
    for (const button of document.querySelectorAll("button[data-command]")) button.disabled = false;
  };

  const listen = () => {
    const events = new EventSource(document.body.dataset.events);
    events.addEventListener("open", () => showStatus(`live since ${clock()}`, "on"));
    events.addEventListener("change", refresh);
    events.addEventListener("error", () => {
      showStatus("no connection; trying again", "lost");
      if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
    });
  };

  const field = name => document.getElementById(`confirm-${name}`);
  const problem = text => { field("problem").textContent = text; field("problem").hidden = !text; };
  let path = "", body = {};

  document.addEventListener("click", event => {
    const button = event.target.closest("button[data-command]");
    if (!button) return;
    path = button.dataset.command;
    body = JSON.parse(button.dataset.body);
    field("title").textContent = `${button.dataset.label}?`;
    field("consequence").textContent = button.dataset.consequence;
    field("do").textContent = button.dataset.label;
    field("do").className = button.className;
    field("do").disabled = false;
    field("reason").value = "";
    problem("");
    dialog.showModal();
  });

  if (dialog) field("do").addEventListener("click", async () => {
    field("do").disabled = true;
    try {
      const reply = await fetch(path, {
        method: "POST",
        headers: {"content-type": "application/json"},
        body: JSON.stringify({...body, reason: field("reason").value}),
      });
      const result = await reply.json();
      if (!reply.ok) throw new Error([result.error, result.hint].filter(Boolean).join("; "));
      dialog.close();
      showStatus(result.message, "on");
      refresh();
    } catch (error) {
      problem(error.message);
      field("do").disabled = false;
    }
  });

  if (dialog) field("reason").addEventListener("keydown", event => {
    if (event.key === "Enter") { event.preventDefault(); field("do").click(); }
  });

  enableButtons();
  listen();
})();
