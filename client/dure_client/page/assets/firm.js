// What a firm's page does beyond HTML: takes the code out of the link, and shows news. Without script the code is typed
// and the page reloaded by hand.
"use strict";

(() => {
  const LOOK_MILLISECONDS = 5000;

  function enter() {
    const form = document.getElementById("enter");
    const code = decodeURIComponent(location.hash.slice(1));
    if (!form || !/^[A-Z2-7-]{16,24}$/i.test(code)) return;
    history.replaceState(null, "", location.pathname); // out of the address bar and the history
    form.elements.code.value = code;
    form.submit();
  }

  async function look() {
    const parts = [...document.querySelectorAll("[data-live]")];
    if (!parts.length || document.hidden) return;
    const answer = await fetch(location.pathname, { headers: { accept: "text/html" } }).catch(() => null);
    if (!answer || !answer.ok || answer.redirected) return; // it ended, or the session did: the next click says so
    const news = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts) {
      const now = news.getElementById(part.id);
      if (!now || now.outerHTML === part.outerHTML || part.contains(document.activeElement)) continue;
      part.replaceWith(document.importNode(now, true));
    }
  }

  enter();
  setInterval(look, LOOK_MILLISECONDS);
})();
