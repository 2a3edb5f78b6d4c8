// What the pages need of a browser beyond HTML: times in the reader's zone, and buttons that copy.
// Without it, times are in UTC and ids can be selected.
"use strict";

const asLocal = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function writeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    time.title = time.textContent;
    time.textContent = asLocal.format(moment);
  }
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1200);
  } catch {
    // Browsers allow it only over https or on this machine: select the id, for the keyboard.
    getSelection().selectAllChildren(button.parentElement.querySelector("bdi"));
  }
}

document.documentElement.classList.add("has-script");
// A page that answers to a form keeps its address, but not the form: going back to it or reloading it
// asks for a new page, and never whether to send the form again.
if (document.querySelector("main[data-answers-form]")) history.replaceState(null, "", location.href);
writeTimes(document);
document.addEventListener("htmx:load", (event) => writeTimes(event.detail.elt));
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button);
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, select, textarea");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.querySelector('[data-key="/"]');
  if (search) {
    event.preventDefault();
    search.focus();
  }
});
