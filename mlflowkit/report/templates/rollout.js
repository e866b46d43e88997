/* Keeps the page of a service up to date: the server says when something changed, the page is asked for again, and
   the parts that differ take the place of the old ones. What it shows is only ever made by the server. */
"use strict";
(() => {
  const live = document.getElementById("live");
  const dialog = document.getElementById("confirm");
  const parts = () => [...document.querySelectorAll("#head, #contents, main > section")];
  const known = new Map(parts().map(part => [part.id, part.outerHTML]));
  let busy = false, again = false;

  const tell = (text, state) => { live.textContent = text; live.className = `live ${state}`; };
  const clock = () => new Date().toLocaleTimeString();

  /* A document and not a text: nothing here is ever parsed from a string. */
  const fetched = () => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname);
    request.responseType = "document";
    request.timeout = 15000;
    request.onload = () => request.status === 200 && request.response
      ? resolve(request.response) : reject(new Error(`the page answered ${request.status}`));
    request.onerror = request.ontimeout = () => reject(new Error("the page does not answer"));
    request.send();
  });

  /* Puts a fresh part in the place of the old one; what a reader had opened, scrolled or focused stays so. */
  const swap = (old, fresh) => {
    const open = new Map([...old.querySelectorAll("details[id]")].map(one => [one.id, one.open]));
    const scrolled = [...old.querySelectorAll(".scroll")].map(one => one.scrollLeft);
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    const made = document.importNode(fresh, true);
    old.replaceWith(made);
    for (const one of made.querySelectorAll("details[id]")) if (open.has(one.id)) one.open = open.get(one.id);
    made.querySelectorAll(".scroll").forEach((one, place) => { one.scrollLeft = scrolled[place] ?? 0; });
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
          if (fresh && fresh.outerHTML !== known.get(part.id)) {
            known.set(part.id, fresh.outerHTML);
            swap(part, fresh);
          }
        }
        ready();
        tell(`live, changed at ${clock()}`, "on");
      } while (again);
    } catch (error) {
      tell(`${error.message}; trying again`, "lost");
    } finally {
      busy = false;
    }
  };

  const ready = () => { for (const one of document.querySelectorAll("button[data-command]")) one.disabled = false; };

  const listen = () => {
    const events = new EventSource(document.body.dataset.events);
    events.addEventListener("open", () => tell(`live since ${clock()}`, "on"));
    events.addEventListener("change", refresh);
    events.addEventListener("error", () => {
      tell("no connection; trying again", "lost");
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

  field("do").addEventListener("click", async () => {
    field("do").disabled = true;
    try {
      const reply = await fetch(path, {
        method: "POST",
        headers: {"content-type": "application/json"},
        body: JSON.stringify({...body, reason: field("reason").value}),
      });
      const said = await reply.json();
      if (!reply.ok) throw new Error([said.error, said.hint].filter(Boolean).join("; "));
      dialog.close();
      tell(said.message, "on");
      refresh();
    } catch (error) {
      problem(error.message);
      field("do").disabled = false;
    }
  });

  field("reason").addEventListener("keydown", event => {
    if (event.key === "Enter") { event.preventDefault(); field("do").click(); }
  });

  ready();
  listen();
})();
